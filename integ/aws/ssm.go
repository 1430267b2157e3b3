package aws

import (
	"fmt"
	"strings"
)

// maxNames is how many parameters one request may ask for (SSM API reference,
// GetParameters).
const maxNames = 10

// SetParameter stores a SecureString in a region.
func (s *Server) SetParameter(region, name, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parameters[region+" "+strings.TrimPrefix(name, "/")] = value
}

// ParameterARN is the ARN of a parameter.
func ParameterARN(region, name string) string {
	return fmt.Sprintf("arn:aws:ssm:%s:%s:parameter/%s", region, Account, strings.TrimPrefix(name, "/"))
}

type parameter struct {
	ARN     string
	Name    string
	Type    string
	Value   string
	Version int
}

func (s *Server) ssm() {
	s.Handle("ssm", "AmazonSSM.GetParameters", func(c Call) (any, error) {
		var in struct {
			Names          []string
			WithDecryption bool
		}
		if err := decode(c, &in); err != nil {
			return nil, err
		}
		if len(in.Names) == 0 || len(in.Names) > maxNames {
			return nil, Faultf("ValidationException", "1 validation error detected: Value '%v' at 'names' failed to satisfy constraint: Member must have length less than or equal to %d", in.Names, maxNames)
		}
		found, invalid := []parameter{}, []string{}
		for _, name := range in.Names {
			p, ok := s.parameter(c.Region, name, in.WithDecryption)
			if !ok {
				invalid = append(invalid, name)
				continue
			}
			found = append(found, p)
		}
		return map[string]any{"Parameters": found, "InvalidParameters": invalid}, nil
	})
}

func (s *Server) parameter(region, asked string, decrypt bool) (parameter, bool) {
	name := asked
	if f := strings.SplitN(asked, ":", 6); len(f) == 6 && f[0] == "arn" {
		if f[3] != region {
			return parameter{}, false
		}
		name = strings.TrimPrefix(f[5], "parameter")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.parameters[region+" "+strings.TrimPrefix(name, "/")]
	if !decrypt {
		value = "AQICAHencrypted"
	}
	return parameter{ARN: ParameterARN(region, name), Name: asked, Type: "SecureString", Value: value, Version: 1}, ok
}
