package stats

import (
	"bytes"
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseGPU(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		line, id string
		want     GPU
	}{
		{"GPU-5b1c, 37, 12, 1024, 15360, 41, 26.50", "GPU-5b1c", GPU{Utilization: 0.37, MemoryBusy: 0.12, MemoryUsed: 1 << 30, MemoryTotal: 15 << 30, Temperature: 41, Power: 26.5}},
		{"GPU-1, [N/A], [Not Supported], 0, 1, [Unknown Error], nan", "GPU-1", GPU{Utilization: nan, MemoryBusy: nan, MemoryTotal: 1 << 20, Temperature: nan, Power: nan}},
		{"GPU-1, 1, 2, 3, 4, 5", "", GPU{}},
		{"No devices were found", "", GPU{}},
		{"Unable to determine the device handle for GPU 0000:00:1E.0: GPU is lost, reboot, a, b, c, d, e", "", GPU{}},
		{"", "", GPU{}},
	} {
		id, got, ok := parseGPU(c.line)
		if ok != (c.id != "") || id != c.id {
			t.Errorf("%q: id %q (%t)", c.line, id, ok)
		}
		if diff := cmp.Diff(c.want, got, cmpopts.EquateNaNs(), cmpopts.EquateApprox(1e-12, 0)); diff != "" {
			t.Errorf("%q: %s", c.line, diff)
		}
	}
}

func FuzzParseGPU(f *testing.F) {
	f.Add("GPU-1, 1, 2, 3, 4, 5, 6")
	f.Add(",,,,,,")
	f.Fuzz(func(t *testing.T, line string) {
		if _, g, ok := parseGPU(line); ok && (g.Utilization < 0 || g.Power < 0 || math.IsInf(g.Power, 0)) {
			t.Errorf("%+v", g)
		}
	})
}

// smi is a program in the place of nvidia-smi. It writes its process id and how it was
// called to files.
type smi struct {
	dir  string
	log  notes
	gpus *GPUs
}

// notes is a log that can be read while it is written.
type notes struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (n *notes) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.Write(p)
}

func (n *notes) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.b.String()
}

func newSMI(t *testing.T, script string) *smi {
	t.Helper()
	s := &smi{dir: t.TempDir()}
	program := filepath.Join(s.dir, "smi")
	text := "#!/bin/sh\ncd " + s.dir + "\necho \"$@\" > args\necho started >> starts\n" + script
	if err := os.WriteFile(program+".new", []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(program+".new", program); err != nil {
		t.Fatal(err)
	}
	s.gpus = NewGPUs(program, time.Second, slog.New(slog.NewTextHandler(&s.log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.gpus.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *smi) file(t *testing.T, name string) string {
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestGPUs runs the program only while it is wanted, and takes what it says.
func TestGPUs(t *testing.T) {
	s := newSMI(t, `while :; do echo "GPU-a, 50, 10, 2048, 16384, 60, 120.25"; echo "GPU-b, [N/A], [N/A], 1, 2, 30, [N/A]"; sleep 0.1; done`)
	s.gpus.Want(true)
	var a GPU
	until(t, "both GPUs are known", func() bool {
		_, known := s.gpus.Latest("GPU-b")
		a, _ = s.gpus.Latest("GPU-a")
		return known && !a.At.IsZero()
	})
	if a.Utilization != 0.5 || a.MemoryUsed != 2<<30 || a.Temperature != 60 || a.Power != 120.25 {
		t.Errorf("%+v", a)
	}
	if _, known := s.gpus.Latest("GPU-c"); known {
		t.Error("a GPU that there is not is known")
	}
	const want = "--query-gpu=uuid,utilization.gpu,utilization.memory,memory.used,memory.total,temperature.gpu,power.draw --format=csv,noheader,nounits --loop=1\n"
	if got := s.file(t, "args"); got != want {
		t.Errorf("called with %q", got)
	}
	s.gpus.Want(false)
	until(t, "the program has ended", func() bool { _, known := s.gpus.Latest("GPU-a"); return !known })
	s.gpus.Want(true)
	until(t, "the program runs again", func() bool { _, known := s.gpus.Latest("GPU-a"); return known })
	if got := s.file(t, "starts"); got != "started\nstarted\n" {
		t.Errorf("%q", got)
	}
	if said := s.log.String(); said != "" {
		t.Errorf("the log has %s", said)
	}
}

// TestGPUsThatFail has the program end again and again; it says so once.
func TestGPUsThatFail(t *testing.T) {
	s := newSMI(t, `[ -e up ] || { echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9; }
echo "GPU-a, 50, 10, 2048, 16384, 60, 120.25"; exec sleep 1000`)
	s.gpus.Want(true)
	until(t, "it was started twice", func() bool { return len(strings.Fields(s.file(t, "starts"))) >= 2 })
	if err := os.WriteFile(filepath.Join(s.dir, "up"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "the driver is there", func() bool { return strings.Contains(s.log.String(), "there again") })
	said := s.log.String()
	if strings.Count(said, "no statistics of GPUs") != 1 || !strings.Contains(said, "couldn't communicate with the NVIDIA driver") || !strings.Contains(said, "exit status 9") {
		t.Errorf("the log has %s", said)
	}
}

// TestGPUsOfAnotherHost has no such program.
func TestGPUsOfAnotherHost(t *testing.T) {
	s := newSMI(t, "")
	s.gpus.program = filepath.Join(s.dir, "none")
	s.gpus.Want(true)
	until(t, "it says so", func() bool { return strings.Contains(s.log.String(), "no such file or directory") })
}
