package main

import (
	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/operator"
)

func (a *app) key() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Make a key for the agent of another host",
		Long: `Has the cluster on this host make a key for one new container instance, and
prints it in the form of an AWS shared credentials file, as install.sh takes it
with --key-file. It prints a secret key: mind where it goes. Each host needs a
key of its own.`,
		Example: `  (umask 077; berth key > host2.key)`,
		Args:    args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := operator.Open(a.system.Layout)
			if err != nil {
				return err
			}
			key, err := api.InstanceKey(c.Context())
			if err != nil {
				return err
			}
			if a.screen.JSON {
				return a.screen.Value(map[string]string{"accessKeyId": key.AccessKeyID, "secretAccessKey": key.Secret.Reveal()})
			}
			a.screen.Printf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", key.AccessKeyID, key.Secret.Reveal())
			return nil
		},
	}
}
