package api

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/awsjson"
	"berth.dev/berth/cluster/sched"
)

// Limits of a task definition (ECS developer guide and API model).
const (
	maxContainers      = 10
	maxDefinitionBytes = 64 << 10
	maxImageChars      = 255
	minMemory          = 6 // MiB, of one container
	minTaskCPU         = 128
	maxTaskCPU         = 196608
	maxConstraints     = 10
)

// definitionCheck is one group of rules of RegisterTaskDefinition.
type definitionCheck func(d *types.TaskDefinition) error

// checkDefinition applies all rules and writes task CPU and memory as plain
// integers, which some of the rules need.
func checkDefinition(d *types.TaskDefinition) error {
	for _, check := range []definitionCheck{
		checkFamily, checkContainerNames, checkTaskSize, checkContainerSizes,
		checkDefinitionNetwork, checkNamespaces, checkDependencies, checkVolumes,
		checkPlatform, checkConstraints,
	} {
		if err := check(d); err != nil {
			return err
		}
	}
	for i := range d.ContainerDefinitions {
		if err := checkContainer(d, &d.ContainerDefinitions[i]); err != nil {
			return err
		}
	}
	return nil
}

// requires tells whether the definition must be fit for a launch type.
func requires(d *types.TaskDefinition, c types.Compatibility) bool {
	return slices.Contains(d.RequiresCompatibilities, c)
}

func checkFamily(d *types.TaskDefinition) error {
	if family := aws.ToString(d.Family); !nameRule.MatchString(family) {
		return clientException("Family contains invalid characters: %s. Up to 255 letters, numbers, underscores, and hyphens are allowed.", clip(family))
	}
	if n := len(awsjson.Marshal(d)); n > maxDefinitionBytes {
		return clientException("Task definition size of %d bytes exceeds the limit of %d bytes.", n, maxDefinitionBytes)
	}
	return nil
}

func checkContainerNames(d *types.TaskDefinition) error {
	if len(d.ContainerDefinitions) == 0 {
		return clientException("Container list cannot be empty.")
	}
	if len(d.ContainerDefinitions) > maxContainers {
		return clientException("Task definition does not support more than %d container definitions.", maxContainers)
	}
	seen := make(map[string]bool)
	essential := false
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		name := aws.ToString(c.Name)
		switch {
		case name == "":
			return clientException("Container.name should not be null or empty.")
		case aws.ToString(c.Image) == "":
			return clientException("Container.image should not be null or empty.")
		case !nameRule.MatchString(name):
			return clientException("Container name %s is invalid. Up to 255 letters, numbers, underscores, and hyphens are allowed.", clip(name))
		case seen[name]:
			return clientException("Container names must be unique: '%s' is used more than once.", clip(name))
		}
		seen[name] = true
		essential = essential || c.Essential == nil || *c.Essential
		if err := checkImage(aws.ToString(c.Image)); err != nil {
			return err
		}
	}
	if !essential {
		return clientException("At least one container in a task definition must be marked as essential.")
	}
	return nil
}

func checkImage(image string) error {
	reference, digest, has := strings.Cut(image, "@")
	if len(reference) > maxImageChars {
		return clientException("Container.image repository and tag must be at most %d characters long.", maxImageChars)
	}
	if hex, ok := strings.CutPrefix(digest, "sha256:"); has && (!ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "") {
		return clientException("Container.image contains an invalid digest: only sha256 digests are supported.")
	}
	if reference == "" || strings.ContainsAny(image, " \t\n\"'\\") {
		return clientException("Container.image contains invalid characters.")
	}
	return nil
}

// checkTaskSize parses task CPU and memory and writes them back as integers.
func checkTaskSize(d *types.TaskDefinition) error {
	fargate := requires(d, types.CompatibilityFargate)
	cpu, memory := aws.ToString(d.Cpu), aws.ToString(d.Memory)
	if fargate && cpu == "" {
		return clientException("Fargate requires that 'cpu' be defined at the task level.")
	}
	if fargate && memory == "" {
		return clientException("Fargate requires that 'memory' be defined at the task level.")
	}
	var units, mib int64
	var err error
	if cpu != "" {
		if units, err = sched.ParseCPU(cpu); err != nil || !fargate && (units < minTaskCPU || units > maxTaskCPU) {
			return clientException("Invalid 'cpu' setting for task. It must be between %d and %d units, or as in '1 vCPU'.", minTaskCPU, maxTaskCPU)
		}
		d.Cpu = aws.String(strconv.FormatInt(units, 10))
	}
	if memory != "" {
		if mib, err = sched.ParseMemory(memory); err != nil || mib < minMemory {
			return clientException("Invalid 'memory' setting for task. It must be at least %d MiB, or as in '1 GB'.", minMemory)
		}
		d.Memory = aws.String(strconv.FormatInt(mib, 10))
	}
	if fargate && !fargateSize(units, mib) {
		return clientException("No Fargate configuration exists for given values.")
	}
	return nil
}

