package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecr"

	"berth.dev/berth/agent/roles"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/secret"
	"berth.dev/berth/agent/task"
)

// Numbers of the token cache (agent protocol, "Registry authentication").
const (
	maxTokens    = 100
	maxTokenAge  = 12 * time.Hour
	refreshEarly = 30 * time.Minute // and up to as much again, at random
)

// Roles makes the configurations for calls in the name of a task or of the agent.
type Roles interface {
	AsTask(ctx context.Context, t *task.Task, region string) (aws.Config, error)
	AsInstance(ctx context.Context, region string) (aws.Config, error)
	Role(t *task.Task) string
}

// Logins finds the credentials of registries: tokens of ECR, which are kept until
// shortly before they expire, secrets of Secrets Manager, or those of the agent's
// settings. All are held in memory only.
type Logins struct {
	roles  Roles
	static runtime.Auth

	mu     sync.Mutex
	tokens map[tokenKey]*token
}

type tokenKey struct{ role, region, registry, endpoint string }

type token struct {
	mu     sync.Mutex // held while it is fetched
	user   string
	secret task.Secret
	until  time.Time
}

// NewLogins makes a Logins; static is for images that name no credentials and may be nil.
func NewLogins(r Roles, static runtime.Auth) *Logins {
	return &Logins{roles: r, static: static, tokens: map[tokenKey]*token{}}
}

// Auth gives the credentials for a container's image. Those that the definition names go
// to every host that the image is asked of, which are its registry and what the operator
// has set up as its mirrors.
func (l *Logins) Auth(ctx context.Context, t *task.Task, c *task.Container) (runtime.Auth, error) {
	r := c.Registry
	if r == nil {
		return l.forHost(c.Image), nil
	}
	var user string
	var password task.Secret
	var err error
	if r.Secret != "" {
		if user, password, err = l.fromSecret(ctx, t, r); err != nil {
			return nil, task.Failf(task.Unclassified, task.CannotPullContainerAuth, "engine docker private registry credentials: secret %s: %w", r.Secret, err)
		}
	} else if user, password, err = l.fromECR(ctx, t, r); err != nil {
		return nil, task.Failf(task.Unclassified, task.CannotPullECRContainer, "engine ecr credentials: %w", err)
	}
	return func(string) (string, task.Secret, error) { return user, password, nil }, nil
}

// forHost gives the credentials of the settings for the host that is asked, and else for
// the registry that the image is named after, which may be reached under another name.
func (l *Logins) forHost(image string) runtime.Auth {
	if l.static == nil {
		return nil
	}
	return func(asked string) (string, task.Secret, error) {
		user, password, err := l.static(asked)
		if err != nil || !password.IsZero() {
			return user, password, err
		}
		ref, err := runtime.NormalizeRef(image)
		if err != nil {
			return "", task.Secret{}, err
		}
		return l.static(host(ref))
	}
}

// fromSecret reads user name and password from a secret of the form {"username",
// "password"}.
func (l *Logins) fromSecret(ctx context.Context, t *task.Task, r *task.RegistryAuth) (string, task.Secret, error) {
	c, err := l.roles.AsTask(ctx, t, r.Region)
	if err != nil {
		return "", task.Secret{}, err
	}
	v, err := secret.Value(ctx, c, r.Secret)
	if err != nil {
		return "", task.Secret{}, err
	}
	var login struct{ Username, Password string }
	if err := json.Unmarshal([]byte(v.Reveal()), &login); err != nil || login.Username == "" || login.Password == "" {
		return "", task.Secret{}, errors.New(`its value must be {"username": ..., "password": ...} with both not empty`)
	}
	return login.Username, task.NewSecret(login.Password), nil
}

// fromECR gives the token of an ECR registry.
func (l *Logins) fromECR(ctx context.Context, t *task.Task, r *task.RegistryAuth) (string, task.Secret, error) {
	key := tokenKey{region: r.Region, registry: r.RegistryID, endpoint: r.Endpoint}
	var c aws.Config
	var err error
	if r.UseExecutionRole {
		c, err = l.roles.AsTask(ctx, t, r.Region)
		key.role = l.roles.Role(t)
	} else {
		c, err = l.roles.AsInstance(ctx, r.Region)
	}
	if err != nil {
		return "", task.Secret{}, err
	}
	tk := l.token(key)
	tk.mu.Lock() // tasks that start together fetch one token
	defer tk.mu.Unlock()
	if now := time.Now(); now.Before(tk.until) {
		return tk.user, tk.secret, nil
	}
	user, password, expires, err := authorize(ctx, c, r)
	if err != nil {
		return "", task.Secret{}, err
	}
	now := time.Now()
	tk.user, tk.secret, tk.until = user, password, now.Add(maxTokenAge)
	if !expires.IsZero() && expires.Before(tk.until) {
		tk.until = expires
	}
	tk.until = tk.until.Add(-refreshEarly - rand.N(refreshEarly))
	return tk.user, tk.secret, nil
}

func (l *Logins) token(key tokenKey) *token {
	l.mu.Lock()
	defer l.mu.Unlock()
	tk := l.tokens[key]
	if tk == nil {
		if len(l.tokens) >= maxTokens {
			clear(l.tokens)
		}
		tk = &token{}
		l.tokens[key] = tk
	}
	return tk
}

// authorize asks ECR for a token.
func authorize(ctx context.Context, c aws.Config, r *task.RegistryAuth) (user string, password task.Secret, expires time.Time, err error) {
	in := &ecr.GetAuthorizationTokenInput{}
	if r.RegistryID != "" {
		in.RegistryIds = []string{r.RegistryID} //nolint:staticcheck // the registry of another account is asked for by it
	}
	client := ecr.NewFromConfig(c, func(o *ecr.Options) {
		if r.Endpoint != "" {
			endpoint := r.Endpoint
			if !strings.Contains(endpoint, "://") {
				endpoint = "https://" + endpoint
			}
			o.BaseEndpoint = &endpoint
		}
	})
	out, err := client.GetAuthorizationToken(ctx, in)
	if err != nil {
		return "", password, expires, roles.Explain(err, "ecr:GetAuthorizationToken")
	}
	if len(out.AuthorizationData) == 0 {
		return "", password, expires, fmt.Errorf("ECR gave no token for registry %s", r.RegistryID)
	}
	data := out.AuthorizationData[0]
	plain, err := base64.StdEncoding.DecodeString(aws.ToString(data.AuthorizationToken))
	user, word, ok := strings.Cut(string(plain), ":")
	if err != nil || !ok {
		return "", password, expires, errors.New("ECR gave a token that is not base64 of user:password")
	}
	if data.ExpiresAt != nil {
		expires = *data.ExpiresAt
	}
	return user, task.NewSecret(word), expires, nil
}
