package tmds

import "time"

// Stats is what a container uses, in the form of the Docker Engine's statistics. Those of
// version 4 also have NetworkRates.
type Stats struct {
	Read     time.Time `json:"read"`
	PreRead  time.Time `json:"preread"`
	NumProcs uint32    `json:"num_procs"`
	Pids     struct {
		Current uint64 `json:"current,omitempty"`
		Limit   uint64 `json:"limit,omitempty"`
	} `json:"pids_stats"`
	Block        BlockIO                 `json:"blkio_stats"`
	CPU          CPU                     `json:"cpu_stats"`
	PreCPU       CPU                     `json:"precpu_stats"`
	Memory       Memory                  `json:"memory_stats"`
	Name         string                  `json:"name,omitempty"`
	ID           string                  `json:"id,omitempty"`
	Networks     map[string]NetworkStats `json:"networks,omitempty"`
	NetworkRates *NetworkRates           `json:"network_rate_stats,omitempty"`
}

// BlockIO is what was read from and written to block devices.
type BlockIO struct {
	ServiceBytes []BlockEntry `json:"io_service_bytes_recursive"`
	Serviced     []BlockEntry `json:"io_serviced_recursive"`
}

// BlockEntry is one count of one device.
type BlockEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

// CPU is CPU time in nanoseconds.
type CPU struct {
	Usage struct {
		Total  uint64   `json:"total_usage"`
		PerCPU []uint64 `json:"percpu_usage,omitempty"`
		Kernel uint64   `json:"usage_in_kernelmode"`
		User   uint64   `json:"usage_in_usermode"`
	} `json:"cpu_usage"`
	System     uint64 `json:"system_cpu_usage,omitempty"`
	Online     uint32 `json:"online_cpus,omitempty"`
	Throttling struct {
		Periods   uint64 `json:"periods"`
		Throttled uint64 `json:"throttled_periods"`
		Time      uint64 `json:"throttled_time"`
	} `json:"throttling_data"`
}

// Memory is memory in bytes.
type Memory struct {
	Usage    uint64            `json:"usage,omitempty"`
	MaxUsage uint64            `json:"max_usage,omitempty"`
	Stats    map[string]uint64 `json:"stats,omitempty"`
	Limit    uint64            `json:"limit,omitempty"`
}

// NetworkStats counts what an interface carried.
type NetworkStats struct {
	RxBytes   uint64 `json:"rx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxErrors  uint64 `json:"rx_errors"`
	RxDropped uint64 `json:"rx_dropped"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	TxErrors  uint64 `json:"tx_errors"`
	TxDropped uint64 `json:"tx_dropped"`
}

// NetworkRates are bytes a second over all interfaces.
type NetworkRates struct {
	Rx float64 `json:"rx_bytes_per_sec"`
	Tx float64 `json:"tx_bytes_per_sec"`
}
