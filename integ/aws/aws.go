// Package aws is a stand-in for the AWS services that agents call, for tests: SSM
// Parameter Store, Secrets Manager, S3 and ECR, with room for more. It serves all of
// them on one address of loopback, to which the standard AWS_ENDPOINT_URL settings of
// the SDKs lead. Signatures are verified, so a client that signs with the wrong
// credentials, or for the wrong service, is refused as at AWS.
//
// A service with JSON bodies adds its operations with Handle; errors of type *Fault
// become the service's error answers. Everything that is asked is recorded.
package aws

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth.dev/berth/cluster/sigv4"
)

// Account is the number of the account that everything belongs to.
const Account = "123456789012"

// maxBody bounds a request; PutLogEvents takes up to 1 MiB, so this is plenty.
const maxBody = 8 << 20

// Key is an access key that the services know.
type Key struct {
	ID, Secret, Token string // with a Token, requests must carry it
	Role              string // name of the role, for the texts of refusals
	// Denied lists the actions that the role may not do, such as "ssm:GetParameters".
	Denied []string
}

// Call is one request of a known caller.
type Call struct {
	Service   string // as in the credential scope: ssm, secretsmanager, s3, ecr, logs
	Operation string // such as GetParameters
	Region    string
	KeyID     string
	Body      []byte
}

// Fault is an answer that is no success.
type Fault struct {
	Status  int // 0 means 400
	Code    string
	Message string
}

func (f *Fault) Error() string { return f.Code + ": " + f.Message }

// Faultf is a Fault of status 400.
func Faultf(code, format string, args ...any) *Fault {
	return &Fault{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Operation answers one call with a value to encode as JSON, or with raw JSON.
type Operation func(c Call) (any, error)

// Server is the services.
type Server struct {
	URL string

	srv      *httptest.Server
	verifier *sigv4.Verifier

	mu         sync.Mutex
	keys       map[string]Key
	operations map[string]target
	calls      []Call
	before     func(Call) error
	parameters map[string]string // by region and name
	secrets    map[string]*secret
	objects    map[string][]byte // by bucket/key
	buckets    map[string]string // region by name
	registries map[string]Token  // by account
	groups     logGroups
}

type target struct {
	service, operation string
	run                Operation
}

// Start serves the services until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		keys: map[string]Key{}, operations: map[string]target{}, parameters: map[string]string{},
		secrets: map[string]*secret{}, objects: map[string][]byte{}, buckets: map[string]string{}, registries: map[string]Token{},
	}
	s.verifier = &sigv4.Verifier{Secret: func(id string) (string, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		k, ok := s.keys[id]
		return k.Secret, ok
	}}
	s.ssm()
	s.secretsManager()
	s.ecr()
	s.logs()
	s.srv = httptest.NewServer(http.HandlerFunc(s.serve))
	s.URL = s.srv.URL
	t.Cleanup(s.srv.Close)
	return s
}

// Environ is the settings that lead an SDK here.
func (s *Server) Environ() []string { return []string{"AWS_ENDPOINT_URL=" + s.URL} }

// Allow makes a key known, or replaces it.
func (s *Server) Allow(k Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[k.ID] = k
}

// Forget takes a key away: it has expired.
func (s *Server) Forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, id)
}

// Handle serves an operation of a service with JSON bodies. target is the value of the
// header X-Amz-Target, such as "Logs_20140328.PutLogEvents"; service is the name in
// credential scopes and actions, such as "logs".
func (s *Server) Handle(service, targetName string, run Operation) {
	_, operation, _ := strings.Cut(targetName, ".")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.operations[targetName] = target{service, operation, run}
}

// SetBefore has every call seen first; an error is the answer to it.
func (s *Server) SetBefore(f func(Call) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

// Calls is what was asked so far of a service, or of all with "".
func (s *Server) Calls(service string) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.calls), func(c Call) bool { return service != "" && c.Service != service })
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if r.Header.Get("X-Amz-Target") == "" {
		s.serveS3(w, r, body)
		return
	}
	out, err := s.json(r, body)
	if err != nil {
		writeFault(w, err)
		return
	}
	data, raw := out.(json.RawMessage)
	if !raw {
		if data, err = json.Marshal(out); err != nil {
			writeFault(w, err)
			return
		}
	}
	answer(w, http.StatusOK, data)
}

func (s *Server) json(r *http.Request, body []byte) (any, error) {
	s.mu.Lock()
	op, ok := s.operations[r.Header.Get("X-Amz-Target")]
	s.mu.Unlock()
	if !ok {
		return nil, Faultf("UnknownOperationException", "no operation %q here", r.Header.Get("X-Amz-Target"))
	}
	c := Call{Service: op.service, Operation: op.operation, Body: body}
	if err := s.admit(r, &c); err != nil {
		return nil, err
	}
	return op.run(c)
}

// admit checks who calls and whether it may, and records the call.
func (s *Server) admit(r *http.Request, c *Call) error {
	id, err := s.verifier.Verify(r, c.Body, c.Service)
	if err != nil {
		return err
	}
	c.KeyID = id
	c.Region, _ = sigv4.Scope(r)
	s.mu.Lock()
	k, before := s.keys[id], s.before
	s.calls = append(s.calls, *c)
	s.mu.Unlock()
	if k.Token != r.Header.Get("X-Amz-Security-Token") {
		return Faultf("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if action := c.Service + ":" + c.Operation; slices.Contains(k.Denied, action) {
		return Faultf("AccessDeniedException", "User: arn:aws:sts::%s:assumed-role/%s/berth is not authorized to perform: %s because no identity-based policy allows the %s action", Account, k.Role, action, action)
	}
	if before != nil {
		return before(*c)
	}
	return nil
}

// decode reads the input of a call.
func decode(c Call, into any) error {
	if err := json.Unmarshal(c.Body, into); err != nil {
		return Faultf("SerializationException", "%v", err)
	}
	return nil
}

func writeFault(w http.ResponseWriter, err error) {
	f := fault(err)
	data, err := json.Marshal(map[string]string{"__type": f.Code, "message": f.Message})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, f.Status, data)
}

func fault(err error) Fault {
	f := Fault{Status: http.StatusInternalServerError, Code: "InternalServerError", Message: err.Error()}
	var refused *sigv4.Error
	var given *Fault
	switch {
	case errors.As(err, &given):
		f = *given
	case errors.As(err, &refused):
		f = Fault{Code: refused.Code, Message: refused.Message}
	}
	if f.Status == 0 {
		f.Status = http.StatusBadRequest
	}
	return f
}

func answer(w http.ResponseWriter, status int, data []byte) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-Requestid", requestID())
	w.WriteHeader(status)
	w.Write(data) //nolint:errcheck // the client is gone then
}

func requestID() string {
	b := make([]byte, 16)
	rand.Read(b)
	x := hex.EncodeToString(b)
	return strings.Join([]string{x[:8], x[8:12], x[12:16], x[16:20], x[20:]}, "-")
}
