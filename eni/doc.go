// Package eni holds what tasks and CNI plugins need of network interfaces and the
// namespaces that they live in: making, pinning, entering and removing a network
// namespace without executing a program. It knows neither containers nor the agent
// protocols, so that a CNI plugin can be built from it.
package eni
