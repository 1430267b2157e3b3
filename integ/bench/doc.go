// Package bench measures what users wait for, and puts each figure beside what a bare
// containerd client needs for the same thing, measured in the same run on the same
// containerd. Run it with "make bench"; it has benchmarks only, no tests that a slow
// machine could fail.
package bench
