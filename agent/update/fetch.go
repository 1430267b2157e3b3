package update

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"berth.dev/berth/wire/acs"
	"berth.dev/berth/wire/update"
)

const (
	// desired is the file that names what is to be installed (agent protocol,
	// StageUpdateMessage).
	desired = "desired-image"
	// fetched is part of the names of files that were fetched.
	fetchedMark = ".ecs-update."
	// keptDir has the packages that were installed, to go back to.
	keptDir = "kept"
)

// fetch has an update ready to be installed: its package, checked, and the one to go back
// to. What is there already is not fetched again.
func (u *Updater) fetch(ctx context.Context, info acs.UpdateInfo) error {
	if err := os.MkdirAll(filepath.Join(u.c.Dir, keptDir), 0o700); err != nil {
		return err
	}
	plan, err := readPlan(u.c.Dir)
	if err == nil && plan.SHA256 == info.Signature && plan.whole(u.c.Dir) == nil {
		return nil
	}
	if err := u.tidy(); err != nil {
		return err
	}
	plan = Plan{Kind: u.c.Kind, SHA256: info.Signature, Running: u.c.Running}
	if plan.File, err = u.download(ctx, info); err != nil {
		return err
	}
	if u.c.Kind != "" {
		if err := u.check(ctx, &plan, info.Former); err != nil {
			return errors.Join(err, os.Remove(filepath.Join(u.c.Dir, plan.File)))
		}
	}
	return plan.write(u.c.Dir)
}

// tidy removes what earlier updates have fetched.
func (u *Updater) tidy() error {
	old, err := filepath.Glob(filepath.Join(u.c.Dir, "*"+fetchedMark+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range append(old, filepath.Join(u.c.Dir, desired), filepath.Join(u.c.Dir, planFile)) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// check looks into a package: it has to be the agent's, for this host, of a version that
// may follow. The one to go back to has to be at hand as well.
func (u *Updater) check(ctx context.Context, plan *Plan, former *acs.UpdateInfo) error {
	running, err := update.Parse(u.c.Running)
	if err != nil {
		return err
	}
	about, err := describe(ctx, u.c.Kind, filepath.Join(u.c.Dir, plan.File))
	if err != nil {
		return err
	}
	if err := update.Step(running, about); err != nil {
		return err
	}
	plan.Version = about.String()
	plan.Former = filepath.Join(keptDir, keptName(u.c.Running, u.c.Kind))
	at := filepath.Join(u.c.Dir, plan.Former)
	if v, err := describe(ctx, u.c.Kind, at); err == nil && v == running {
		return nil
	}
	if former == nil {
		return fmt.Errorf("there is no package of the version %s to go back to: put it beside the new one in the cluster's folder", u.c.Running)
	}
	name, err := u.download(ctx, *former)
	if err != nil {
		return fmt.Errorf("the version to go back to: %w", err)
	}
	v, err := describe(ctx, u.c.Kind, filepath.Join(u.c.Dir, name))
	if err == nil && v != running {
		err = fmt.Errorf("what is given to go back to is version %s, and not %s", v, running)
	}
	if err != nil {
		return errors.Join(err, os.Remove(filepath.Join(u.c.Dir, name)))
	}
	return os.Rename(filepath.Join(u.c.Dir, name), at)
}

// keptName is the name under which a package is kept.
func keptName(version, kind string) string { return update.Package + "-" + version + "." + kind }

// download fetches a file from the cluster and returns its name in the folder. The cluster
// alone is asked, by TLS unless it is this host, and the file has the sum that the
// cluster's message says, or it is none.
func (u *Updater) download(ctx context.Context, info acs.UpdateInfo) (string, error) {
	want, err := hex.DecodeString(info.Signature)
	if err != nil || len(want) != sha256.Size {
		return "", errors.New("the signature is no SHA-256 in hexadecimal")
	}
	if err := u.trusted(ctx, info.Location); err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, info.Location, http.NoBody)
	if err != nil {
		return "", err
	}
	creds, err := u.c.Credentials.Retrieve(ctx)
	if err != nil {
		return "", err
	}
	empty := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(empty[:]), "ecs", u.c.Region, time.Now()); err != nil {
		return "", err
	}
	resp, err := u.c.Client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the cluster answers %s", resp.Status)
	}
	var random [8]byte
	rand.Read(random[:]) // never fails: the program ends instead
	kind := u.c.Kind
	if kind == "" {
		kind = "tar"
	}
	name := hex.EncodeToString(random[:]) + fetchedMark + kind
	return name, store(filepath.Join(u.c.Dir, name), resp.Body, string(want))
}

// trusted refuses locations that are not the cluster's.
func (u *Updater) trusted(ctx context.Context, location string) error {
	at, err := url.Parse(location)
	if err != nil {
		return fmt.Errorf("the location is no URL: %w", err)
	}
	origin, err := u.c.Origin(ctx)
	if err != nil {
		return err
	}
	own, err := url.Parse(origin)
	if err != nil {
		return err
	}
	if origin == "" || at.Scheme != own.Scheme || !strings.EqualFold(at.Host, own.Host) || at.User != nil {
		return errors.New("the location is not at the cluster that this host has joined")
	}
	if ip := net.ParseIP(at.Hostname()); at.Scheme != "https" && (at.Scheme != "http" || ip == nil || !ip.IsLoopback()) {
		return errors.New("the location is not reached by TLS")
	}
	return nil
}

// store writes a file whose SHA-256 is sum; nothing is left of any other.
func store(path string, from io.Reader, sum string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, h), io.LimitReader(from, update.MaxSize+1))
	switch {
	case err != nil:
	case n > update.MaxSize:
		err = fmt.Errorf("it has more than %d MiB", update.MaxSize>>20)
	case string(h.Sum(nil)) != sum:
		err = errors.New("its SHA-256 is not the one that the cluster's message says")
	default:
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
