package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cmd/berth/internal/operator"
)

// Options are what "berth up" can be told.
// For the first three "" means as before, or the default.
type Options struct {
	Listen     string // address of the cluster's API
	Region     string // the region that the cluster calls itself
	Cluster    string // name of the ECS cluster this host registers in
	Containerd string // address of a socket, "private", or "" for what there is
	Sample     string // path of the sample's task definition; "" for no sample
	Image      string // path of the sample's image archive
}

// Defaults of Options.
const (
	DefaultListen  = "127.0.0.1:7700"
	DefaultRegion  = "us-east-1"
	DefaultCluster = "default"
	Private        = "private"
	// SystemSocket is where a containerd of the host's own listens.
	SystemSocket = "/run/containerd/containerd.sock"
)

// Report is what "berth up" brought about.
type Report struct {
	URL        string        `json:"url"`
	Region     string        `json:"region"`
	Cluster    string        `json:"cluster"`
	Instance   string        `json:"containerInstanceArn"`
	Containerd string        `json:"containerd"`
	Private    bool          `json:"privateContainerd"`
	Task       string        `json:"taskArn,omitempty"`
	Sample     string        `json:"sampleUrl,omitempty"`
	Took       time.Duration `json:"tookNanoseconds"`
}

// How long each part may take to get ready.
const (
	containerdPatience = 30 * time.Second
	clusterPatience    = 30 * time.Second
	agentPatience      = 60 * time.Second
	taskPatience       = 2 * time.Minute
	answerPatience     = 20 * time.Second
)

// Up starts what does not run yet and returns when everything works.
func (s *System) Up(ctx context.Context, o Options) (*Report, error) {
	begin := time.Now()
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, dir := range []string{s.Layout.Run(), s.Layout.Lib(), s.Layout.Log()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, err
		}
	}
	before, err := s.Layout.ReadSystem()
	if err != nil && !errors.Is(err, layout.ErrNotUp) {
		return nil, err
	}
	o.Listen = cmp.Or(o.Listen, strings.TrimPrefix(before.URL, "http://"), DefaultListen)
	// Data of an earlier run, which "berth down" keeps, is of one region for good.
	kept, err := operator.Region(s.Layout)
	if err != nil {
		return nil, err
	}
	o.Region = cmp.Or(o.Region, before.Region, kept, DefaultRegion)
	o.Cluster = cmp.Or(o.Cluster, before.Cluster, DefaultCluster)
	now := layout.System{URL: "http://" + o.Listen, Region: o.Region, Cluster: o.Cluster}
	if err := s.sameAsBefore(before, now); err != nil {
		return nil, err
	}
	if err := s.upContainerd(ctx, o, before, &now); err != nil {
		return nil, err
	}
	if err := s.Layout.WriteSystem(now); err != nil {
		return nil, err
	}
	api, err := s.upCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	state, err := s.upAgent(ctx, o, now, api)
	if err != nil {
		return nil, err
	}
	r := &Report{
		URL: api.URL, Region: api.Region, Cluster: o.Cluster, Instance: state.InstanceARN,
		Containerd: now.Containerd, Private: now.Private,
	}
	if o.Sample != "" {
		if err := s.upSample(ctx, o, now, api, r); err != nil {
			return nil, err
		}
	}
	r.Took = time.Since(begin)
	return r, nil
}

// sameAsBefore refuses options that a running system was not started with.
func (s *System) sameAsBefore(before, now layout.System) error {
	proc, err := s.Program(Cluster).Running()
	if err != nil || proc == nil {
		return err
	}
	if before.URL != now.URL || before.Region != now.Region || before.Cluster != now.Cluster {
		return fmt.Errorf("Berth is up already, at %s in region %s and cluster %s; to change that run: berth down", before.URL, before.Region, before.Cluster) //nolint:staticcheck // Berth is a name
	}
	return nil
}

