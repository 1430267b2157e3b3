package fail

// EnvSettings is the environment variable that is read when the first point is
// passed, in programs built with failpoints.
const EnvSettings = "BERTH_FAILPOINTS"

// State is what is set at one failpoint and how often it was passed.
type State struct {
	Name   Name
	Terms  Terms // those that are left
	Passed int
}
