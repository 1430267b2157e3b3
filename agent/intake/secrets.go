package intake

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// secretDir is where files of secrets are, where the cluster does not say.
const secretDir = "/run/secrets"

// Limits of what one container refers to; the ECS API has 10 environment files.
const (
	maxSecrets  = 512
	maxEnvFiles = 64
)

// references takes over what the container refers to and the agent has to fetch:
// secrets, environment files, and credentials of a registry.
func references(c *task.Container, w *acs.Container) error {
	if len(w.Secrets) > maxSecrets || len(w.EnvironmentFiles) > maxEnvFiles {
		return fmt.Errorf("%d secrets and %d environmentFiles; at most %d and %d can be", len(w.Secrets), len(w.EnvironmentFiles), maxSecrets, maxEnvFiles)
	}
	for i := range w.Secrets {
		s := &w.Secrets[i]
		if s.Name == "" || s.ValueFrom == "" {
			return errors.New("secrets: name and valueFrom must not be empty")
		}
		if s.Provider != task.ProviderSSM && s.Provider != task.ProviderSecretsManager {
			return errors.New("secrets: provider must be ssm or asm")
		}
		ref := task.SecretRef{Name: s.Name, From: s.ValueFrom, Region: s.Region, Provider: s.Provider, Use: task.UseEnvironment}
		switch {
		case s.Target == "LOG_DRIVER" && s.Type == "ENVIRONMENT_VARIABLE":
			ref.Use = task.UseLogRouter
		case s.Target == "LOG_DRIVER":
			ref.Use = task.UseLogOption
		case s.Type == "MOUNT_POINT":
			ref.Use, ref.Dir = task.UseFile, s.ContainerPath
			if ref.Dir == "" {
				ref.Dir = secretDir
			}
		}
		if ref.Use == task.UseEnvironment && strings.ContainsAny(ref.Name, "=\x00") {
			return errors.New("secrets: a name that is no name of a variable")
		}
		c.Secrets = append(c.Secrets, ref)
	}
	if v, ok := c.Config.Labels[task.LabelSecretFiles]; ok {
		if err := asFiles(c, v); err != nil {
			return fmt.Errorf("label %s: %w", task.LabelSecretFiles, err)
		}
	}
	for _, f := range w.EnvironmentFiles {
		if f.Type != "s3" {
			return errors.New("environmentFiles: type must be s3")
		}
		c.EnvFiles = append(c.EnvFiles, f.Value)
	}
	return registry(c, w.RegistryAuthentication)
}

// asFiles makes files of the secrets that the label names, or of all.
func asFiles(c *task.Container, label string) error {
	dir, list, some := strings.Cut(label, ":")
	if !strings.HasPrefix(dir, "/") {
		return errors.New("must begin with an absolute directory, as in /run/secrets or /run/secrets:NAME,OTHER")
	}
	names := strings.Split(list, ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	seen := make(map[string]bool)
	for i := range c.Secrets {
		ref := &c.Secrets[i]
		if ref.Use != task.UseEnvironment || some && !slices.Contains(names, ref.Name) {
			continue
		}
		ref.Use, ref.Dir = task.UseFile, dir
		seen[ref.Name] = true
	}
	for i, name := range names {
		if some && !seen[name] {
			return fmt.Errorf("name %d of the list is none of the container's secrets", i+1)
		}
	}
	return nil
}

func registry(c *task.Container, w *acs.RegistryAuthentication) error {
	if w == nil || w.Type == "" {
		return nil
	}
	switch {
	case w.Type == "ecr" && w.ECRAuthData != nil:
		e := w.ECRAuthData
		c.Registry = &task.RegistryAuth{RegistryID: e.RegistryID, Region: e.Region, Endpoint: e.EndpointOverride, UseExecutionRole: e.UseExecutionRole}
	case w.Type == "asm" && w.ASMAuthData != nil && w.ASMAuthData.CredentialsParameter != "":
		c.Registry = &task.RegistryAuth{Secret: w.ASMAuthData.CredentialsParameter, Region: w.ASMAuthData.Region, UseExecutionRole: true}
	default:
		return errors.New("registryAuthentication: type must be ecr or asm, with the data of that type")
	}
	return nil
}
