//go:build !failpoint

package fail

import "errors"

// Enabled reports whether this program was built with failpoints.
const Enabled = false

// Point does nothing in this build.
func Point(Name) error { return nil }

// Set fails in this build.
func Set(Name, Terms) error {
	return errors.New("failpoints are not in this program: build it with -tags failpoint")
}

// Status lists every failpoint; in this build nothing is set and nothing is counted.
func Status() []State {
	all := make([]State, 0, count)
	for _, n := range Names() {
		all = append(all, State{Name: n})
	}
	return all
}