// fargateSize tells whether a pair of CPU units and MiB is one of Fargate's
// (ECS developer guide, "Task size").
func fargateSize(cpu, memory int64) bool {
	if cpu == 256 {
		return memory == 512 || memory == 1024 || memory == 2048
	}
	for _, s := range []struct{ cpu, from, to, step int64 }{
		{512, 1024, 4096, 1024}, {1024, 2048, 8192, 1024}, {2048, 4096, 16384, 1024},
		{4096, 8192, 30720, 1024}, {8192, 16384, 61440, 4096}, {16384, 32768, 122880, 8192},
	} {
		if s.cpu == cpu {
			return memory >= s.from && memory <= s.to && (memory-s.from)%s.step == 0
		}
	}
	return false
}

func checkContainerSizes(d *types.TaskDefinition) error {
	var cpu, memory int64
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		name := aws.ToString(c.Name)
		if c.Memory == nil && c.MemoryReservation == nil && d.Memory == nil {
			return clientException("Invalid setting for container '%s'. At least one of 'memory' or 'memoryReservation' must be specified.", name)
		}
		for what, v := range map[string]*int32{"memory": c.Memory, "memoryReservation": c.MemoryReservation} {
			if v != nil && *v < minMemory {
				return clientException("Invalid setting for container '%s'. '%s' must be at least %d MiB.", name, what, minMemory)
			}
		}
		if c.Memory != nil && c.MemoryReservation != nil && *c.Memory <= *c.MemoryReservation {
			return clientException("Invalid setting for container '%s'. 'memory' must be greater than 'memoryReservation'.", name)
		}
		if c.Cpu < 0 {
			return clientException("Invalid setting for container '%s'. 'cpu' must not be negative.", name)
		}
		cpu += int64(c.Cpu)
		memory += int64(aws.ToInt32(cmp.Or(c.MemoryReservation, c.Memory)))
	}
	if d.Cpu != nil && cpu > number(d.Cpu) {
		return clientException("The sum of the containers' 'cpu' (%d) exceeds the 'cpu' of the task (%s).", cpu, *d.Cpu)
	}
	if d.Memory == nil {
		return nil
	}
	if memory > number(d.Memory) {
		return clientException("The sum of the containers' 'memory' (%d) exceeds the 'memory' of the task (%s).", memory, *d.Memory)
	}
	for i := range d.ContainerDefinitions {
		if c := &d.ContainerDefinitions[i]; int64(aws.ToInt32(c.Memory)) > number(d.Memory) {
			return clientException("Invalid setting for container '%s'. Its 'memory' exceeds the 'memory' of the task (%s).", *c.Name, *d.Memory)
		}
	}
	return nil
}

// number is a task size that checkTaskSize has written.
func number(s *string) int64 {
	n, err := strconv.ParseInt(aws.ToString(s), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func checkNamespaces(d *types.TaskDefinition) error {
	if requires(d, types.CompatibilityFargate) {
		if d.PidMode == types.PidModeHost {
			return clientException("Tasks using the Fargate launch type do not support pidMode 'host'. The supported value for pidMode is 'task'.")
		}
		if d.IpcMode != "" {
			return clientException("Tasks using the Fargate launch type do not support ipcMode.")
		}
	}
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		for _, s := range c.SystemControls {
			ns := aws.ToString(s.Namespace)
			switch {
			case ns == "" || s.Value == nil:
				return clientException("SystemControls of container '%s' need a namespace and a value.", *c.Name)
			case strings.HasPrefix(ns, "net.") && d.NetworkMode == types.NetworkModeHost:
				return clientException("The system control %s of container '%s' is not supported with networkMode 'host'.", clip(ns), *c.Name)
			case ipcControl(ns) && d.IpcMode == types.IpcModeHost:
				return clientException("The system control %s of container '%s' is not supported with ipcMode 'host'.", clip(ns), *c.Name)
			case !strings.HasPrefix(ns, "net.") && !ipcControl(ns):
				return clientException("The system control %s of container '%s' is not supported: only those of network and IPC namespaces are.", clip(ns), *c.Name)
			}
		}
	}
	return nil
}

// ipcControl tells whether a sysctl belongs to the IPC namespace (ECS API).
func ipcControl(name string) bool {
	return strings.HasPrefix(name, "fs.mqueue.") || slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	}, name)
}

