package logs

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/integ/await"
)

// rsyslog starts Debian's rsyslog with all its inputs, and returns the directory of its
// sockets and its output, one line a message of fields with tabs between them.
func rsyslog(t *testing.T) (dir, udp, tcp, tls string) {
	t.Helper()
	dir = t.TempDir()
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	udp, tcp, tls = free(), free(), free()
	cert := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem")
	cert.Dir = dir
	if out, err := cert.CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	conf := fmt.Sprintf(`
global(workDirectory="%[1]s" maxMessageSize="64k" defaultNetstreamDriverCAFile="%[1]s/cert.pem" defaultNetstreamDriverCertFile="%[1]s/cert.pem" defaultNetstreamDriverKeyFile="%[1]s/key.pem" parser.escapeControlCharactersOnReceive="off")
module(load="imuxsock" SysSock.Use="off")
module(load="imudp")
module(load="imptcp")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imuxsock" Socket="%[1]s/log" UseSpecialParser="on")
input(type="imudp" address="127.0.0.1" port="%[2]s")
input(type="imptcp" address="127.0.0.1" port="%[3]s")
input(type="imtcp" address="127.0.0.1" port="%[4]s")
template(name="fields" type="string" string="%%inputname%%\t%%syslogfacility-text%%.%%syslogseverity-text%%\t%%protocol-version%%\t%%programname%%\t%%procid%%\t%%msgid%%\t%%msg:::drop-last-lf%%\n")
action(type="omfile" file="%[1]s/out" template="fields" asyncWriting="off" flushOnTXEnd="on")
`, dir, udp, tcp, tls)
	file := filepath.Join(dir, "rsyslog.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("rsyslogd", "-n", "-f", file, "-i", filepath.Join(dir, "pid"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("rsyslogd: %v; install the packages rsyslog and rsyslog-gnutls", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	await.Until(t, soon, "rsyslog listens", func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+tls)
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return dir, "127.0.0.1:" + udp, "127.0.0.1:" + tcp, "localhost:" + tls
}

func TestSyslogWithRsyslog(t *testing.T) {
	r := newRig(t)
	dir, udp, tcp, tls := rsyslog(t)
	output := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "out"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tc := range []struct{ name, input, address, format string }{
		{"udp", "imudp", "udp://" + udp, ""},
		{"udp rfc5424", "imudp", "udp://" + udp, "rfc5424"},
		{"tcp", "imptcp", "tcp://" + tcp, "rfc3164"},
		{"tcp rfc5424micro", "imptcp", "tcp://" + tcp, "rfc5424micro"},
		{"tls", "imtcp", "tcp+tls://" + tls, ""},
		{"tls rfc5424", "imtcp", "tcp+tls://" + tls, "rfc5424"},
		{"unix", "imuxsock", "unixgram://" + filepath.Join(dir, "log"), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			options := map[string]string{"syslog-address": tc.address, "syslog-facility": "local5", "tag": "app/{{.ID}}"}
			if tc.format != "" {
				options["syslog-format"] = tc.format
			}
			if strings.HasPrefix(tc.name, "tls") {
				options["syslog-tls-ca-cert"] = filepath.Join(dir, "cert.pem")
			}
			c := r.container("syslog", options)
			text := "said by " + tc.name + " " + strings.Repeat("ä long line ", 300)
			c.say(text + "\n")
			if _, err := c.err.WriteString("error of " + tc.name + "\n"); err != nil {
				t.Fatal(err)
			}
			c.end()
			c.sent(soon)
			version, msgid, program := "0", "-", "app"
			if strings.HasPrefix(tc.format, "rfc5424") {
				version, msgid, program = "1", "app/001122334455", "app"
			}
			for _, m := range []struct{ severity, text string }{{"info", text}, {"err", "error of " + tc.name}} {
				await.Until(t, soon, m.severity, func() error {
					for line := range strings.Lines(output()) {
						f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
						if len(f) == 7 && strings.TrimSpace(f[6]) == strings.TrimSpace(m.text) {
							if got, want := strings.Join(f[:4], " ")+" "+f[5], tc.input+" local5."+m.severity+" "+version+" "+program+" "+msgid; got != want {
								t.Errorf("rsyslog read %q, want %q", got, want)
							}
							return nil
						}
					}
					return fmt.Errorf("not in\n%.2000s\n%+v", output(), placeOf(t, c))
				})
			}
		})
	}
}
