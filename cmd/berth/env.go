package main

import (
	"strings"

	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
)

func (a *app) env() *cobra.Command {
	return &cobra.Command{
		Use:   "env",
		Short: "Print the exports that the aws CLI and the SDKs need",
		Long: `Prints shell exports with the endpoint, the region and the operator's key of the
cluster on this host. It prints a secret key: mind where it goes.

AWS_ENDPOINT_URL is what current tools read. Older ones, such as the aws CLI and
the boto3 of Debian 12, do not know it; AWS_DATA_PATH gives them endpoint rules
for the services that the cluster answers, so that they reach it too.`,
		Example: `  eval "$(berth env)"
  aws ecs list-clusters`,
		Args: args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			api, err := operator.Open(a.system.Layout)
			if err != nil {
				return err
			}
			vars, err := api.Environment(a.system.Layout)
			if err != nil {
				return err
			}
			if a.screen.JSON {
				values := map[string]string{}
				for _, v := range vars {
					values[v.Name] = v.Value
				}
				return a.screen.Value(values)
			}
			for _, v := range vars {
				a.screen.Printf("export %s=%s\n", v.Name, quote(v.Value))
			}
			return nil
		},
	}
}

// quote quotes a word for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
