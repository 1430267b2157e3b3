package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// Errors of Format. Neither is mended by another try.
var (
	// ErrOther is that the device holds a file system of another kind, or partitions.
	ErrOther = errors.New("it is not touched")
	// ErrData is that the device holds something, but nothing that is known.
	ErrData = errors.New("the volume is not empty and has no file system that is known; it is not touched")
)

// Kinds are the file systems that can be made (ECS API model,
// TaskFilesystemType; agent protocol, ConfirmAttachmentMessage).
var Kinds = []string{"xfs", "ext4", "ext3", "ext2"}

// Format puts a file system of a kind on a device or into a file that is empty. One that
// has it already is left as it is, and so is everything else that holds anything. begun
// says that an earlier try may have been cut short after it had found the device empty.
func Format(ctx context.Context, device, kind string, begun bool) error {
	have, err := Probe(ctx, device)
	switch {
	case err != nil:
		return err
	case have == kind:
		return nil
	case have != "":
		return fmt.Errorf("the volume holds %s, not %s: %w", have, kind, ErrOther)
	}
	if !begun {
		if err := Empty(device); err != nil {
			return err
		}
	}
	return makeFS(ctx, device, kind)
}

// Empty returns ErrData unless a device, on which nothing was found, holds nothing.
func Empty(device string) error {
	empty, err := blank(device)
	if err == nil && !empty {
		err = ErrData
	}
	return err
}

// Probe says what is on a device: a kind of file system, "partitions", or nothing that
// is known (blkid(8), low-level probing).
func Probe(ctx context.Context, device string) (string, error) {
	cmd := exec.CommandContext(ctx, "blkid", "--probe", "--output", "export", device)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	const nothing, ambivalent = 2, 8
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == nothing:
		return "", nil
	case errors.As(err, &exit) && exit.ExitCode() == ambivalent:
		return "more than one file system", nil
	case err != nil:
		return "", fmt.Errorf("blkid (package util-linux): %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	found := "something"
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch name {
		case "TYPE":
			return value, nil
		case "PTTYPE":
			found = "partitions"
		}
	}
	return found, nil
}

// Where a device is looked at for anything but zeros: file systems, volume managers and
// databases all write to its beginning, and some to its end.
const (
	lookAtStart = 4 << 20
	lookAtEnd   = 1 << 20
)

// blank reports whether a device has nothing but zeros where anything would be.
func blank(device string) (bool, error) {
	f, err := os.Open(device)
	if err != nil {
		return false, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	if size == 0 {
		return false, fmt.Errorf("%s has no size", device)
	}
	for _, part := range [][2]int64{{0, min(lookAtStart, size)}, {max(0, size-lookAtEnd), size}} {
		zero, err := zeros(io.NewSectionReader(f, part[0], part[1]-part[0]))
		if err != nil || !zero {
			return false, err
		}
	}
	return true, nil
}

func zeros(r io.Reader) (bool, error) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if len(bytes.Trim(buf[:n], "\x00")) > 0 {
			return false, nil
		}
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func makeFS(ctx context.Context, device, kind string) error {
	name, pkg, args := "mke2fs", "e2fsprogs", []string{"-q", "-F", "-t", kind, "-m", "0", "-E", "nodiscard,root_owner=0:0", device}
	switch kind {
	case "xfs":
		name, pkg, args = "mkfs.xfs", "xfsprogs", []string{"-q", "-f", "-K", device}
	case "ext2", "ext3", "ext4":
	default:
		return fmt.Errorf("no file system is called %.16q here; %s are", kind, strings.Join(Kinds, ", "))
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s (package %s): %w: %s", name, pkg, err, strings.TrimSpace(out.String()))
	}
	return nil
}
