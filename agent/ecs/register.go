package ecs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/config"
)

const defaultCluster = "default"

// Delays between tries of a registration (agent protocol, RegisterContainerInstance).
// While the cluster cannot be reached at all, which the reference agent takes for the
// end, tries are cheap for both sides and come sooner.
const (
	registerMin   = 3 * time.Second
	registerMax   = 192 * time.Second
	unreachedMin  = 250 * time.Millisecond
	unreachedMax  = 5 * time.Second
	registerTotal = time.Hour
)

// Registration is what a registration gave.
type Registration struct {
	InstanceARN      string
	AvailabilityZone string
	Cluster          string // as requests name it
}

// Register registers this host, or registers it again under the ARN that it had.
// It keeps trying while the cluster is busy or away, for an hour at most. An error
// that another start cannot cure is a *config.TerminalError.
func (cl *Client) Register(ctx context.Context, savedARN string) (Registration, error) {
	in, err := cl.registration(savedARN)
	if err != nil {
		return Registration{}, config.Terminal(err)
	}
	out, err := cl.registerPatiently(ctx, in)
	if err != nil {
		return Registration{}, verdict(err)
	}
	if out.ContainerInstance == nil || aws.ToString(out.ContainerInstance.ContainerInstanceArn) == "" {
		return Registration{}, errors.New("register: the cluster's answer has no container instance")
	}
	if err := checkAttributes(in.Attributes, out.ContainerInstance.Attributes); err != nil {
		return Registration{}, config.Terminal(err)
	}
	r := Registration{InstanceARN: savedARN, Cluster: cl.Cluster()}
	if r.InstanceARN == "" {
		r.InstanceARN = aws.ToString(out.ContainerInstance.ContainerInstanceArn)
	}
	for _, a := range out.ContainerInstance.Attributes {
		if aws.ToString(a.Name) == "ecs.availability-zone" {
			r.AvailabilityZone = aws.ToString(a.Value)
		}
	}
	return r, nil
}

// registration makes the request (agent protocol, RegisterContainerInstance).
func (cl *Client) registration(savedARN string) (*ecs.RegisterContainerInstanceInput, error) {
	memory := cl.host.MemoryMiB - cl.c.Host.ReservedMemory
	if memory < 0 {
		return nil, fmt.Errorf("ECS_RESERVED_MEMORY is %d MiB and the host has %d", cl.c.Host.ReservedMemory, cl.host.MemoryMiB)
	}
	integer := func(name string, v int64) types.Resource {
		return types.Resource{Name: aws.String(name), Type: aws.String("INTEGER"), IntegerValue: int32(v)}
	}
	in := &ecs.RegisterContainerInstanceInput{
		Cluster:                           aws.String(cl.Cluster()),
		InstanceIdentityDocument:          aws.String(cl.host.IdentityDocument),
		InstanceIdentityDocumentSignature: aws.String(cl.host.IdentitySignature),
		TotalResources: []types.Resource{
			integer("CPU", int64(cl.host.CPUs)*1024), integer("MEMORY", memory),
			portSet("PORTS", cl.c.Host.ReservedPorts), portSet("PORTS_UDP", cl.c.Host.ReservedPortsUDP),
		},
	}
	for _, id := range cl.host.GPUs {
		in.PlatformDevices = append(in.PlatformDevices, types.PlatformDevice{Id: aws.String(id), Type: types.PlatformDeviceTypeGpu})
	}
	if savedARN != "" {
		in.ContainerInstanceArn = aws.String(savedARN)
	}
	for _, a := range Attributes(cl.c, cl.host, savedARN == "") {
		t := types.Attribute{Name: aws.String(a.Name)}
		if a.Value != "" {
			t.Value = aws.String(a.Value)
		}
		in.Attributes = append(in.Attributes, t)
	}
	// Tags of the settings win over those of the host (agent protocol).
	tags := maps.Clone(cl.host.Tags)
	if tags == nil {
		tags = map[string]string{}
	}
	maps.Copy(tags, cl.c.Cluster.Tags)
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(k), Value: aws.String(tags[k])})
	}
	return in, nil
}

func portSet(name string, ports []uint16) types.Resource {
	set := make([]string, 0, len(ports))
	for _, p := range ports {
		set = append(set, strconv.Itoa(int(p)))
	}
	return types.Resource{Name: aws.String(name), Type: aws.String("STRINGSET"), StringSetValue: set}
}

// registerPatiently tries until there is an answer that is not "later". Where no
// cluster is configured and "default" is not there, it is made.
func (cl *Client) registerPatiently(ctx context.Context, in *ecs.RegisterContainerInstanceInput) (*ecs.RegisterContainerInstanceOutput, error) {
	begin := time.Now()
	delays := map[bool]time.Duration{true: registerMin, false: unreachedMin} // by whether there was an answer
	made := false
	for {
		out, err := cl.api.RegisterContainerInstance(ctx, in)
		switch {
		case err == nil:
			return out, nil
		case !made && cl.c.Cluster.Name == "" && noCluster(err):
			made = true
			if err := cl.createDefault(ctx); err != nil {
				return nil, err
			}
			continue
		case !transient(err) || ctx.Err() != nil:
			return nil, err
		}
		answered := code(err) != ""
		delay := delays[answered]
		delays[answered] = min(2*delay, map[bool]time.Duration{true: registerMax, false: unreachedMax}[answered])
		delay += rand.N(delay / 5)
		if time.Since(begin)+delay > registerTotal {
			return nil, fmt.Errorf("gave up after %s: %w", registerTotal, err)
		}
		cl.log.Warn("registration will be tried again", "err", brief(err), "wait", delay.Round(time.Millisecond))
		if err := cl.wait(ctx, delay); err != nil {
			return nil, err
		}
	}
}

func (cl *Client) createDefault(ctx context.Context) error {
	if _, err := cl.api.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: aws.String(defaultCluster)}); err != nil {
		return fmt.Errorf("create cluster %s: %w", defaultCluster, err)
	}
	cl.log.Info("made the cluster", "cluster", defaultCluster)
	return nil
}

func noCluster(err error) bool {
	return code(err) == "ClusterNotFoundException" || strings.Contains(err.Error(), "Cluster not found.")
}

// transient reports whether the same registration may succeed later.
func transient(err error) bool {
	switch code(err) {
	case "ThrottlingException", "ServerException", "LimitExceededException":
		return true
	case "":
		// No answer of the API. Credentials that cannot be had are no reason to wait.
		return !strings.Contains(err.Error(), "get identity")
	default:
		return false
	}
}

// verdict sorts a failed registration by exit code: terminal for what another start
// cannot cure (agent protocol, "Start order", 8).
func verdict(err error) error {
	words := fmt.Errorf("register: %w", brief(err))
	switch code(err) {
	case "InvalidParameterException", "ClientException":
		return config.Terminal(words)
	default:
		return words
	}
}

// checkAttributes refuses an answer that does not have every attribute as it was sent.
func checkAttributes(sent, got []types.Attribute) error {
	have := make(map[string]string, len(got))
	for _, a := range got {
		have[aws.ToString(a.Name)] = aws.ToString(a.Value)
	}
	for _, a := range sent {
		value, ok := have[aws.ToString(a.Name)]
		if !ok || value != aws.ToString(a.Value) {
			return fmt.Errorf("register: Attribute validation failed: the cluster does not have attribute %q as it was sent", aws.ToString(a.Name))
		}
	}
	return nil
}