func checkDependencies(d *types.TaskDefinition) error {
	index := make(map[string]int)
	for i := range d.ContainerDefinitions {
		index[*d.ContainerDefinitions[i].Name] = i
	}
	edges := make([][]int, len(d.ContainerDefinitions))
	for i := range d.ContainerDefinitions {
		c := &d.ContainerDefinitions[i]
		for _, dep := range c.DependsOn {
			j, ok := index[aws.ToString(dep.ContainerName)]
			if !ok {
				return clientException("Cannot depend on container + '%s' because it does not exist", clip(aws.ToString(dep.ContainerName)))
			}
			target := &d.ContainerDefinitions[j]
			essential := target.Essential == nil || *target.Essential
			switch dep.Condition {
			case types.ContainerConditionComplete, types.ContainerConditionSuccess:
				if essential {
					return clientException("A container cannot depend on essential container '%s' with condition %s.", *target.Name, dep.Condition)
				}
			case types.ContainerConditionHealthy:
				if target.HealthCheck == nil {
					return clientException("A container cannot depend on container '%s' with condition HEALTHY because it has no health check.", *target.Name)
				}
			}
			edges[i] = append(edges[i], j)
		}
		for _, from := range c.VolumesFrom {
			j, ok := index[aws.ToString(from.SourceContainer)]
			if !ok || i == j {
				return clientException("Invalid 'volumesFrom' of container '%s': the container '%s' does not exist.", *c.Name, clip(aws.ToString(from.SourceContainer)))
			}
			edges[i] = append(edges[i], j)
		}
		for _, link := range c.Links {
			name, _, _ := strings.Cut(link, ":")
			j, ok := index[name]
			if !ok || i == j {
				return clientException("Invalid 'links' of container '%s': the container '%s' does not exist.", *c.Name, clip(name))
			}
			edges[i] = append(edges[i], j)
		}
	}
	if i := cycle(edges); i >= 0 {
		return clientException("The dependencies of container '%s' have a cycle.", *d.ContainerDefinitions[i].Name)
	}
	return nil
}

// cycle returns a node on a cycle of the graph, or -1.
func cycle(edges [][]int) int {
	const (
		unseen = iota
		open
		done
	)
	state := make([]int, len(edges))
	var visit func(i int) int
	visit = func(i int) int {
		state[i] = open
		for _, j := range edges[i] {
			if state[j] == open {
				return j
			}
			if state[j] == unseen {
				if at := visit(j); at >= 0 {
					return at
				}
			}
		}
		state[i] = done
		return -1
	}
	for i := range edges {
		if state[i] == unseen {
			if at := visit(i); at >= 0 {
				return at
			}
		}
	}
	return -1
}

func checkPlatform(d *types.TaskDefinition) error {
	if s := d.EphemeralStorage; s != nil && (s.SizeInGiB < 21 || s.SizeInGiB > 200) {
		return clientException("Ephemeral storage must be between 21 and 200 GiB.")
	}
	if p := d.ProxyConfiguration; p != nil && !slices.ContainsFunc(d.ContainerDefinitions, func(c types.ContainerDefinition) bool {
		return aws.ToString(c.Name) == aws.ToString(p.ContainerName)
	}) {
		return clientException("The container '%s' of the proxy configuration does not exist.", clip(aws.ToString(p.ContainerName)))
	}
	return nil
}

func checkConstraints(d *types.TaskDefinition) error {
	if len(d.PlacementConstraints) > maxConstraints {
		return clientException("Task definition does not support more than %d placement constraints.", maxConstraints)
	}
	if len(d.PlacementConstraints) > 0 && requires(d, types.CompatibilityFargate) {
		return clientException("Fargate task definitions do not support placement constraints.")
	}
	for _, c := range d.PlacementConstraints {
		if c.Type != types.TaskDefinitionPlacementConstraintTypeMemberOf {
			return clientException("Invalid placement constraint type %s: a task definition supports memberOf only.", clip(string(c.Type)))
		}
		if _, err := sched.ParseQuery(aws.ToString(c.Expression)); err != nil {
			return clientException("Invalid expression of a placement constraint: %s", err)
		}
	}
	return nil
}
