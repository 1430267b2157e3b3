package daemon

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/berth/agent/config"
)

const bakeUsage = `Usage: %[1]s bake -clean | -check

Prepares this machine to be copied as an image: -clean forgets who the host was, so
that each copy registers as a new one at its first start. -check looks whether
anything is left, and exits with 1 if so. Settings and images stay.

Flags:
`

// baker is what of a host tells it from others.
type baker struct {
	c       *config.Config
	record  string // of a membership
	root    string // "" but in tests
	running func() bool
}

// bakeMain is the verb bake.
func bakeMain(name string, args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet(name+" bake", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprintf(stderr, bakeUsage, name)
		f.PrintDefaults()
	}
	clean := f.Bool("clean", false, "remove state, key, output of containers and the machine's id")
	check := f.Bool("check", false, "say what would make all copies of this machine the same host")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return config.ExitOK
	} else if err != nil || f.NArg() > 0 || *clean == *check {
		if err == nil {
			f.Usage()
		}
		return 2
	}
	c, err := config.Load(config.Sources{Environ: append(os.Environ(), "AWS_DEFAULT_REGION=none")})
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return config.ExitTerminal
	}
	b := &baker{c: c, record: place(c).Record(), running: func() bool { return exists((&agent{c: c}).socket()) }}
	if *clean {
		err = b.clean()
	} else {
		var found []string
		if found, err = b.check(); err == nil && len(found) > 0 {
			err = errors.New("this machine cannot be an image yet:\n  " + strings.Join(found, "\n  "))
		} else if err == nil {
			fmt.Fprintln(stdout, "This machine can be copied as an image.")
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return config.ExitError
	}
	return config.ExitOK
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// identity are the files that are of one host, and what each is.
func (b *baker) identity() [][2]string {
	return [][2]string{
		{b.c.Berth.KeyFile, "the agent's key"}, {b.record, "the record of a membership"},
		{"/root/.aws/credentials", "AWS credentials"}, {"/var/lib/amazon/ssm/Vault/Store/RegistrationKey", "an SSM registration"},
		{"/var/lib/systemd/credential.secret", "the key of this host's encrypted credentials"},
	}
}

// dbusID has the machine's id once more. Where it is a file of its own rather than a link
// to the other, systemd makes the other from it (machine-id(5)).
const dbusID = "/var/lib/dbus/machine-id"

func (b *baker) ownDBusID() bool {
	st, err := os.Lstat(b.root + dbusID)
	return err == nil && st.Mode().IsRegular() && st.Size() > 0
}

// folders are those whose content is of one host.
func (b *baker) folders() [][2]string {
	return [][2]string{
		{b.c.Berth.StateDir, "the agent's state"}, {filepath.Join(b.c.Berth.LogDir, "tasks"), "output of containers"},
		{filepath.Join(b.c.Berth.VolumeDir), "volumes of tasks"},
	}
}

// check says what of this host its copies would share.
func (b *baker) check() ([]string, error) {
	var found []string
	if b.running() {
		found = append(found, "the agent runs; stop it: systemctl stop berth-agent")
	}
	for _, f := range b.identity() {
		if exists(b.root + f[0]) {
			found = append(found, f[0]+" is "+f[1])
		}
	}
	for _, d := range b.folders() {
		entries, err := os.ReadDir(b.root + d[0])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if len(entries) > 0 {
			found = append(found, d[0]+" holds "+d[1])
		}
	}
	id, err := os.ReadFile(b.root + "/etc/machine-id")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// An empty file, or this word, has systemd make another at the next start (machine-id(5)).
	if s := strings.TrimSpace(string(id)); s != "" && s != "uninitialized" {
		found = append(found, "/etc/machine-id is this machine's; empty it")
	}
	if b.ownDBusID() {
		found = append(found, dbusID+" is this machine's; remove it")
	}
	keys, err := filepath.Glob(b.root + "/etc/ssh/ssh_host_*_key")
	if err != nil {
		return nil, err
	}
	if len(keys) > 0 {
		found = append(found, "/etc/ssh holds the keys of this host")
	}
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
		if src := b.c.Source(name); strings.HasPrefix(src, "/") {
			found = append(found, src+" sets "+name)
		}
	}
	return found, nil
}

// clean removes what check finds, but settings and the keys that others make.
func (b *baker) clean() error {
	if b.running() {
		return errors.New("the agent runs; stop it first: systemctl stop berth-agent")
	}
	var err error
	for _, f := range b.identity()[:2] {
		if e := os.Remove(b.root + f[0]); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	for _, d := range b.folders() {
		entries, e := os.ReadDir(b.root + d[0])
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
		for _, entry := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(b.root+d[0], entry.Name())))
		}
	}
	if b.ownDBusID() {
		err = errors.Join(err, os.Remove(b.root+dbusID))
	}
	if exists(b.root + "/etc/machine-id") {
		err = errors.Join(err, os.Truncate(b.root+"/etc/machine-id", 0))
	}
	return err
}
