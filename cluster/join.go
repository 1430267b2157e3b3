package cluster

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/join"
)

const (
	tokenLife     = time.Hour // where nobody says
	maxTokenLife  = 30 * 24 * time.Hour
	maxTokens     = 1000 // that are remembered at a time
	maxTokenUses  = 1000
	maxHostName   = 64 // bytes of a host's name that are kept
	tokenKept     = 24 * time.Hour
	defaultMember = "default"
)

// joinSecret is the secret of a join token.
func (k *keyring) joinSecret(id string) string {
	h := hmac.New(sha256.New, k.root)
	h.Write([]byte("join token " + id))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// JoinToken makes a token with which hosts become members.
func (s *Server) JoinToken(ctx context.Context, q join.TokenRequest) (join.TokenAnswer, error) {
	life := cmp.Or(time.Duration(q.Seconds)*time.Second, tokenLife)
	uses := cmp.Or(q.Uses, 1)
	switch {
	case q.Seconds < 0 || q.Seconds > int64(maxTokenLife/time.Second):
		return join.TokenAnswer{}, badRequest("A join token lives for at most %d seconds.", int64(maxTokenLife/time.Second))
	case uses < 1 || uses > maxTokenUses:
		return join.TokenAnswer{}, badRequest("A join token is for 1 to %d hosts.", maxTokenUses)
	}
	var random [10]byte
	if _, err := rand.Read(random[:]); err != nil {
		return join.TokenAnswer{}, fmt.Errorf("make a token's id: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	t := &store.JoinToken{
		ID: base64.RawURLEncoding.EncodeToString(random[:]), Cluster: cmp.Or(q.Cluster, defaultMember),
		CreatedAt: now, ExpiresAt: now.Add(life), Left: uses,
	}
	err := s.store.Update(ctx, func(tx *store.Tx) error {
		if c, ok := store.Get(tx, store.Clusters, t.Cluster); (!ok || c.DeletedAt != nil) && t.Cluster != defaultMember {
			return badRequest("There is no cluster %q; make it first, with aws ecs create-cluster.", t.Cluster)
		}
		known := 0
		store.Scan(store.Peek(tx), store.JoinTokens, "", func(string, *store.JoinToken) bool { known++; return true })
		if known >= maxTokens {
			return badRequest("There are %d join tokens; revoke some first.", known)
		}
		store.Put(tx, store.JoinTokens, t.ID, t)
		return nil
	})
	if err != nil {
		return join.TokenAnswer{}, err
	}
	token := join.Token{Endpoint: s.url, Fingerprint: s.Fingerprint(), ID: t.ID, Secret: s.keys.joinSecret(t.ID)}
	return join.TokenAnswer{TokenInfo: tokenInfo(t), Token: token.Encode()}, nil
}

func tokenInfo(t *store.JoinToken) join.TokenInfo {
	return join.TokenInfo{ID: t.ID, Cluster: t.Cluster, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, Left: t.Left, Hosts: t.Hosts}
}

func badRequest(format string, args ...any) error {
	return &api.Error{Code: "InvalidParameterException", Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

// errToken is what everybody is told who does not know a token's secret.
var errToken = &api.Error{Code: "AccessDeniedException", Message: "The join token is not of this cluster, or was revoked or forgotten.", Status: http.StatusForbidden}

// redeem exchanges a token's secret for a key of a new container instance.
func (s *Server) redeem(ctx context.Context, q join.Request) (join.Answer, error) {
	if subtle.ConstantTimeCompare([]byte(q.Secret), []byte(s.keys.joinSecret(q.ID))) != 1 {
		return join.Answer{}, errToken
	}
	id, err := newKeyID()
	if err != nil {
		return join.Answer{}, err
	}
	now := time.Now().UTC()
	var cluster string
	err = s.store.Update(ctx, func(tx *store.Tx) error {
		old, ok := store.Get(tx, store.JoinTokens, q.ID)
		refused := *errToken
		switch {
		case !ok:
			return errToken
		case now.After(old.ExpiresAt):
			refused.Message = "The join token has expired; make another with: berth token create"
			return &refused
		case old.Left <= 0:
			refused.Message = "The join token has been used; make another with: berth token create"
			return &refused
		}
		t := *old
		t.Left--
		t.Hosts = append(slices.Clone(t.Hosts), q.Host[:min(len(q.Host), maxHostName)])
		cluster = t.Cluster
		store.Put(tx, store.JoinTokens, t.ID, &t)
		store.Put(tx, store.Keys, id, &store.AccessKey{ID: id, Kind: store.KeyInstance, CreatedAt: now})
		return nil
	})
	if err != nil {
		return join.Answer{}, err
	}
	s.log.Info("a host joined", "host", q.Host[:min(len(q.Host), maxHostName)], "cluster", cluster, "key", id)
	return join.Answer{AccessKeyID: id, SecretAccessKey: s.keys.secret(id), Region: s.config.Region, Cluster: cluster}, nil
}

// sweepTokens forgets tokens some time after their end.
func (s *Server) sweepTokens(ctx context.Context) error {
	before := time.Now().Add(-tokenKept)
	return s.store.Update(ctx, func(tx *store.Tx) error {
		var old []string
		store.Scan(store.Peek(tx), store.JoinTokens, "", func(id string, t *store.JoinToken) bool {
			if t.ExpiresAt.Before(before) {
				old = append(old, id)
			}
			return true
		})
		for _, id := range old {
			store.Delete(tx, store.JoinTokens, id)
		}
		return nil
	})
}

// successor makes a key that takes the place of an instance's key. The old one is good
// until the new one is confirmed, so that an answer that is lost locks nobody out; what an
// earlier try left is removed.
func (s *Server) successor(ctx context.Context, by api.Caller) (Key, error) {
	id, err := newKeyID()
	if err != nil {
		return Key{}, err
	}
	return s.keys.key(id), s.only(ctx, by, &store.AccessKey{ID: id, Kind: store.KeyInstance, InstanceARN: by.InstanceARN, CreatedAt: time.Now().UTC()})
}

// only removes all keys of an instance but the caller's, and adds one.
func (s *Server) only(ctx context.Context, by api.Caller, next *store.AccessKey) error {
	return s.store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get(tx, store.Keys, by.AccessKeyID); !ok {
			return &api.Error{Code: "UnrecognizedClientException", Message: "The key is no more.", Status: http.StatusBadRequest}
		}
		var others []string
		store.Lookup(tx, store.KeysByInstance, by.InstanceARN, func(_ string, k *store.AccessKey) bool {
			if k.ID != by.AccessKeyID {
				others = append(others, k.ID)
			}
			return true
		})
		for _, id := range others {
			store.Delete(tx, store.Keys, id)
		}
		if next != nil {
			store.Put(tx, store.Keys, next.ID, next)
		}
		return nil
	})
}

// signedCall is an operation of Berth's own on a signed request.
type signedCall struct {
	name string // in the record of calls
	kind api.CallerKind
	do   func(ctx context.Context, r *http.Request, by api.Caller, body []byte) (out any, err error)
	// record is what of the answer may be recorded; nil records nothing.
	record func(out any) any
}

func (s *Server) serve(c signedCall) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxKeyRequest))
		if err != nil {
			(&api.Error{Code: "SerializationException", Message: "The request body could not be read.", Status: http.StatusBadRequest}).Write(w)
			return
		}
		r, signer := api.WithSigner(r)
		start := time.Now()
		caller, err := s.api.Authenticate(r, body, "ecs")
		if err == nil && caller.Kind != c.kind {
			who := map[api.CallerKind]string{api.Operator: "the operator's key", api.Instance: "the key of a container instance"}[c.kind]
			err = &api.Error{Code: "AccessDeniedException", Message: "Only " + who + " may call " + c.name + ".", Status: http.StatusForbidden}
		}
		var out, record any
		if err == nil {
			out, err = c.do(r.Context(), r, caller, body)
		}
		if err == nil && c.record != nil {
			record = c.record(out)
		}
		s.called(signer.Call(r, start, c.name, err, record))
		if err != nil {
			s.refuse(w, c.name, err)
			return
		}
		s.answer(w, http.StatusOK, out)
	}
}

