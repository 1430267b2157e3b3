// Command pack makes an image of one static program, as an archive that can be loaded:
//
//	pack PROGRAM ARCHIVE NAME
//
// The Makefile makes the sample image with it.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth.dev/berth/integ/testimage"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: pack PROGRAM ARCHIVE NAME")
		os.Exit(2)
	}
	if err := pack(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(program, archive, name string) error {
	img, err := testimage.FromBinary(program, "/"+filepath.Base(program), v1.Config{})
	if err != nil {
		return err
	}
	if err := testimage.WriteArchive(archive+".new", name, img); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}
