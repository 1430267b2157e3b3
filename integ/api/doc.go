// Package api holds the tests of the public ECS API as its users meet it: through the
// AWS SDK for Go, the aws command line and boto3, over the network, with simulated
// container instances. It has no code of its own.
package api
