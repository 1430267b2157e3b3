package stats

import (
	"math"
	"math/bits"
)

// Set is the minimum, maximum, sum and count of measured values.
type Set struct {
	Min, Max, Sum float64
	Count         int64
}

func (s *Set) add(v float64) {
	if s.Count == 0 || v < s.Min {
		s.Min = v
	}
	if s.Count == 0 || v > s.Max {
		s.Max = v
	}
	s.Sum += v
	s.Count++
}

// CounterSet is the same of values of a counter. A sum that does not fit stays at the
// largest number.
type CounterSet struct {
	Min, Max, Sum uint64
	Count         int64
}

func (s *CounterSet) add(v uint64) {
	if s.Count == 0 || v < s.Min {
		s.Min = v
	}
	s.Max = max(s.Max, v)
	sum, carry := bits.Add64(s.Sum, v, 0)
	if carry != 0 {
		sum = math.MaxUint64
	}
	s.Sum = sum
	s.Count++
}

// Sets is what a container used between two takings.
type Sets struct {
	Has     Has
	CPU     Set // percent of the whole machine
	Memory  Set // MiB in use
	Read    CounterSet
	Write   CounterSet
	Network NetworkSets
}

// NetworkSets are bytes, packets, and bytes a second.
type NetworkSets struct {
	RxBytes, RxPackets, RxErrors, RxDropped CounterSet
	TxBytes, TxPackets, TxErrors, TxDropped CounterSet
	RxRate, TxRate                          Set
}

// add enters one sample; before is the one before it, or nil. It is where the units of
// the protocol are made (agent protocol, TCS units).
func (s *Sets) add(now, before *Sample, cpus int) {
	if before != nil {
		if wall := now.Mono - before.Mono; wall > 0 {
			if now.Has&before.Has&HasCPU != 0 {
				used := float64(now.CPU.Usage-before.CPU.Usage) / float64(cpus)
				s.CPU.add(100 * used / float64(wall))
			}
			if now.Has&before.Has&HasNetwork != 0 {
				seconds := wall.Seconds()
				s.Network.RxRate.add(float64(now.Network.RxBytes-before.Network.RxBytes) / seconds)
				s.Network.TxRate.add(float64(now.Network.TxBytes-before.Network.TxBytes) / seconds)
			}
		}
	}
	s.Has |= now.Has
	if now.Has&HasMemory != 0 {
		s.Memory.add(float64(now.Memory.Used() >> 20))
	}
	if now.Has&HasIO != 0 {
		s.Read.add(now.IO.ReadBytes)
		s.Write.add(now.IO.WriteBytes)
	}
	if now.Has&HasNetwork != 0 {
		n, v := &s.Network, &now.Network
		n.RxBytes.add(v.RxBytes)
		n.RxPackets.add(v.RxPackets)
		n.RxErrors.add(v.RxErrors)
		n.RxDropped.add(v.RxDropped)
		n.TxBytes.add(v.TxBytes)
		n.TxPackets.add(v.TxPackets)
		n.TxErrors.add(v.TxErrors)
		n.TxDropped.add(v.TxDropped)
	}
}
