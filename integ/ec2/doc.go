// Package ec2 tests the agent on a machine that has an instance metadata service.
package ec2
