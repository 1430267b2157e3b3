package cluster

import (
	"path/filepath"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/audit"
)

// auditOff as Config.AuditFile means that calls are not recorded.
const auditOff = "off"

func (s *Server) openAudit() (err error) {
	path := s.config.AuditFile
	switch path {
	case auditOff:
		return nil
	case "":
		path = filepath.Join(s.config.Dir, "audit", "audit.log")
	}
	s.audit, err = audit.Open(audit.Config{
		Path: path, Region: s.config.Region, Account: s.config.Account, Metrics: s.metrics.registry, Log: s.log,
	})
	return err
}

// called records a call.
func (s *Server) called(c *api.Call) {
	if s.audit != nil {
		s.audit.Record(c)
	}
}
