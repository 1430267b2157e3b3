package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"berth.dev/berth/cluster"
	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
	"berth.dev/berth/wire/join"
)

func (a *app) token() *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Make, list and revoke tokens with which hosts join",
		Args:  args(0, 0, ""),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.tokenCreate(), a.tokenList(), a.tokenRevoke())
	return c
}

func (a *app) tokenCreate() *cobra.Command {
	var q join.TokenRequest
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a token with which a host joins",
		Long: `Makes a token and prints it: the cluster's address, the fingerprint of its
authority, and a secret that one host can exchange for a key, once, until it
expires. On that host: berth agent join TOKEN, or install.sh --join-token TOKEN.
It prints a secret: mind where it goes.`,
		Example: `  berth token create
  berth token create --ecs-cluster prod --ttl 10m --uses 3`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := operator.Open(a.system.Layout)
			if err != nil {
				return err
			}
			q.Seconds = int64(ttl / time.Second)
			t, err := api.CreateToken(c.Context(), q)
			if err != nil {
				return err
			}
			if a.screen.JSON {
				return a.screen.Value(t)
			}
			a.screen.Printf("%s\n", t.Token)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&q.Cluster, "ecs-cluster", "", "`name` of the ECS cluster that hosts join (default \"default\")")
	f.DurationVar(&ttl, "ttl", time.Hour, "how long the token lives")
	f.IntVar(&q.Uses, "uses", 1, "how many hosts may join with it")
	return c
}

func (a *app) tokenList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their secrets",
		Long: `Lists the tokens with which hosts can join or have joined. Tokens that have
ended are forgotten after a day.`,
		Example: `  berth token list`,
		Args:    args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := operator.Open(a.system.Layout)
			if err != nil {
				return err
			}
			list, err := api.Tokens(c.Context())
			if err != nil {
				return err
			}
			if a.screen.JSON {
				return a.screen.Value(list)
			}
			t := &screen.Table{}
			t.Row("ID", "CLUSTER", "EXPIRES", "LEFT", "HOSTS")
			for _, i := range list {
				expires := i.ExpiresAt.Local().Format("2006-01-02 15:04:05")
				if time.Now().After(i.ExpiresAt) {
					expires = "expired"
				}
				hosts := strings.Join(i.Hosts, " ")
				if hosts == "" {
					hosts = "-"
				}
				t.Row(i.ID, i.Cluster, expires, strconv.Itoa(i.Left), hosts)
			}
			a.screen.Table(t)
			return nil
		},
	}
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke a token",
		Long: `Revokes a token, by the id that "berth token list" shows: nobody joins with it
any more. Hosts that have joined stay members.`,
		Example: `  berth token revoke JzA9m0Vb3n2XlQ`,
		Args:    args(1, 1, "ID"),
		RunE: func(c *cobra.Command, arg []string) error {
			api, err := operator.Open(a.system.Layout)
			if err != nil {
				return err
			}
			return api.RevokeToken(c.Context(), arg[0])
		},
	}
}

// welcome prints a token for the first host, for people who start a cluster by hand.
func (a *app) welcome(ctx context.Context, s *cluster.Server) error {
	if s.Fingerprint() == "" || !a.screen.Terminal(a.screen.Out) {
		return nil
	}
	t, err := s.JoinToken(ctx, join.TokenRequest{})
	if err != nil {
		return err
	}
	a.screen.Printf("A host joins, until %s, with:\n\n  berth agent join %s\n\n", t.ExpiresAt.Local().Format("15:04"), t.Token)
	return nil
}
