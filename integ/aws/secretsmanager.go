package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

type secret struct {
	arn, name string
	versions  []version
}

type version struct {
	id     string
	value  string
	stages []string
}

// SetSecret stores a value as the current version of a secret and returns the secret's
// ARN and the version's id. The version before it becomes AWSPREVIOUS.
func (s *Server) SetSecret(region, name, value string) (arn, versionID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := region + " " + name
	sec := s.secrets[key]
	if sec == nil {
		sum := sha256.Sum256([]byte(key))
		sec = &secret{name: name, arn: fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-%s", region, Account, name, hex.EncodeToString(sum[:3]))}
		s.secrets[key] = sec
	}
	for i := range sec.versions {
		v := &sec.versions[i]
		if slices.Contains(v.stages, "AWSCURRENT") {
			v.stages = []string{"AWSPREVIOUS"}
		} else {
			v.stages = nil
		}
	}
	v := version{id: requestID(), value: value, stages: []string{"AWSCURRENT"}}
	sec.versions = append(sec.versions, v)
	return sec.arn, v.id
}

func (s *Server) secretsManager() {
	s.Handle("secretsmanager", "secretsmanager.GetSecretValue", func(c Call) (any, error) {
		var in struct{ SecretId, VersionId, VersionStage string }
		if err := decode(c, &in); err != nil {
			return nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		sec := s.secret(c.Region, in.SecretId)
		if sec == nil {
			return nil, Faultf("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
		}
		stage := in.VersionStage
		if stage == "" && in.VersionId == "" {
			stage = "AWSCURRENT"
		}
		for _, v := range sec.versions {
			if in.VersionId != "" && v.id != in.VersionId || stage != "" && !slices.Contains(v.stages, stage) {
				continue
			}
			return map[string]any{"ARN": sec.arn, "Name": sec.name, "SecretString": v.value, "VersionId": v.id, "VersionStages": v.stages}, nil
		}
		if in.VersionId != "" {
			return nil, Faultf("ResourceNotFoundException", "Secrets Manager can't find the specified secret value for VersionId: %s", in.VersionId)
		}
		return nil, Faultf("ResourceNotFoundException", "Secrets Manager can't find the specified secret value for staging label: %s", stage)
	})
}

// secret finds one by name, by ARN, or by ARN without the random suffix.
func (s *Server) secret(region, id string) *secret {
	for key, sec := range s.secrets {
		if !strings.HasPrefix(key, region+" ") {
			continue
		}
		if id == sec.name || id == sec.arn || id == sec.arn[:strings.LastIndexByte(sec.arn, '-')] {
			return sec
		}
	}
	return nil
}
