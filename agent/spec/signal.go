package spec

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Real-time signals as the C library numbers them for programs (signal(7)).
const (
	sigRTMin = 34
	sigRTMax = 64
)

// StopSignal is the signal that asks a container to end: the definition's, else the
// image's, else SIGTERM. It is a number or a name with or without "SIG".
func StopSignal(configured, image string) (syscall.Signal, error) {
	s := configured
	if s == "" {
		s = image
	}
	if s == "" {
		return syscall.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, invalid("stopSignal: %q is not a signal", s)
		}
		return syscall.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	for base, number := range map[string]int{"SIGRTMIN": sigRTMin, "SIGRTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil {
				break
			}
		}
		if n += number; n >= sigRTMin && n <= sigRTMax {
			return syscall.Signal(n), nil
		}
	}
	return 0, invalid("stopSignal: %q is not a signal", s)
}
