package vm

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// Machine is a running virtual machine.
type Machine struct {
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu    sync.Mutex
	qmp   net.Conn
	reply *json.Decoder
	ports int // root ports of the PCI bus that are taken
}

// rootPorts is how many devices can be plugged into a machine.
const rootPorts = 8

// Config says what kind of machine a test wants.
type Config struct {
	Image   Image
	Payload string // tar file that the machine finds as its second disk
	Dir     string // for its files and sockets; must have a short name
	CPUs    int    // 0 means 2
	MiB     int    // of memory; 0 means 2048
	Keep    bool   // write to the image itself rather than to a copy that goes with the machine
	Network bool   // one interface, whose gateway 10.0.2.2 is the loopback interface of this host
}

// Boot starts a machine.
func Boot(c Config) (*Machine, error) {
	m := &Machine{dir: c.Dir, done: make(chan struct{})}
	img, snapshot := c.Image, "on"
	if c.Keep {
		snapshot = "off"
	}
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", strconv.Itoa(cmp.Or(c.CPUs, 2)), "-m", strconv.Itoa(cmp.Or(c.MiB, 2048)),
		"-machine", "q35", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "file:" + m.file("console"),
		"-kernel", img.Kernel, "-initrd", img.Initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off audit=0 systemd.unified_cgroup_hierarchy=1",
		"-drive", "file=" + img.Disk + ",format=raw,if=virtio,cache=unsafe,snapshot=" + snapshot,
		"-drive", "file=" + c.Payload + ",format=raw,if=virtio,readonly=on",
		"-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=result,path=" + m.file("result") + ",server=on,wait=on", "-device", "virtserialport,chardev=result,name=berth.result",
		"-chardev", "socket,id=ask,path=" + m.file("ask") + ",server=on,wait=off", "-device", "virtserialport,chardev=ask,name=berth.ask",
		"-qmp", "unix:" + m.file("qmp") + ",server=on,wait=off",
	}
	for i := range rootPorts {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=rp%d,chassis=%d", i, i+1))
	}
	if c.Network {
		args = append(args, "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	out, err := os.Create(m.file("qemu"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	m.cmd.Stdout, m.cmd.Stderr = out, out
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.done)
	}()
	return m, nil
}

func (m *Machine) file(name string) string { return filepath.Join(m.dir, name) }

// Log is what the machine's kernel and the emulator printed.
func (m *Machine) Log() string {
	var text []byte
	for _, name := range []string{"qemu", "console"} {
		b, err := os.ReadFile(m.file(name))
		if err != nil {
			b = []byte(err.Error())
		}
		text = append(text, b[max(0, len(b)-8<<10):]...)
	}
	return string(text)
}

// dial connects to one of the machine's sockets, which appear a moment after its start.
func (m *Machine) dial(name string) (net.Conn, error) {
	for deadline := time.Now().Add(10 * time.Second); ; {
		c, err := net.Dial("unix", m.file(name))
		if err == nil || time.Now().After(deadline) {
			return c, err
		}
		select {
		case <-m.done:
			return nil, fmt.Errorf("the machine ended: %w", m.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Results is what the payload prints. It ends with the machine.
func (m *Machine) Results() (io.ReadCloser, error) { return m.dial("result") }

// Wait waits until the machine has turned itself off.
func (m *Machine) Wait() error {
	<-m.done
	return m.err
}

// Kill ends the machine.
func (m *Machine) Kill() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	err := m.cmd.Process.Kill()
	<-m.done
	return err
}

// Command has the emulator carry out a command of its machine protocol (QMP).
func (m *Machine) Command(name string, arguments any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.qmp == nil {
		c, err := m.dial("qmp")
		if err != nil {
			return err
		}
		m.qmp, m.reply = c, json.NewDecoder(bufio.NewReader(c))
		if err := m.command("qmp_capabilities", nil); err != nil {
			return err
		}
	}
	return m.command(name, arguments)
}

func (m *Machine) command(name string, arguments any) error {
	order := map[string]any{"execute": name}
	if arguments != nil {
		order["arguments"] = arguments
	}
	if err := json.NewEncoder(m.qmp).Encode(order); err != nil {
		return err
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct{ Desc string }
		}
		if err := m.reply.Decode(&answer); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", name, answer.Error.Desc)
		case answer.Return != nil:
			return nil
		} // else a greeting or an event
	}
}

// Serve answers what the tests in the machine ask for until the machine ends. Each
// question is a line of JSON, a list of words; the answer is a line: "ok", or an error.
func (m *Machine) Serve() error {
	c, err := m.dial("ask")
	if err != nil {
		return err
	}
	defer c.Close()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		answer := "ok"
		var words []string
		err := json.Unmarshal(lines.Bytes(), &words)
		if err == nil {
			err = m.plug(words)
		}
		if err != nil {
			answer = err.Error()
		}
		if _, err := fmt.Fprintf(c, "%q\n", answer); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
