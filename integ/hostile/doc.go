// Package hostile holds the tests that send agent and cluster what no honest peer sends:
// malformed, oversized, contradictory and never-ending requests and frames, by the
// thousand. Each must be refused clearly or have no effect; nothing may crash, grow or be
// lost, and whoever is served after it is served as before. The package has no code of
// its own.
package hostile