func keyID(out any) any {
	k, _ := out.(Key)
	return &struct{ AccessKeyID string }{k.AccessKeyID}
}

// joinRoutes adds what makes hosts members, and renews their keys.
func (s *Server) joinRoutes(mux *http.ServeMux) {
	type ctx = context.Context
	mux.HandleFunc("POST /berth/v1/instance-keys", s.serve(signedCall{"CreateInstanceKey", api.Operator, func(c ctx, _ *http.Request, _ api.Caller, _ []byte) (any, error) {
		return s.keys.issue(c, s.store, store.KeyInstance)
	}, keyID}))
	mux.HandleFunc("POST "+join.RotatePath, s.serve(signedCall{"RotateInstanceKey", api.Instance, func(c ctx, _ *http.Request, by api.Caller, _ []byte) (any, error) {
		if by.InstanceARN == "" {
			return nil, badRequest("The key has not registered a container instance.")
		}
		return s.successor(c, by)
	}, keyID}))
	mux.HandleFunc("POST "+join.ConfirmPath, s.serve(signedCall{"ConfirmInstanceKey", api.Instance, func(c ctx, _ *http.Request, by api.Caller, _ []byte) (any, error) {
		if by.InstanceARN == "" {
			return struct{}{}, nil
		}
		return struct{}{}, s.only(c, by, nil)
	}, nil}))
	mux.HandleFunc("POST "+join.TokensPath, s.serve(signedCall{"CreateJoinToken", api.Operator, func(c ctx, _ *http.Request, _ api.Caller, body []byte) (any, error) {
		var q join.TokenRequest
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, badRequest("The request is not the JSON of a token request.")
		}
		return s.JoinToken(c, q)
	}, func(out any) any {
		t, _ := out.(join.TokenAnswer)
		return &t.TokenInfo
	}}))
	mux.HandleFunc("GET "+join.TokensPath, s.serve(signedCall{"ListJoinTokens", api.Operator, func(ctx, *http.Request, api.Caller, []byte) (any, error) {
		out := []join.TokenInfo{}
		s.store.View(func(r store.Reader) {
			for _, t := range store.List(r, store.JoinTokens, "") {
				out = append(out, tokenInfo(t))
			}
		})
		slices.SortFunc(out, func(a, b join.TokenInfo) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
		return out, nil
	}, nil}))
	mux.HandleFunc("DELETE "+join.TokensPath+"/{id}", s.serve(signedCall{"RevokeJoinToken", api.Operator, func(c ctx, r *http.Request, _ api.Caller, _ []byte) (any, error) {
		id := r.PathValue("id")
		return struct{}{}, s.store.Update(c, func(tx *store.Tx) error {
			if _, ok := store.Get(tx, store.JoinTokens, id); !ok {
				return badRequest("There is no join token %q.", id)
			}
			store.Delete(tx, store.JoinTokens, id)
			return nil
		})
	}, nil}))
	mux.HandleFunc("POST "+join.RedeemPath, s.serveRedeem)
}

// serveRedeem answers a host that has a token and no key.
func (s *Server) serveRedeem(w http.ResponseWriter, r *http.Request) {
	r, nobody := api.WithSigner(r)
	start := time.Now()
	var q join.Request
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, join.MaxMessage))
	if err == nil {
		err = json.Unmarshal(body, &q)
	}
	var out join.Answer
	if err != nil {
		err = badRequest("The request is not the JSON of a join request.")
	} else {
		out, err = s.redeem(r.Context(), q)
	}
	s.called(nobody.Call(r, start, "RedeemJoinToken", err, &struct{ TokenID, AccessKeyID string }{q.ID[:min(len(q.ID), maxHostName)], out.AccessKeyID}))
	var refused *api.Error
	if errors.As(err, &refused) {
		s.log.Warn("a host may not join", "address", r.RemoteAddr, "err", refused.Message)
	}
	if err != nil {
		s.refuse(w, "join", err)
		return
	}
	s.answer(w, http.StatusOK, out)
}
