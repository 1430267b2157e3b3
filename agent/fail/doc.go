// Package fail holds the failpoints of the agent: named places where a test can have
// the program fail, wait, panic or die. They exist only in programs built with the
// tag "failpoint"; elsewhere Point is an empty function that the compiler inlines away.
//
//	if err := fail.Point(fail.IntakeBeforeCommit); err != nil {
//		return err
//	}
//
// The names form a closed table, so that a misspelt one does not compile and a crash
// test can visit them all. What happens at a point is set with terms:
//
//	BERTH_FAILPOINTS="report.before-submit=2*off->1*error(no);exit.observed=exit"
//
// Terms are joined by "->" and used up from left to right. Each is one action,
// with an optional count in front ("2*"); without a count it lasts for ever, and
// after the last counted term the point is off. Actions:
//
//	off        nothing happens
//	error(x)   Point returns an error with the text x
//	delay(n)   Point waits n milliseconds
//	panic(x)   Point panics with the text x; "(x)" may be left out
//	exit       the process is ended by SIGKILL, with no deferred work, as a crash would
package fail
