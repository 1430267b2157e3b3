package cluster

import (
	"cmp"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/cloudwatch"
	"berth.dev/berth/cluster/series"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/telemetry"
)

// openTelemetry opens the series and what shows them.
func (s *Server) openTelemetry() (err error) {
	s.series, err = series.Open(series.Config{Path: filepath.Join(s.config.Dir, "series.db"), MaxBytes: s.config.SeriesBytes, Log: s.log})
	if err != nil {
		return err
	}
	s.usage = telemetry.New(nil)
	if s.recorder, err = telemetry.NewRecorder(s.usage, s.store, s.series, s.log); err != nil {
		return err
	}
	s.watch = cloudwatch.New(cloudwatch.Config{
		Series: s.series, Authenticate: s.api.AuthenticateOperator, InstanceID: s.ec2ID, Log: s.log,
	})
	s.metrics.registry.MustRegister(telemetry.NewCollector(s.usage, s.store))
	return nil
}

// ec2ID is the EC2 id of a container instance, or "".
func (s *Server) ec2ID(cluster, id string) (ec2 string) {
	s.store.View(func(r store.Reader) {
		if i, ok := store.Get(r, store.Instances, store.Key(cluster, id)); ok {
			ec2 = aws.ToString(i.Instance.Ec2InstanceId)
		}
	})
	return ec2
}

// serveCloudWatch answers CloudWatch's requests in JSON and CBOR; its forms come by way
// of the API.
func (s *Server) serveCloudWatch(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, cloudwatch.MaxBody))
	if err != nil {
		(&api.Error{Code: "SerializationException", Message: "The request body could not be read.", Status: http.StatusBadRequest}).Write(w)
		return
	}
	start := time.Now()
	r, by := api.WithSigner(r)
	id := api.NewRequestID()
	w.Header().Set("X-Amzn-Requestid", id)
	operation, code := s.watch.Serve(w, r, body, id)
	s.metrics.observe(operation, code, time.Since(start))
	var failed error
	if code != "" {
		failed = &api.Error{Code: code}
	}
	call := by.Call(r, start, operation, failed, nil)
	call.RequestID = id
	s.called(call)
}

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
