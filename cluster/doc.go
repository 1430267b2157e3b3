// Package cluster is the central cluster that agents register with, as one
// value: Open starts it in this process and Close ends it.
//
// One listener serves everything: the ECS API and STS GetCallerIdentity at
// "/", the agents' websockets at "/ws" (ACS) and "/tcs/ws" (TCS), keys for
// new container instances at "/berth/v1/instance-keys", what containers use at
// "/berth/v1/usage", and "/health" and "/metrics", which alone need no
// signature. On a loopback address that is plain HTTP; on any other it is TLS
// with a certificate of the cluster's own CA.
//
// In the cluster's directory are
//
//	etcd/          the records, unless an external etcd is used
//	root.key       what the secrets of all access keys are derived from, 0600
//	operator.json  the operator's key and where the API is, 0600
//	tls/           ca.pem, ca.key, server.pem, server.key, if TLS is used
//	lock           held by the process that uses the directory
//
// Clusters on one external etcd need the same root.key.
package cluster
