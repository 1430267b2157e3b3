// Package guest holds the tests that run in the virtual machine of package vm, as root,
// with the programs of Berth on the search path.
package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/integ/await"
)

// Main runs the tests, if this is the machine.
func Main(m *testing.M) {
	if _, err := os.Stat("/etc/berth-guest"); err != nil {
		fmt.Println("these tests run in a virtual machine: make vm-test")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var asking sync.Mutex

// Ask has the outside do something to the machine; see vm/plug.go.
func Ask(t testing.TB, words ...string) {
	t.Helper()
	asking.Lock()
	defer asking.Unlock()
	port, err := os.OpenFile("/dev/virtio-ports/berth.ask", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	if err := json.NewEncoder(port).Encode(words); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(port).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := strconv.Unquote(strings.TrimSpace(line)); err != nil || answer != "ok" {
		t.Fatalf("%q: %s %v", words, answer, err)
	}
}

// Run runs a command and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Patience is how long a test waits for what has to come. The machine is emulated, and the
// host that emulates it may have much else to do: it is over fifty times slower then than a
// machine, so that only what never comes fails. Nothing waits so long for what does come.
// Soon is the same for package await, which has a patience of its own.
const (
	Patience = 5 * time.Minute
	Soon     = 40 * time.Second
)

// Until waits until something is so, at most for Patience.
func Until(t testing.TB, what string, so func() error) {
	t.Helper()
	await.Until(t, Soon, what, so)
}
