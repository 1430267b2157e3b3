// Command pack makes an image of one static program, as an archive that can be loaded:
//
//	pack PROGRAM ARCHIVE NAME
//
// The Makefile makes the sample image with it.
package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

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
	if img, err = ofProcessor(img, program); err != nil {
		return err
	}
	if err := testimage.WriteArchive(archive+".new", name, img); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}

// ofProcessor gives an image the architecture that its program was built for.
func ofProcessor(img v1.Image, program string) (v1.Image, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	machine := f.Machine
	if err := f.Close(); err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	switch machine {
	case elf.EM_X86_64:
		c.Architecture = "amd64"
	case elf.EM_AARCH64:
		c.Architecture = "arm64"
	default:
		return nil, fmt.Errorf("%s is for %v, which no image is made for", program, machine)
	}
	return mutate.ConfigFile(img, c)
}
