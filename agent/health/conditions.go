package health

// Conditions of the agent.
const (
	StateFailing       Code = "state-failing"
	StateLost          Code = "state-lost"
	RuntimeUnavailable Code = "runtime-unavailable"
	NotRegistered      Code = "not-registered"
	InstanceInactive   Code = "instance-inactive"
	ClusterUnreachable Code = "cluster-unreachable"
	ReportsDelayed     Code = "reports-delayed"
	RemovalFailing     Code = "removal-failing"
	DiskLow            Code = "disk-low"
	ClockSkew          Code = "clock-skew"
	NetworkUnavailable Code = "network-unavailable"
)

// Agent returns the definitions of the agent's conditions.
func Agent() []Definition {
	return []Definition{
		{StateFailing, High, "make space on, or repair, the filesystem of the state directory (ECS_DATADIR); the agent goes on by itself", nil},
		{RuntimeUnavailable, High, "start containerd, or see its log; running tasks go on meanwhile", nil},
		{NotRegistered, High, "check ECS_BACKEND_HOST, the credentials, and that the cluster of ECS_CLUSTER exists", nil},
		{NetworkUnavailable, High, "see the text for what the kernel lacks; tasks with network mode host still run", nil},
		{InstanceInactive, Medium, "the cluster has deregistered this instance; register it again, or stop the agent", nil},
		{ClusterUnreachable, Medium, "check the network and ECS_BACKEND_HOST; running tasks go on meanwhile", []Code{NotRegistered}},
		{ReportsDelayed, Medium, "state changes wait in the outbox and are sent when the cluster answers", []Code{ClusterUnreachable, StateFailing}},
		{RemovalFailing, Medium, "what a stopped task has left cannot be removed and is tried again; see its events", []Code{RuntimeUnavailable}},
		{DiskLow, Medium, "make space, or remove images that are not used; new tasks are refused until then", nil},
		{ClockSkew, Medium, "set the clock of this host; requests with a wrong time are refused", nil},
		{StateLost, Low, "the damaged database is kept beside the new one in the state directory; remove it when it is not needed", nil},
	}
}