// upContainerd finds a containerd or starts our own.
func (s *System) upContainerd(ctx context.Context, o Options, before layout.System, now *layout.System) error {
	step := s.Screen.Begin(Containerd, "looking for a containerd")
	address, version, err := s.findContainerd(ctx, o, before)
	if err != nil {
		step.Fail()
		return err
	}
	if address != "" {
		now.Containerd = address
		step.Done("%s, the host's own, %s", version, address)
		return nil
	}
	now.Containerd, now.Private = s.Layout.ContainerdSocket(), true
	step.Say("starting our own")
	p := s.Program(Containerd)
	proc, err := p.Running()
	if err == nil && proc == nil {
		_, err = p.Start([]string{
			filepath.Join(s.Bin, "berth"), "containerd", "--containerd-root", s.Layout.ContainerdRoot(),
			"--containerd-state", s.Layout.ContainerdState(), "--address", now.Containerd,
		}, environment("PATH="+s.Bin+":"+os.Getenv("PATH")))
	}
	if err == nil {
		err = s.started(ctx, Containerd, containerdPatience, func(ctx context.Context) (bool, error) {
			version, err = s.ContainerdVersion(ctx, now.Containerd)
			return err == nil, err
		})
	}
	if err != nil {
		step.Fail()
		return err
	}
	step.Done("%s, Berth's own, %s", version, now.Containerd)
	return nil
}

// findContainerd returns the containerd to use that is not our own, or "".
func (s *System) findContainerd(ctx context.Context, o Options, before layout.System) (address, version string, err error) {
	ours, err := s.Program(Containerd).Running()
	if err != nil {
		return "", "", err
	}
	switch {
	case o.Containerd == Private, o.Containerd == "" && ours != nil:
		return "", "", nil
	case o.Containerd != "":
		version, err := s.ContainerdVersion(ctx, o.Containerd)
		if err != nil {
			return "", "", fmt.Errorf("the containerd at %s does not answer: %w; start it, or leave --containerd and BERTH_CONTAINERD_ADDRESS out", o.Containerd, err)
		}
		return o.Containerd, version, nil
	case s.Layout.Root != "" && before.Containerd == "": // a second system beside the host's
		return "", "", nil
	}
	if version, err := s.ContainerdVersion(ctx, SystemSocket); err == nil {
		return SystemSocket, version, nil
	}
	return "", "", nil // nobody there, which is what our own is for
}

// upCluster starts the cluster and makes sure that the ECS cluster exists.
func (s *System) upCluster(ctx context.Context, o Options) (*operator.Client, error) {
	step := s.Screen.Begin(Cluster, "starting")
	api, err := s.startCluster(ctx, o)
	if err == nil {
		_, err = api.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: &o.Cluster})
		err = api.Explain(err)
	}
	if err != nil {
		step.Fail()
		return nil, err
	}
	step.Done("%s", api.URL)
	return api, nil
}

func (s *System) startCluster(ctx context.Context, o Options) (*operator.Client, error) {
	p := s.Program(Cluster)
	proc, err := p.Running()
	if err != nil {
		return nil, err
	}
	if proc == nil {
		if err := portFree(o.Listen); err != nil {
			return nil, err
		}
		argv := []string{
			filepath.Join(s.Bin, "berth"), "cluster", "--dir", s.Layout.ClusterDir(), "--listen", o.Listen, "--region", o.Region,
		}
		if _, err := p.Start(argv, environment()); err != nil {
			return nil, err
		}
	}
	var api *operator.Client
	err = s.started(ctx, Cluster, clusterPatience, func(ctx context.Context) (bool, error) {
		if err := dial(ctx, o.Listen); err != nil {
			return false, err
		}
		var err error
		if api, err = operator.Open(s.Layout); err != nil {
			return false, err
		}
		_, err = api.ListClusters(ctx, &ecs.ListClustersInput{})
		return err == nil, api.Explain(err)
	})
	return api, err
}

