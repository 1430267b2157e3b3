package api

// taskOperations are the operations on tasks and container instances.
func (a *API) taskOperations() map[string]operation {
	out := make(map[string]operation)
	for _, o := range []operation{
		op("RunTask", a.RunTask),
		op("StartTask", a.StartTask),
		op("StopTask", a.StopTask),
		op("DescribeTasks", a.DescribeTasks),
		op("ListTasks", a.ListTasks),
		op("DescribeContainerInstances", a.DescribeContainerInstances),
		op("ListContainerInstances", a.ListContainerInstances),
		op("DeregisterContainerInstance", a.DeregisterContainerInstance),
		op("UpdateContainerAgent", a.UpdateContainerAgent),
		agentOp("RegisterContainerInstance", a.RegisterContainerInstance),
		agentOp("UpdateContainerInstancesState", a.UpdateContainerInstancesState),
		agentOp("DiscoverPollEndpoint", a.DiscoverPollEndpoint),
		agentOp("SubmitTaskStateChange", a.SubmitTaskStateChange),
		agentOp("SubmitContainerStateChange", a.SubmitContainerStateChange),
		agentOp("SubmitAttachmentStateChanges", a.SubmitAttachmentStateChanges),
	} {
		out[o.name] = o
	}
	return out
}
