package stats

import "bytes"

// The parsers here are total: a line that is not understood is passed over, because a
// kernel may say more than this package knows. None of them allocates.

// number reads a decimal number that text begins with, and returns what follows it. A
// number that does not fit is the largest there is.
func number(text []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for ; i < len(text) && text[i] >= '0' && text[i] <= '9'; i++ {
		digit := uint64(text[i] - '0')
		if n > (1<<64-1-digit)/10 {
			n = 1<<64 - 1
			continue
		}
		n = n*10 + digit
	}
	return n, text[i:], i > 0
}

// single reads a file that holds one number; "max" and the largest number that cgroup
// version 1 knows mean no limit, which is 0.
func single(text []byte) uint64 {
	n, _, _ := number(bytes.TrimSpace(text))
	if n >= 1<<63-1<<20 {
		return 0
	}
	return n
}

// eachPair calls f with every "name number" line of text.
func eachPair(text []byte, f func(name []byte, n uint64)) {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			continue
		}
		if n, _, ok := number(line[i+1:]); ok {
			f(line[:i], n)
		}
	}
}

func parseCPUStat1(s *Sample, text []byte) {
	eachPair(text, func(name []byte, n uint64) {
		switch string(name) {
		case "nr_periods":
			s.CPU.Periods = n
		case "nr_throttled":
			s.CPU.Throttled = n
		case "throttled_time":
			s.CPU.ThrottledTime = n
		}
	})
	s.Has |= HasThrottling
}

func parseCPUUsage(s *Sample, text []byte) {
	s.CPU.Usage = single(text)
	s.Has |= HasCPU
}

func parseCPUUser(s *Sample, text []byte) { s.CPU.User = single(text) }
func parseCPUSys(s *Sample, text []byte)  { s.CPU.System = single(text) }

func parseCPUStat2(s *Sample, text []byte) {
	const usec = 1000
	eachPair(text, func(name []byte, n uint64) {
		switch string(name) {
		case "usage_usec":
			s.CPU.Usage = n * usec
		case "user_usec":
			s.CPU.User = n * usec
		case "system_usec":
			s.CPU.System = n * usec
		case "nr_periods":
			s.CPU.Periods = n
			s.Has |= HasThrottling
		case "nr_throttled":
			s.CPU.Throttled = n
		case "throttled_usec":
			s.CPU.ThrottledTime = n * usec
		}
	})
	s.Has |= HasCPU
}

func parseMemoryUsage(s *Sample, text []byte) {
	s.Memory.Usage = single(text)
	s.Has |= HasMemory
}

func parseMemoryPeak(s *Sample, text []byte)  { s.Memory.Peak = single(text) }
func parseMemoryLimit(s *Sample, text []byte) { s.Memory.Limit = single(text) }

// parseMemoryStat1 takes the hierarchical totals, as memory.usage_in_bytes does.
func parseMemoryStat1(s *Sample, text []byte) {
	eachPair(text, func(name []byte, n uint64) {
		switch string(name) {
		case "total_cache":
			s.Memory.Cache = n
		case "total_inactive_file":
			s.Memory.InactiveFile = n
		case "total_rss":
			s.Memory.RSS = n
		case "total_swap":
			s.Memory.Swap = n
		case "total_mapped_file":
			s.Memory.MappedFile = n
		case "total_pgfault":
			s.Memory.Faults = n
		case "total_pgmajfault":
			s.Memory.MajorFaults = n
		}
	})
}

func parseMemoryStat2(s *Sample, text []byte) {
	s.Memory.Unified = true
	eachPair(text, func(name []byte, n uint64) {
		switch string(name) {
		case "file":
			s.Memory.Cache = n
		case "inactive_file":
			s.Memory.InactiveFile = n
		case "anon":
			s.Memory.RSS = n
		case "file_mapped":
			s.Memory.MappedFile = n
		case "pgfault":
			s.Memory.Faults = n
		case "pgmajfault":
			s.Memory.MajorFaults = n
		}
	})
}

func parseSwap(s *Sample, text []byte) { s.Memory.Swap = single(text) }

func parsePids(s *Sample, text []byte) {
	s.Pids.Current = single(text)
	s.Has |= HasPids
}

func parsePidsLimit(s *Sample, text []byte) { s.Pids.Limit = single(text) }

// parseIO1 sums "major:minor Read n" lines over devices; the words come in either case.
func parseIO1(read, write *uint64, text []byte) {
	*read, *write = 0, 0
	for line := range bytes.Lines(text) {
		_, rest, ok := bytes.Cut(line, []byte{' '})
		if !ok {
			continue
		}
		op, value, ok := bytes.Cut(rest, []byte{' '})
		if !ok {
			continue
		}
		n, _, _ := number(value)
		switch {
		case bytes.EqualFold(op, []byte("Read")):
			*read += n
		case bytes.EqualFold(op, []byte("Write")):
			*write += n
		}
	}
}

func parseIOBytes1(s *Sample, text []byte) {
	parseIO1(&s.IO.ReadBytes, &s.IO.WriteBytes, text)
	s.Has |= HasIO
}

func parseIOServiced1(s *Sample, text []byte) { parseIO1(&s.IO.Reads, &s.IO.Writes, text) }

// parseIO2 sums "major:minor rbytes=n wbytes=n rios=n wios=n …" lines over devices.
func parseIO2(s *Sample, text []byte) {
	s.IO = IO{}
	for line := range bytes.Lines(text) {
		for field := range bytes.FieldsSeq(line) {
			name, value, ok := bytes.Cut(field, []byte{'='})
			if !ok {
				continue
			}
			n, _, _ := number(value)
			switch string(name) {
			case "rbytes":
				s.IO.ReadBytes += n
			case "wbytes":
				s.IO.WriteBytes += n
			case "rios":
				s.IO.Reads += n
			case "wios":
				s.IO.Writes += n
			}
		}
	}
	s.Has |= HasIO
}

// pressure reads the totals of the "some" and "full" lines.
func pressure(text []byte) (some, full uint64) {
	for line := range bytes.Lines(text) {
		_, total, ok := bytes.Cut(line, []byte("total="))
		if !ok {
			continue
		}
		n, _, _ := number(total)
		if bytes.HasPrefix(line, []byte("some")) {
			some = n
		} else {
			full = n
		}
	}
	return some, full
}

func parseCPUPressure(s *Sample, text []byte) {
	s.Pressure.CPUSome, _ = pressure(text)
	s.Has |= HasPressure
}

func parseMemoryPressure(s *Sample, text []byte) {
	s.Pressure.MemorySome, s.Pressure.MemoryFull = pressure(text)
}

func parseIOPressure(s *Sample, text []byte) {
	s.Pressure.IOSome, s.Pressure.IOFull = pressure(text)
}
