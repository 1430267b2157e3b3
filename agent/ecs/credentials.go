package ecs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"berth.dev/berth/agent/config"
)

// keyFileAge is how long what was read of the key file is used (agent protocol,
// "Transport": the rotating file is read again every minute).
const keyFileAge = time.Minute

// Credentials gives the agent's own credentials: those of the settings (and so of the
// environment), else those of the key file, else what the AWS SDK finds. Nothing is
// asked of the network while one of the first two has them.
func Credentials(c *config.Config) aws.CredentialsProvider {
	if c.Cluster.AccessKeyID != "" && !c.Cluster.SecretAccessKey.IsZero() {
		return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{
				AccessKeyID: c.Cluster.AccessKeyID, SecretAccessKey: c.Cluster.SecretAccessKey.Reveal(),
				SessionToken: c.Cluster.SessionToken.Reveal(), Source: "agent settings",
			}, nil
		})
	}
	k := &keyFile{path: c.Berth.KeyFile, profile: c.Cluster.Profile, noIMDS: c.Cluster.External || c.Cluster.NoIID, region: c.Cluster.Region}
	return aws.NewCredentialsCache(k)
}

// keyFile reads the agent's key file, and falls back to the SDK when there is none.
type keyFile struct {
	path, profile, region string
	noIMDS                bool

	mu    sync.Mutex
	chain aws.CredentialsProvider // made when it is first needed
}

// Retrieve reads the file anew; the cache around it asks again after keyFileAge.
func (k *keyFile) Retrieve(ctx context.Context) (aws.Credentials, error) {
	found, err := readKeyFile(k.path, k.profile)
	if err != nil {
		return aws.Credentials{}, err
	}
	if found != nil {
		found.CanExpire, found.Expires = true, time.Now().Add(keyFileAge)
		return *found, nil
	}
	chain, err := k.sdk(ctx)
	if err != nil {
		return aws.Credentials{}, err
	}
	out, err := chain.Retrieve(ctx)
	if err != nil {
		return out, fmt.Errorf("no credentials: %s is not there, AWS_ACCESS_KEY_ID is not set, and the AWS SDK finds none: %w", k.path, err)
	}
	return out, nil
}

func (k *keyFile) sdk(ctx context.Context) (aws.CredentialsProvider, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.chain != nil {
		return k.chain, nil
	}
	state := imds.ClientDefaultEnableState
	if k.noIMDS {
		state = imds.ClientDisabled
	}
	c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(k.region), awsconfig.WithEC2IMDSClientEnableState(state))
	if err != nil {
		return nil, fmt.Errorf("AWS SDK configuration: %w", err)
	}
	k.chain = c.Credentials
	return k.chain, nil
}

// readKeyFile returns nil without an error when the file is not there.
func readKeyFile(path, profile string) (*aws.Credentials, error) {
	if path == "" {
		return nil, nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %v; only its owner may read it (chmod 600)", path, mode)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	found, err := parseKeyFile(text, profile)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return found, nil
}

// parseKeyFile reads an AWS shared credentials file. Its errors hold nothing of it.
func parseKeyFile(text []byte, profile string) (*aws.Credentials, error) {
	if profile == "" {
		profile = "default"
	}
	out := &aws.Credentials{Source: "key file"}
	inside, seen := false, false
	for line := range bytes.Lines(text) {
		s := strings.TrimSpace(string(line))
		switch {
		case s == "" || s[0] == '#' || s[0] == ';':
			continue
		case s[0] == '[':
			name := strings.TrimSpace(strings.Trim(s, "[]"))
			inside = strings.TrimSpace(strings.TrimPrefix(name, "profile ")) == profile
			seen = seen || inside
			continue
		}
		name, value, ok := strings.Cut(s, "=")
		if !inside || !ok {
			continue
		}
		value = strings.TrimSpace(value)
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "aws_access_key_id":
			out.AccessKeyID = value
		case "aws_secret_access_key":
			out.SecretAccessKey = value
		case "aws_session_token":
			out.SessionToken = value
		}
	}
	switch {
	case !seen:
		return nil, fmt.Errorf("no profile %q", profile)
	case out.AccessKeyID == "" || out.SecretAccessKey == "":
		return nil, fmt.Errorf("profile %q lacks aws_access_key_id or aws_secret_access_key", profile)
	}
	return out, nil
}
