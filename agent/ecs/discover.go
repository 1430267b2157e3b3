package ecs

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
)

// Limits of DiscoverPollEndpoint (agent protocol, DiscoverPollEndpoint).
const (
	endpointAge     = 12 * time.Hour
	discoverTimeout = 126 * time.Second
)

type endpoint struct {
	acs, tcs string
	at       time.Time
}

// Endpoint is the URL of the agent communication service for a container instance. An
// answer is used for 12 hours, and longer when a new one cannot be had.
func (cl *Client) Endpoint(ctx context.Context, instanceARN string) (string, error) {
	e, err := cl.discover(ctx, instanceARN)
	if err == nil && e.acs == "" {
		err = errors.New("discover: the cluster names no endpoint for ACS")
	}
	return e.acs, err
}

// Telemetry is the URL of the telemetry service.
func (cl *Client) Telemetry(ctx context.Context, instanceARN string) (string, error) {
	e, err := cl.discover(ctx, instanceARN)
	if err == nil && e.tcs == "" {
		err = errors.New("discover: the cluster names no endpoint for TCS")
	}
	return e.tcs, err
}

func (cl *Client) discover(ctx context.Context, instanceARN string) (endpoint, error) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	known, ok := cl.endpoint[instanceARN]
	if ok && time.Since(known.at) < endpointAge {
		return known, nil
	}
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	out, err := cl.api.DiscoverPollEndpoint(ctx, &ecs.DiscoverPollEndpointInput{
		Cluster: aws.String(cl.Cluster()), ContainerInstance: aws.String(instanceARN),
	})
	if err != nil {
		if ok {
			cl.log.Warn("endpoints could not be asked for; the old ones are used", "err", brief(err), "age", time.Since(known.at).Round(time.Minute))
			return known, nil
		}
		return endpoint{}, classed("discover", err)
	}
	known = endpoint{acs: aws.ToString(out.Endpoint), tcs: aws.ToString(out.TelemetryEndpoint), at: time.Now()}
	cl.endpoint[instanceARN] = known
	return known, nil
}