// portFree explains who has the address when it is taken.
func portFree(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		who := Listener(address)
		if who == "" {
			return fmt.Errorf("the API cannot listen on %s: %w; choose another address with --listen", address, err)
		}
		return fmt.Errorf("the API's address %s is taken by %s; stop that, or choose another with --listen", address, who)
	}
	return l.Close()
}

func dial(ctx context.Context, address string) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// upAgent starts the agent with a key of its own and waits until it is connected.
func (s *System) upAgent(ctx context.Context, o Options, now layout.System, api *operator.Client) (*AgentState, error) {
	step := s.Screen.Begin(Agent, "starting")
	state, err := s.startAgent(ctx, o, now, api)
	if err != nil {
		step.Fail()
		return nil, err
	}
	step.Done("registered in cluster %s as %s", o.Cluster, operator.Tail(&state.InstanceARN))
	return state, nil
}

func (s *System) startAgent(ctx context.Context, o Options, now layout.System, api *operator.Client) (*AgentState, error) {
	p := s.Program(Agent)
	proc, err := p.Running()
	if err != nil {
		return nil, err
	}
	if proc == nil {
		if err := s.agentKey(ctx, api); err != nil {
			return nil, err
		}
		path, err := s.program("berth-agent")
		if err != nil {
			return nil, err
		}
		if _, err := p.Start([]string{path}, environment(s.agentEnv(o, now, api)...)); err != nil {
			return nil, err
		}
	}
	var state *AgentState
	err = s.started(ctx, Agent, agentPatience, func(ctx context.Context) (bool, error) {
		var err error
		if state, err = s.AgentState(ctx); err != nil {
			return false, err
		}
		if !state.Connected {
			return false, errors.New("it is not connected to the cluster")
		}
		return true, nil
	})
	return state, err
}

// agentEnv are the settings of the agent (docs/settings.md) that follow from where
// things lie.
func (s *System) agentEnv(o Options, now layout.System, api *operator.Client) []string {
	return []string{
		"ECS_CLUSTER=" + o.Cluster,
		"ECS_BACKEND_HOST=" + api.URL,
		"AWS_DEFAULT_REGION=" + api.Region,
		"ECS_EXTERNAL=true",
		"BERTH_KEY_FILE=" + s.Layout.AgentKey(),
		"BERTH_STATE_DIR=" + s.Layout.AgentDir(),
		"BERTH_RUN_DIR=" + s.Layout.Run(),
		"BERTH_LOG_DIR=" + s.Layout.Log(),
		"BERTH_VOLUME_DIR=" + s.Layout.Lib("volumes"),
		"BERTH_DEBUG_SOCKET=" + s.Layout.AgentSocket(),
		"BERTH_CONTAINERD_ADDRESS=" + now.Containerd,
		"BERTH_CONTAINERD_NAMESPACE=" + s.Layout.Namespace(now.Containerd),
		"BERTH_CGROUP=" + s.Layout.Cgroup(),
		"BERTH_BRIDGE=" + s.bridge(),
		"BERTH_BRIDGE_SUBNET=" + s.Layout.Subnet(),
	}
}

// agentKey gets the agent a key of its own, unless it has one of this cluster. The
// file says, in a comment, which cluster the key is of.
func (s *System) agentKey(ctx context.Context, api *operator.Client) error {
	mark := "# Key of this host's agent, made by the cluster whose operator key is " + api.Key.AccessKeyID + "\n"
	have, err := os.ReadFile(s.Layout.AgentKey())
	if err == nil && strings.HasPrefix(string(have), mark) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key, err := api.InstanceKey(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.Layout.AgentKey()), 0o700); err != nil {
		return err
	}
	text := mark + "[default]\naws_access_key_id = " + key.AccessKeyID + "\naws_secret_access_key = " + key.Secret.Reveal() + "\n"
	return layout.WriteFile(s.Layout.AgentKey(), []byte(text))
}

