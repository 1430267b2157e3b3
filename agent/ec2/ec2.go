// Package ec2 asks an EC2 instance's metadata service (IMDSv2) who the instance is, what
// its owner has given it, and whether it is about to be taken away (agent protocol, "Start
// order", IMDS reads).
package ec2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	// answerLimit bounds one answer; user data has 16 KiB at most.
	answerLimit = 64 << 10
	// attempts is how often one value is asked for (agent protocol).
	attempts = 5
	// dialTimeout is how long a machine that is no EC2 instance is asked for one.
	dialTimeout = 2 * time.Second
	// maxTags is how many tags an instance may have.
	maxTags = 50
)

// Instance is the metadata service of this instance.
type Instance struct{ api *imds.Client }

// New makes a client; endpoint is another one than the link-local address, for tests and
// for machines that are like EC2's, or empty. It asks nothing yet.
func New(endpoint string) *Instance {
	client := awshttp.NewBuildableClient().WithTimeout(dialTimeout).WithTransportOptions(func(t *http.Transport) { t.Proxy = nil })
	return &Instance{imds.New(imds.Options{
		Endpoint: endpoint, HTTPClient: client, Retryer: aws.NopRetryer{},
		// The first version of the service needs no token, so that what a task can be made
		// to fetch would reach it.
		EnableFallback: aws.FalseTernary,
	})}
}

// Identity is who an instance is.
type Identity struct {
	Document, Signature string // as registrations carry them
	InstanceID, Region  string
}

// Identity asks for the identity document.
func (i *Instance) Identity(ctx context.Context) (Identity, error) {
	var out Identity
	document, err := i.dynamic(ctx, "instance-identity/document")
	if err != nil {
		return out, err
	}
	var known struct{ InstanceID, Region string }
	if err := json.Unmarshal([]byte(document), &known); err != nil || known.InstanceID == "" {
		return out, fmt.Errorf("the instance identity document names no instance: %w", errors.Join(err))
	}
	out = Identity{Document: document, InstanceID: known.InstanceID, Region: known.Region}
	out.Signature, err = i.dynamic(ctx, "instance-identity/signature")
	return out, err
}

// UserData is what the instance was started with; empty if there is none.
func (i *Instance) UserData(ctx context.Context) ([]byte, error) {
	out, err := i.api.GetUserData(ctx, nil)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("user data: %w", err)
	}
	text, err := text(out.Content)
	return []byte(text), err
}

// Tags are the tags of the instance, where its metadata has them, without those that AWS
// has made.
func (i *Instance) Tags(ctx context.Context) (map[string]string, error) {
	list, err := i.metadata(ctx, "tags/instance")
	if err != nil || list == "" {
		return nil, err
	}
	tags := map[string]string{}
	for line := range strings.Lines(list) {
		key := strings.TrimSpace(line)
		if key == "" || strings.HasPrefix(key, "aws:") || len(tags) >= maxTags {
			continue
		}
		if tags[key], err = i.metadata(ctx, "tags/instance/"+key); err != nil {
			return nil, err
		}
	}
	return tags, nil
}

// Notice says that the instance is to be taken away, or may be soon; empty if it is not.
func (i *Instance) Notice(ctx context.Context) (string, error) {
	action, err := i.metadata(ctx, "spot/instance-action")
	if err != nil {
		return "", err
	}
	if action != "" {
		return "spot interruption " + action, nil
	}
	recommendation, err := i.metadata(ctx, "events/recommendations/rebalance")
	if err != nil || recommendation == "" {
		return "", err
	}
	return "rebalance recommendation " + recommendation, nil
}

// Lifecycle is the state that the instance's auto scaling group wants it to have, such as
// InService or Warmed:Running; empty if there is none.
func (i *Instance) Lifecycle(ctx context.Context) (string, error) {
	return i.metadata(ctx, "autoscaling/target-lifecycle-state")
}

func (i *Instance) metadata(ctx context.Context, path string) (string, error) {
	var last error
	for range attempts {
		out, err := i.api.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
		if absent(err) {
			return "", nil
		}
		if err == nil {
			return text(out.Content)
		}
		if last = err; ctx.Err() != nil {
			break
		}
	}
	return "", fmt.Errorf("instance metadata %s: %w", path, last)
}

func (i *Instance) dynamic(ctx context.Context, path string) (string, error) {
	out, err := i.api.GetDynamicData(ctx, &imds.GetDynamicDataInput{Path: path})
	if err != nil {
		return "", fmt.Errorf("instance metadata %s: %w", path, err)
	}
	return text(out.Content)
}

func text(r io.ReadCloser) (string, error) {
	b, err := io.ReadAll(io.LimitReader(r, answerLimit))
	return strings.TrimSpace(string(b)), errors.Join(err, r.Close())
}

// absent reports whether the service answered that there is no such value.
func absent(err error) bool {
	r, ok := errors.AsType[*smithyhttp.ResponseError](err)
	return ok && r.HTTPStatusCode() == http.StatusNotFound
}
