package system

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/cmd/berth/internal/screen"
)

// LogEnds are the sizes of the logs, as they are now.
func (s *System) LogEnds() map[string]int64 {
	ends := map[string]int64{}
	for _, name := range []string{Containerd, Cluster, Agent} {
		if info, err := os.Stat(s.Program(name).LogFile); err == nil { // else it has none yet
			ends[name] = info.Size()
		}
	}
	return ends
}

// Follow shows what the background programs have logged since the logs ended at from,
// each line behind the name of its program, until ctx ends, which is no error, or one
// of the programs does.
func (s *System) Follow(ctx context.Context, from map[string]int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	var ended error
	var once sync.Once
	for name, colour := range map[string]screen.Colour{Containerd: screen.Faint, Cluster: screen.Warn, Agent: screen.Good} {
		p := s.Program(name)
		if proc, err := p.Running(); err != nil || proc == nil {
			continue // the host's own containerd
		}
		prefix := s.Screen.Colour(colour, fmt.Sprintf("%-10s |", name))
		all.Go(func() {
			err := s.followOne(ctx, name, prefix, from[name])
			if err != nil {
				once.Do(func() { ended = err })
			}
			cancel()
		})
	}
	<-ctx.Done()
	all.Wait()
	return ended
}

// followOne shows one log from an offset on.
func (s *System) followOne(ctx context.Context, name, prefix string, from int64) error {
	p := s.Program(name)
	f, err := os.Open(p.LogFile)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	lines := bufio.NewReader(f)
	part := ""
	for {
		line, err := lines.ReadString('\n')
		part += line
		if err == nil {
			s.Screen.Printf("%s %s\n", prefix, strings.TrimRight(part, "\n"))
			part = ""
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		proc, err := p.Running()
		if err != nil {
			return err
		}
		if proc == nil {
			return fmt.Errorf("%s has ended; its log is %s", name, p.LogFile)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
