package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func root(_ context.Context, h Host) Result {
	if h.UID != 0 {
		return failure(fmt.Sprintf("user %d", h.UID), "run Berth as root: it makes namespaces, cgroups and mounts")
	}
	return ok("root")
}

// minKernel is the first kernel with pidfd_open(2), which Berth uses to signal
// processes without hitting others.
var minKernel = version{5, 3}

func kernel(_ context.Context, h Host) Result {
	b, err := os.ReadFile(filepath.Join(h.Proc, "sys/kernel/osrelease"))
	if err != nil {
		return failure(err.Error(), "mount /proc")
	}
	release := strings.TrimSpace(string(b))
	v, good := parseVersion(release)
	if !good || v.before(minKernel) {
		return failure("Linux "+release, "install a kernel of version "+minKernel.String()+" or newer")
	}
	return ok("Linux " + release)
}

func overlayfs(_ context.Context, h Host) Result {
	b, err := os.ReadFile(filepath.Join(h.Proc, "filesystems"))
	if err != nil {
		return failure(err.Error(), "mount /proc")
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return ok("in the kernel")
		}
	}
	return failure("unknown to the kernel", "load it with: modprobe overlay")
}

// needed are the controllers that limits and statistics of tasks come from.
var needed = []string{"cpu", "memory", "pids"}

func cgroups(_ context.Context, h Host) Result {
	const remedy = "see cgroups(7); on Debian boot with: systemd.unified_cgroup_hierarchy=1 cgroup_enable=memory"
	mounts, err := os.ReadFile(filepath.Join(h.Proc, "self/mountinfo"))
	if err != nil {
		return failure(err.Error(), "mount /proc")
	}
	have := map[string]bool{}
	kind := "none"
	for line := range strings.Lines(string(mounts)) {
		before, after, found := strings.Cut(line, " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if !found || len(front) < 5 || len(back) < 3 {
			continue
		}
		switch back[0] {
		case "cgroup":
			kind = "v1"
			for option := range strings.SplitSeq(back[2], ",") {
				have[option] = true
			}
		case "cgroup2":
			if front[4] != "/sys/fs/cgroup" { // a hybrid host's, without the controllers that count
				continue
			}
			kind = "v2"
			b, err := os.ReadFile(filepath.Join(h.Sys, "fs/cgroup/cgroup.controllers"))
			if err != nil {
				return failure(err.Error(), remedy)
			}
			for _, controller := range strings.Fields(string(b)) {
				have[controller] = true
			}
		}
	}
	var missing []string
	for _, controller := range needed {
		if !have[controller] {
			missing = append(missing, controller)
		}
	}
	switch {
	case kind == "none":
		return failure("not mounted", remedy)
	case len(missing) > 0:
		return failure(kind+" without "+strings.Join(missing, ", "), remedy)
	case kind == "v1":
		return ok("v1 with " + strings.Join(needed, ", ") + " (v2 is the better choice where the host allows it)")
	default:
		return ok("v2 with " + strings.Join(needed, ", "))
	}
}

func network(_ context.Context, h Host) Result {
	if h.UID != 0 {
		return warn("only root can look", "run this as root")
	}
	if err := h.Network(); err != nil {
		return failure(err.Error(), "load the modules with: modprobe -a veth bridge nf_tables nft_chain_nat nft_masq")
	}
	return ok("veth, bridge and nftables work")
}

func forwarding(_ context.Context, h Host) Result {
	b, err := os.ReadFile(filepath.Join(h.Proc, "sys/net/ipv4/ip_forward"))
	switch {
	case err != nil:
		return failure(err.Error(), "mount /proc")
	case strings.TrimSpace(string(b)) != "1":
		return warn("off; turned on with the first task in bridge mode", "to have it on from the start: sysctl -w net.ipv4.ip_forward=1")
	}
	return ok("on")
}

// minRunc is the release of Debian 12, whose security updates carry the fixes of
// later releases.
var minRunc = version{1, 1, 5}

func runc(ctx context.Context, h Host) Result {
	out, err := h.Run(ctx, "runc", "--version")
	if err != nil {
		return failure(err.Error(), "install it with: apt-get install runc")
	}
	first, _, _ := strings.Cut(out, "\n")
	v, good := parseVersion(strings.TrimPrefix(first, "runc version "))
	switch {
	case !good:
		return warn("an unknown version: "+first, "install one whose version can be told: apt-get install runc")
	case v.before(minRunc):
		return failure("runc "+v.String(), "install "+minRunc.String()+" or newer: apt-get install runc")
	}
	return ok(strings.Replace(first, "runc version", "runc", 1))
}

func shim(_ context.Context, h Host) Result {
	path, err := h.Shim()
	if err != nil {
		return failure(err.Error(), "build it beside berth with: make build")
	}
	return ok(path)
}

// minContainerd is the oldest containerd that the runtime adapter is tested against.
var minContainerd = version{1, 6, 20}

