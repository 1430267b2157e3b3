package update

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/wire/acs"
)

// installLimit is after what time an installation is taken for dead. One that lives has
// started this process anew long before.
const installLimit = 20 * time.Minute

// fetchTimeout is how long a package may take to arrive (agent protocol,
// StageUpdateMessage).
const fetchTimeout = 15 * time.Minute

// Config is what an Updater is made of.
type Config struct {
	// Enabled is ECS_UPDATES_ENABLED; without it all updates are refused.
	Enabled bool
	// Dir is where packages are kept.
	Dir string
	// Running is the version of this agent.
	Running string
	// Kind is the kind of package that the agent was installed from, deb or rpm, or empty
	// where it was not: what is fetched is then not looked into.
	Kind string

	// Origin is the URL of the cluster that the agent has joined, the only one that
	// packages are fetched from.
	Origin      func(ctx context.Context) (string, error)
	Client      *http.Client
	Credentials aws.CredentialsProvider
	Region      string

	// Install begins the installation of what plan says. It returns when that goes on
	// without this process.
	Install func(ctx context.Context, p Plan) error
	Log     *slog.Logger
}

// Updater answers the update messages of the cluster.
type Updater struct {
	c Config

	mu     sync.Mutex
	p      progress
	began  time.Time          // of the installation
	from   sender             // of the last StageUpdateMessage, who gets the answer
	cancel context.CancelFunc // of the fetch that goes on
	work   sync.WaitGroup
}

// New makes an updater.
func New(c Config) *Updater { return &Updater{c: c, cancel: func() {}} }

// Stage fetches an update, and answers when it is there.
func (u *Updater) Stage(ctx context.Context, m *acs.StageUpdateMessage, r acs.Responder) error {
	from := sender{m.ClusterARN, m.ContainerInstanceARN, r}
	if m.MessageID == "" {
		return errors.New("update message without messageId")
	}
	if !u.c.Enabled {
		return from.send(ctx, []answer{{m.MessageID, reasonDisabled}})
	}
	u.mu.Lock()
	u.expire()
	next, answers, fetch := u.p.stage(m.MessageID, m.UpdateInfo)
	u.p, u.from = next, from
	if fetch {
		u.cancel() // of another, which has been answered for
		u.begin(ctx, *m.UpdateInfo)
	}
	u.mu.Unlock()
	return from.send(ctx, answers)
}

// begin fetches in the background. The fetch outlives the session, whose end is no
// reason to fetch anew; the answer goes to the session that asked last.
func (u *Updater) begin(ctx context.Context, info acs.UpdateInfo) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	u.cancel = cancel
	u.c.Log.Info("an update is fetched", "location", info.Location)
	u.work.Go(func() {
		defer cancel()
		began := time.Now()
		err := u.fetch(ctx, info)
		u.mu.Lock()
		next, answers := u.p.fetched(info.Signature, err)
		u.p = next
		from := u.from
		u.mu.Unlock()
		if len(answers) == 0 {
			return
		}
		if err != nil {
			u.c.Log.Warn("an update could not be fetched", "location", info.Location, "err", err)
		} else {
			u.c.Log.Info("an update is ready to be installed", "location", info.Location, "dur", time.Since(began))
		}
		if err := from.send(ctx, answers); err != nil {
			// The cluster asks again over the next session.
			u.c.Log.Info("the cluster could not be told of the update", "err", err)
		}
	})
}

// Perform installs what was fetched.
func (u *Updater) Perform(ctx context.Context, m *acs.PerformUpdateMessage, r acs.Responder) error {
	from := sender{m.ClusterARN, m.ContainerInstanceARN, r}
	if m.MessageID == "" {
		return errors.New("update message without messageId")
	}
	if !u.c.Enabled {
		return from.send(ctx, []answer{{m.MessageID, reasonDisabled}})
	}
	u.mu.Lock()
	u.expire()
	next, answers, install := u.p.perform(m.MessageID, m.UpdateInfo)
	u.p = next
	if install {
		u.began = time.Now()
	}
	u.mu.Unlock()
	if !install {
		return from.send(ctx, answers)
	}
	plan, err := readPlan(u.c.Dir)
	if err == nil {
		err = plan.whole(u.c.Dir)
	}
	if err == nil {
		u.c.Log.Info("an update is installed", "version", plan.Version)
		err = u.c.Install(ctx, plan)
	}
	u.mu.Lock()
	u.p, answers = u.p.performed(m.MessageID, err)
	u.mu.Unlock()
	return errors.Join(err, from.send(ctx, answers))
}

// expire forgets an installation that has come to nothing.
func (u *Updater) expire() {
	if u.p.phase == performing && time.Since(u.began) > installLimit {
		u.p = progress{}
	}
}

// Close ends a fetch and waits for it.
func (u *Updater) Close() {
	u.mu.Lock()
	u.cancel()
	u.mu.Unlock()
	u.work.Wait()
}

// sender answers the sender of a message.
type sender struct {
	cluster, instance string
	r                 acs.Responder
}

func (s sender) send(ctx context.Context, answers []answer) error {
	var errs []error
	for _, a := range answers {
		var m acs.Message = &acs.AckRequest{Cluster: s.cluster, ContainerInstance: s.instance, MessageID: a.message}
		if a.reason != "" {
			m = &acs.NackRequest{Cluster: s.cluster, ContainerInstance: s.instance, MessageID: a.message, Reason: a.reason}
		}
		errs = append(errs, s.r.Send(ctx, m))
	}
	return errors.Join(errs...)
}
