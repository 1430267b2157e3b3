package aws

import (
	"encoding/base64"
	"time"
)

// Token is what docker logs in to the registry of an account with.
type Token struct {
	Password string
	Expires  time.Time
	Endpoint string // URL of the registry
}

// SetToken sets what GetAuthorizationToken gives for an account.
func (s *Server) SetToken(account string, t Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.registries[account] = t
}

func (s *Server) ecr() {
	s.Handle("ecr", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken", func(c Call) (any, error) {
		var in struct {
			RegistryIDs []string `json:"registryIds"`
		}
		if err := decode(c, &in); err != nil {
			return nil, err
		}
		if len(in.RegistryIDs) == 0 {
			in.RegistryIDs = []string{Account}
		}
		type data struct {
			Token    string  `json:"authorizationToken"`
			Expires  float64 `json:"expiresAt"`
			Endpoint string  `json:"proxyEndpoint"`
		}
		var out struct {
			Data []data `json:"authorizationData"`
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range in.RegistryIDs {
			t, ok := s.registries[id]
			if !ok {
				return nil, Faultf("InvalidParameterException", "Invalid parameter at 'registryIds' failed to satisfy constraint: no registry of account %s", id)
			}
			out.Data = append(out.Data, data{base64.StdEncoding.EncodeToString([]byte("AWS:" + t.Password)), float64(t.Expires.UnixMilli()) / 1000, t.Endpoint})
		}
		return out, nil
	})
}