func containerd(ctx context.Context, h Host) Result {
	address, named := h.Configured, "BERTH_CONTAINERD_ADDRESS"
	if address == "" {
		address, named = h.SystemSocket, "the host's"
		if _, err := os.Stat(address); errors.Is(err, fs.ErrNotExist) {
			return ok("the host has none; Berth brings its own")
		}
	}
	text, err := h.Containerd(ctx, address)
	if err != nil {
		found := fmt.Sprintf("%s (%s) does not answer: %v", address, named, err)
		if h.Configured != "" {
			return failure(found, "start it, or unset BERTH_CONTAINERD_ADDRESS")
		}
		return warn(found, "Berth brings its own; to use the host's: systemctl start containerd")
	}
	v, good := parseVersion(text)
	if !good || v.before(minContainerd) {
		return failure(fmt.Sprintf("containerd %s at %s", text, address), "use containerd "+minContainerd.String()+" or newer, or stop it and Berth brings its own")
	}
	return ok(fmt.Sprintf("containerd %s at %s", text, address))
}

func apiPort(_ context.Context, h Host) Result {
	switch who := h.Listening(h.Listen); who {
	case "":
		return ok(h.Listen + " is free")
	case "berth":
		return ok(h.Listen + " is the cluster's")
	default:
		return failure(h.Listen+" is taken by "+who, "stop it, or choose another address: berth up --listen 127.0.0.1:7701")
	}
}

func samplePort(_ context.Context, h Host) Result {
	switch who := h.Listening("0.0.0.0:80"); who {
	case "":
		return ok("port 80 is free")
	case "berth":
		return ok("port 80 is a task's")
	default:
		return warn("port 80 is taken by "+who, "the sample task needs it; stop "+who+", or start without the sample: berth up --no-sample")
	}
}

// Berth needs room for a few images and its databases.
const (
	minFree   = 1 << 30 // bytes
	minInodes = 50_000
)

func disk(_ context.Context, h Host) Result {
	dir := h.StateDir
	for {
		if _, err := os.Stat(dir); err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return failure(fmt.Sprintf("%s: %v", dir, err), "make "+h.StateDir+" a directory of a working file system")
	}
	free := int64(st.Bavail) * st.Bsize
	found := fmt.Sprintf("%.1f GiB free below %s", float64(free)/(1<<30), h.StateDir)
	switch {
	case free < minFree:
		return failure(found, "free some space: images and databases need 1 GiB at least")
	case st.Files > 0 && st.Ffree < minInodes:
		return failure(fmt.Sprintf("%d inodes free below %s", st.Ffree, h.StateDir), "remove files: images need 50,000 inodes at least")
	}
	return ok(found)
}

func certificates(context.Context, Host) Result {
	// The places of Debian, Fedora and Alpine, as crypto/x509 looks for them.
	for _, path := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"} {
		if _, err := os.Stat(path); err == nil {
			return ok(path)
		}
	}
	return warn("none", "registries cannot be verified without: apt-get install ca-certificates")
}

func clock(_ context.Context, _ Host) Result {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	switch {
	case err != nil:
		return warn(err.Error(), "check by hand that the clock is right: date")
	case state == unix.TIME_ERROR:
		return warn("not synchronised", "signatures need a clock right to 5 minutes; run a time service, such as: apt-get install chrony")
	}
	return ok("synchronised")
}

// maxSkew is how far a signature's date may be from the cluster's clock.
const maxSkew = 5 * time.Minute

func skew(ctx context.Context, h Host) Result {
	before := time.Now()
	theirs, running := h.Cluster(ctx)
	if !running {
		return ok("no cluster runs here yet")
	}
	// The answer carries whole seconds.
	d := theirs.Sub(before).Truncate(time.Second)
	if d.Abs() > maxSkew {
		return failure(fmt.Sprintf("the cluster's clock is %v away", d), "set both clocks by a time service; signatures are refused beyond "+maxSkew.String())
	}
	return ok(fmt.Sprintf("%v to the cluster", d.Abs()))
}

// version is the numbers of a version, most significant first.
type version []int

func (v version) before(min version) bool {
	for i, m := range min {
		n := 0
		if i < len(v) {
			n = v[i]
		}
		if n != m {
			return n < m
		}
	}
	return false
}

func (v version) String() string {
	parts := make([]string, len(v))
	for i, n := range v {
		parts[i] = strconv.Itoa(n)
	}
	return strings.Join(parts, ".")
}

// parseVersion reads the leading numbers of "v1.6.20~ds1", "5.10.0-8-amd64" and such.
func parseVersion(s string) (version, bool) {
	var v version
	for part := range strings.SplitSeq(strings.TrimPrefix(strings.TrimSpace(s), "v"), ".") {
		digits := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
		whole := digits < 0
		if whole {
			digits = len(part)
		}
		n, err := strconv.Atoi(part[:digits])
		if err != nil {
			break
		}
		if v = append(v, n); !whole || len(v) == 3 {
			break
		}
	}
	return v, len(v) >= 2
}
