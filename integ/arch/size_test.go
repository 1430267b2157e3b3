package arch

import (
	"os"
	"path/filepath"
	"testing"

	"berth.dev/berth/integ/host"
)

// sizeLimit is what the agent's program may have, in bytes. It had 27 MB when this was
// written; a third more shows that something linked calls methods by a name that is known
// only at run time, as package text/template does: then every method of every type is
// kept. "go build -ldflags=-dumpdep" marks what does with <ReflectMethod>.
const sizeLimit = 34e6

// TestAgentSize builds the agent as it is shipped.
func TestAgentSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth-agent")
	host.Shipped(t, path, module+"/cmd/berth-agent")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > sizeLimit {
		t.Errorf("berth-agent has %.1f MB, more than %.0f", float64(st.Size())/1e6, sizeLimit/1e6)
	}
}