// upSample makes sure that one task of the sample runs and answers.
func (s *System) upSample(ctx context.Context, o Options, now layout.System, api *operator.Client, r *Report) error {
	step := s.Screen.Begin("sample", "preparing")
	in, err := operator.ReadDefinition(o.Sample)
	if err != nil {
		step.Fail()
		return err
	}
	t, err := s.runningTask(ctx, api, o.Cluster, aws.ToString(in.Family))
	if err == nil && t == nil {
		step.Say("loading its image")
		if _, err = s.LoadImage(ctx, now.Containerd, o.Image); err == nil {
			step.Say("starting")
			t, err = s.runSample(ctx, api, o.Cluster, in)
		}
	}
	if err == nil {
		t, err = s.waitRunning(ctx, api, o.Cluster, t, func(status string) { step.Say("the task is %s", status) })
	}
	if err == nil {
		r.Task = aws.ToString(t.TaskArn)
		if r.Sample = sampleURL(t); r.Sample != "" {
			step.Say("waiting for %s", r.Sample)
			err = answers(ctx, r.Sample)
		}
	}
	if err != nil {
		step.Fail()
		return err
	}
	step.Done("task %s of %s answers on %s", operator.Short(t.TaskArn), operator.Tail(t.TaskDefinitionArn), r.Sample)
	return nil
}

func (s *System) runningTask(ctx context.Context, api *operator.Client, cluster, family string) (*types.Task, error) {
	tasks, err := api.Tasks(ctx, cluster, types.DesiredStatusRunning)
	if err != nil {
		return nil, err
	}
	for i := range tasks {
		if of, _, _ := strings.Cut(operator.Tail(tasks[i].TaskDefinitionArn), ":"); of == family {
			return &tasks[i], nil
		}
	}
	return nil, nil
}

func (s *System) runSample(ctx context.Context, api *operator.Client, cluster string, in *ecs.RegisterTaskDefinitionInput) (*types.Task, error) {
	d, _, err := api.Register(ctx, in)
	if err != nil {
		return nil, err
	}
	return api.Run(ctx, &ecs.RunTaskInput{
		Cluster: &cluster, TaskDefinition: d.TaskDefinitionArn, StartedBy: aws.String("berth up"),
	})
}

func (s *System) waitRunning(ctx context.Context, api *operator.Client, cluster string, t *types.Task, say func(string)) (*types.Task, error) {
	id := aws.ToString(t.TaskArn)
	err := until(ctx, taskPatience, func(ctx context.Context) (bool, error) {
		found, err := api.Describe(ctx, cluster, id)
		if err != nil {
			return false, err
		}
		if len(found) == 0 {
			return false, fmt.Errorf("task %s is no longer known to the cluster", id)
		}
		t = &found[0]
		say(aws.ToString(t.LastStatus))
		switch aws.ToString(t.LastStatus) {
		case "RUNNING":
			return true, nil
		case "STOPPED":
			return false, fmt.Errorf("the sample task stopped: %s; see: berth events %s", operator.WhyStopped(t), operator.Short(t.TaskArn))
		}
		return false, nil
	})
	if errors.Is(err, errTimeout) {
		err = fmt.Errorf("the sample task is %s after %v; see: berth events %s", aws.ToString(t.LastStatus), taskPatience, operator.Short(t.TaskArn))
	}
	return t, err
}

// sampleURL is where the first published TCP port of a task is.
func sampleURL(t *types.Task) string {
	for _, c := range t.Containers {
		for _, b := range c.NetworkBindings {
			if b.Protocol == types.TransportProtocolTcp {
				return fmt.Sprintf("http://127.0.0.1:%d", aws.ToInt32(b.HostPort))
			}
		}
	}
	return ""
}

// answers waits until an HTTP server answers at url.
func answers(ctx context.Context, url string) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	err := until(ctx, answerPatience, func(ctx context.Context) (bool, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if last = err; err != nil {
			return false, nil // not yet
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil && resp.StatusCode == http.StatusOK, nil
	})
	if errors.Is(err, errTimeout) {
		return fmt.Errorf("the sample task runs but %s does not answer: %w; see: berth logs my-task", url, last)
	}
	return err
}
