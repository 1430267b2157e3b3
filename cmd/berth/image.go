package main

import (
	"errors"

	"github.com/spf13/cobra"

	"berth.dev/berth/cmd/berth/internal/layout"
	"berth.dev/berth/cmd/berth/internal/system"
)

func (a *app) image() *cobra.Command {
	c := &cobra.Command{
		Use:   "image",
		Short: "Load images without a registry",
		Args:  args(0, 0, ""),
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	load := &cobra.Command{
		Use:   "load ARCHIVE",
		Short: "Load the images of an archive into containerd, for tasks of this host",
		Long: `Loads an image archive, as "docker save" and most image builders write it, into
Berth's namespace of the containerd in use. Tasks name the image as the archive
does, and the agent then needs no registry for it.`,
		Example: `  berth image load my-image.tar`,
		Args:    args(1, 1, "ARCHIVE"),
		RunE: func(c *cobra.Command, arg []string) error {
			if err := a.needRoot(); err != nil {
				return err
			}
			now, err := a.system.Layout.ReadSystem()
			if errors.Is(err, layout.ErrNotUp) {
				now.Containerd = system.SystemSocket
				if _, e := a.system.ContainerdVersion(c.Context(), now.Containerd); e != nil {
					return err
				}
			} else if err != nil {
				return err
			}
			names, err := a.system.LoadImage(c.Context(), now.Containerd, arg[0])
			if err != nil {
				return err
			}
			if a.screen.JSON {
				return a.screen.Value(names)
			}
			for _, name := range names {
				a.screen.Printf("%s\n", name)
			}
			return nil
		},
	}
	c.AddCommand(load)
	return c
}
