package tmds

// FaultRequest is what a task asks of fault injection; which members there are depends on
// the fault.
type FaultRequest struct {
	// Of a blackhole.
	Port        *uint16 `json:"Port,omitempty"`
	Protocol    *string `json:"Protocol,omitempty"`    // tcp or udp
	TrafficType *string `json:"TrafficType,omitempty"` // ingress or egress

	DelayMilliseconds  *uint64 `json:"DelayMilliseconds,omitempty"`
	JitterMilliseconds *uint64 `json:"JitterMilliseconds,omitempty"`
	LossPercent        *uint64 `json:"LossPercent,omitempty"`

	Sources         []string `json:"Sources,omitempty"`
	SourcesToFilter []string `json:"SourcesToFilter,omitempty"`
	FlowsPercent    *uint64  `json:"FlowsPercent,omitempty"`
}

// FaultResponse is the answer: a status, or an error.
type FaultResponse struct {
	Status string `json:"Status,omitempty"` // running, stopped or not-running
	Error  string `json:"Error,omitempty"`
}
