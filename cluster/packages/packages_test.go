package packages

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestShelf(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"berth-agent_0.9.0_amd64.deb", "berth-agent_0.10.0_amd64.deb", "berth-agent_0.11.0_arm64.deb", "berth_0.12.0_amd64.deb",
		"berth-agent-0.9.1-1.x86_64.rpm", "berth-agent-0.9.1-1.aarch64.rpm", "berth-agent_1_amd64.deb", "SHA256SUMS", "berth-agent_0.13.0_amd64.deb.tmp",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "berth-agent_0.14.0_amd64.deb")); err != nil {
		t.Fatal(err)
	}
	s := New(dir)
	for _, c := range []struct {
		kind, arch string
		want       []string
	}{
		{"deb", "x86_64", []string{"berth-agent_0.10.0_amd64.deb", "berth-agent_0.9.0_amd64.deb"}},
		{"deb", "arm64", []string{"berth-agent_0.11.0_arm64.deb"}},
		{"rpm", "aarch64", []string{"berth-agent-0.9.1-1.aarch64.rpm"}},
		{"rpm", "riscv64", nil},
	} {
		files, err := s.For(c.kind, c.arch)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range files {
			got = append(got, f.Name)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s for %s (-want +got):\n%s", c.kind, c.arch, d)
		}
	}
	if files, err := New(filepath.Join(dir, "none")).For("deb", "amd64"); err != nil || files != nil {
		t.Errorf("a folder that is not there: %v, %v", files, err)
	}
	first, err := s.Sum(File{Name: "berth-agent_0.9.0_amd64.deb"})
	if err != nil || len(first.SHA256) != 64 {
		t.Fatalf("%+v, %v", first, err)
	}
	if err := os.WriteFile(filepath.Join(dir, first.Name), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Sum(first); err != nil || again.SHA256 == first.SHA256 {
		t.Errorf("the sum of another file is %+v, %v", again, err)
	}
	for name, want := range map[string]int{
		"berth-agent_0.10.0_amd64.deb": 200, "SHA256SUMS": 404, "../packages.go": 404, "berth-agent_0.14.0_amd64.deb": 404, "berth-agent_7.0.0_amd64.deb": 404,
	} {
		w := httptest.NewRecorder()
		s.Serve(w, httptest.NewRequest("GET", "/x", nil), name)
		if w.Code != want || want == 200 && w.Body.String() != name {
			t.Errorf("%s: %d %q", name, w.Code, w.Body)
		}
	}
}
