package cluster

import (
	"cmp"
	"net/http"
	"strconv"
	"time"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/telemetry"
)

// serveUsage answers with the last points of a cluster's containers; since, in
// milliseconds since 1970, leaves out older ones. Only the operator may ask.
func (s *Server) serveUsage(w http.ResponseWriter, r *http.Request) {
	if err := s.operatorOnly(r, nil, "ask for usage"); err != nil {
		s.refuse(w, "usage not told", err)
		return
	}
	q := r.URL.Query()
	since := time.Time{}
	if text := q.Get("since"); text != "" {
		ms, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			(&api.Error{Code: "InvalidParameterException", Message: "since must be milliseconds since 1970.", Status: http.StatusBadRequest}).Write(w)
			return
		}
		since = time.UnixMilli(ms)
	}
	list := s.usage.Containers(cmp.Or(q.Get("cluster"), "default"), since)
	if list == nil {
		list = []telemetry.Container{}
	}
	s.answer(w, http.StatusOK, map[string]any{"containers": list})
}
