// Package vm runs tests in a virtual machine, for what the machine that runs the tests
// does not have: cgroup version 2 alone, the kernel's NFS client and server, project
// quotas, hardware that comes and goes.
//
// "make vm-test" builds the machine's image once for each content of the list of
// packages and of this package's recipe, into .cache/vm, boots it on an emulated
// processor, and runs the tests of package guest in it, whose results become subtests of
// TestGuest. The disk is thrown away afterwards.
//
// To add a test, write a test function in integ/vm/guest; it is root in the machine and
// may do what it likes there, beside the others if it calls T.Parallel. One that needs
// only tasks is a line in taskTests, which share a system and run at the same time. What it needs of the image is a line in
// packaging/packages.txt with the purpose "guest". What it needs of the outside, such as
// a device, it asks for with guest.Ask; the answers are in plug.go.
package vm
