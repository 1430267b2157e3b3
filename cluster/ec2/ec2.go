// Package ec2 answers the part of the Amazon EC2 query API that clients of ECS need for
// networks and volumes: VPCs, subnets, security groups and their rules, network
// interfaces, zones, volumes that tasks had and their snapshots, and tags. The records of
// networks are those of package vpc; a changed rule, and what is to be done with a volume,
// reaches the agents by the store's watches.
//
// A request is a form, an answer XML (EC2 API reference, "Query requests"). Answers hold
// what the aws CLI and Terraform read; members that mean nothing here have the value that
// EC2 gives where nothing was set.
package ec2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"time"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

// Version is the version of the API, which tells its requests from those of other
// services.
const Version = "2016-11-15"

const namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"

// Limits (Amazon VPC guide, "Quotas", and ours).
const (
	maxVPCs       = 100
	maxSubnets    = 200 // of a VPC
	maxGroups     = 2500
	maxGroupRules = 60 // of one direction of a group
	maxTags       = 50
	maxItems      = 1000 // of any list in a request
	maxText       = 255
)

// Config is what a Server is made of.
type Config struct {
	Store           *store.Store
	Region, Account string
	// Authenticate lets a request for a service pass, or refuses it with an *api.Error.
	Authenticate func(r *http.Request, body []byte, service string) error
	Log          *slog.Logger
}

// A Server answers requests. Make one with New.
type Server struct {
	Config
	actions map[string]action
}

// action is one operation: it answers with the members of the response.
type action func(ctx context.Context, f form) ([]node, error)

// New makes a Server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Config: c}
	s.actions = map[string]action{
		"CreateVpc": s.createVPC, "DeleteVpc": s.deleteVPC, "DescribeVpcs": s.describeVPCs,
		"DescribeVpcAttribute": s.describeVPCAttribute, "ModifyVpcAttribute": s.modifyVPCAttribute,
		"DescribeNetworkAcls": s.describeNetworkACLs, "DescribeRouteTables": s.describeRouteTables,
		"CreateSubnet": s.createSubnet, "DeleteSubnet": s.deleteSubnet, "DescribeSubnets": s.describeSubnets,
		"ModifySubnetAttribute": s.modifySubnetAttribute,
		"CreateSecurityGroup":   s.createSecurityGroup, "DeleteSecurityGroup": s.deleteSecurityGroup,
		"DescribeSecurityGroups":        s.describeSecurityGroups,
		"AuthorizeSecurityGroupIngress": s.authorize(false), "AuthorizeSecurityGroupEgress": s.authorize(true),
		"RevokeSecurityGroupIngress": s.revoke(false), "RevokeSecurityGroupEgress": s.revoke(true),
		"DescribeSecurityGroupRules": s.describeSecurityGroupRules, "ModifySecurityGroupRules": s.modifySecurityGroupRules,
		"DescribeNetworkInterfaces": s.describeNetworkInterfaces,
		"DescribeAvailabilityZones": s.describeAvailabilityZones, "DescribeRegions": s.describeRegions,
		"DescribeAccountAttributes": s.describeAccountAttributes, "DescribeInstances": s.describeInstances,
		"DescribeVolumes": s.describeVolumes, "DeleteVolume": s.deleteVolume,
		"CreateSnapshot": s.createSnapshot, "DescribeSnapshots": s.describeSnapshots, "DeleteSnapshot": s.deleteSnapshot,
		"CreateTags": s.createTags, "DeleteTags": s.deleteTags, "DescribeTags": s.describeTags,
	}
	return s
}

// Error is an answer other than success.
type Error struct {
	Code, Message string
	Status        int
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

func failure(code, format string, args ...any) error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Status: http.StatusBadRequest}
}

// Serve answers a request whose body has been read. It returns the operation, and the
// code of the error or "".
func (s *Server) Serve(w http.ResponseWriter, r *http.Request, body []byte, values url.Values, id string) (operation, code string) {
	name := values.Get("Action")
	run, ok := s.actions[name]
	if !ok {
		operation = "unknown"
	} else {
		operation = name
	}
	answer, err := s.perform(r, body, values, run)
	if err != nil {
		e := s.errorOf(r.Context(), err)
		s.write(w, e.Status, document{name: "Response", members: []node{
			list("Errors", node{name: "Error", members: []node{text("Code", e.Code), text("Message", e.Message)}}),
			text("RequestID", id),
		}})
		return operation, e.Code
	}
	s.write(w, http.StatusOK, document{
		name: name + "Response", namespace: namespace, members: append([]node{text("requestId", id)}, answer...),
	})
	return operation, ""
}

func (s *Server) perform(r *http.Request, body []byte, values url.Values, run action) (answer []node, err error) {
	if err := s.Authenticate(r, body, "ec2"); err != nil {
		if refused, ok := errors.AsType[*api.Error](err); ok {
			return nil, &Error{Code: authError(refused.Code), Message: refused.Message, Status: refused.Status}
		}
		return nil, err
	}
	if run == nil {
		return nil, failure("InvalidAction", "The action %s is not valid for this web service.", clip(values.Get("Action")))
	}
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("operation panicked", "operation", values.Get("Action"), "err", p, "stack", string(debug.Stack()))
			err = &Error{Code: "InternalError", Message: "An internal error has occurred.", Status: http.StatusInternalServerError}
		}
	}()
	f := form{values}
	if f.get("DryRun") == "true" {
		return nil, &Error{Code: "DryRunOperation", Message: "Request would have succeeded, but DryRun flag is set.", Status: http.StatusPreconditionFailed}
	}
	if err := s.ensureDefaults(r.Context()); err != nil {
		return nil, err
	}
	return run(r.Context(), f)
}

// authError is the name that EC2 has for a refused signature (EC2 API reference, "Client
// error codes").
func authError(code string) string {
	switch code {
	case "InvalidClientTokenId", "SignatureDoesNotMatch":
		return "AuthFailure"
	}
	return code
}

// ensureDefaults makes the default VPC the first time that anybody asks.
func (s *Server) ensureDefaults(ctx context.Context) error {
	have := false
	s.Store.View(func(r store.Reader) { have = vpc.HasDefaults(r) })
	if have {
		return nil
	}
	return s.Store.Update(ctx, func(tx *store.Tx) error { return vpc.EnsureDefaults(tx, s.Region) })
}

func (s *Server) errorOf(ctx context.Context, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if ctx.Err() == nil {
		s.Log.Error("operation failed", "err", err)
	}
	return &Error{Code: "InternalError", Message: "An internal error has occurred.", Status: http.StatusInternalServerError}
}

func (s *Server) write(w http.ResponseWriter, status int, d document) {
	body := d.encode()
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		s.Log.Debug("answer not written", "err", err)
	}
}

func (s *Server) arn(kind, id string) string {
	return "arn:aws:ec2:" + s.Region + ":" + s.Account + ":" + kind + "/" + id
}

// done is the answer of operations that answer nothing else.
func done() []node { return []node{text("return", "true")} }

func clip(s string) string { return s[:min(len(s), 128)] }

func instant(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }
