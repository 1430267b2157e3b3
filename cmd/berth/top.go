package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.dev/berth/cluster/telemetry"
	"berth.dev/berth/cmd/berth/internal/operator"
	"berth.dev/berth/cmd/berth/internal/screen"
)

const (
	topPeriod = 2 * time.Second // between two looks; agents tell something new every 20 s
	sparks    = 20              // points of a curve
	freshFor  = 90 * time.Second
)

// order is a column that the table is sorted by, and the key that chooses it.
type order struct {
	name string
	key  byte
	less func(a, b *usageRow) int
}

var orders = []order{
	{"cpu", 'c', func(a, b *usageRow) int { return cmp.Compare(b.last.CPU, a.last.CPU) }},
	{"memory", 'm', func(a, b *usageRow) int { return cmp.Compare(b.last.Memory, a.last.Memory) }},
	{"network", 'n', func(a, b *usageRow) int {
		return cmp.Compare(b.last.RxRate+b.last.TxRate, a.last.RxRate+a.last.TxRate)
	}},
	{"task", 't', func(a, b *usageRow) int { return cmp.Compare(a.c.TaskARN+a.c.Name, b.c.TaskARN+b.c.Name) }},
}

func (a *app) top() *cobra.Command {
	by := orders[0].name
	once := false
	c := &cobra.Command{
		Use:   "top",
		Short: "Show what the cluster's containers use, as it changes",
		Long: `Shows processor, memory and network use of every running container, with its
last minutes as a curve. Agents tell the cluster every 20 seconds; a container
shows up half a minute after its start.

On a terminal the keys c, m, n and t sort by CPU, memory, network and task, and
q ends.`,
		Example: `  berth top
  berth top --sort memory
  berth top --once --json | jq '.[] | {name, cpuPercent}'`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			i := slices.IndexFunc(orders, func(o order) bool { return o.name == by })
			if i < 0 {
				return &exit{exitUsage, fmt.Errorf("--sort %q is not one of cpu, memory, network, task", by)}
			}
			api, cluster, err := a.api()
			if err != nil {
				return err
			}
			if once || a.screen.JSON || !a.screen.Terminal(a.screen.Out) {
				return a.topOnce(c.Context(), api, cluster, orders[i])
			}
			return a.topLive(c.Context(), api, cluster, orders[i])
		},
	}
	c.Flags().StringVar(&by, "sort", by, "sort by `column`: cpu, memory, network or task")
	c.Flags().BoolVar(&once, "once", false, "print the table once and end")
	a.clusterFlag(c)
	return c
}

// usageRow is one container with its last point.
type usageRow struct {
	c    telemetry.Container
	last telemetry.Point
}

// usageRows are the containers that were heard of lately, in order.
func usageRows(list []telemetry.Container, o order, now time.Time) []usageRow {
	rows := make([]usageRow, 0, len(list))
	for _, c := range list {
		if n := len(c.Points); n > 0 && now.Sub(c.Points[n-1].At) < freshFor {
			rows = append(rows, usageRow{c, c.Points[n-1]})
		}
	}
	slices.SortStableFunc(rows, func(x, y usageRow) int { return o.less(&x, &y) })
	return rows
}

func (a *app) topOnce(ctx context.Context, api *operator.Client, cluster string, o order) error {
	list, err := api.Usage(ctx, cluster, time.Time{})
	if err != nil {
		return err
	}
	rows := usageRows(list, o, time.Now())
	if a.screen.JSON {
		return a.screen.Value(usageViews(rows))
	}
	if len(rows) == 0 {
		a.screen.Note("No container of cluster %s has told what it uses yet; agents do so every 20 seconds", cluster)
		return nil
	}
	a.screen.Table(a.usageTable(rows))
	return nil
}

// usageView is a container's use in Berth's JSON.
type usageView struct {
	Task       string    `json:"taskArn"`
	Name       string    `json:"name"`
	Instance   string    `json:"containerInstanceArn"`
	At         time.Time `json:"at"`
	CPU        float32   `json:"cpuPercent"` // of all processors of the instance
	Memory     float32   `json:"memoryMiB"`
	RxRate     float32   `json:"rxBytesPerSecond"`
	TxRate     float32   `json:"txBytesPerSecond"`
	ReadBytes  int64     `json:"storageReadBytes"`
	WriteBytes int64     `json:"storageWrittenBytes"`
}

func usageViews(rows []usageRow) []usageView {
	views := make([]usageView, 0, len(rows))
	for _, r := range rows {
		views = append(views, usageView{
			Task: r.c.TaskARN, Name: r.c.Name, Instance: r.c.InstanceARN, At: r.last.At, CPU: r.last.CPU, Memory: r.last.Memory,
			RxRate: r.last.RxRate, TxRate: r.last.TxRate, ReadBytes: r.last.ReadBytes, WriteBytes: r.last.WriteBytes,
		})
	}
	return views
}

func (a *app) usageTable(rows []usageRow) *screen.Table {
	t := &screen.Table{}
	t.Row("TASK", "CONTAINER", "CPU %", "", "MEMORY", "", "RECEIVED/S", "SENT/S")
	for i := range rows {
		r := &rows[i]
		var cpu, memory []float64
		for _, p := range r.c.Points {
			cpu, memory = append(cpu, float64(p.CPU)), append(memory, float64(p.Memory))
		}
		colour := screen.Good
		if r.last.CPU > 80 {
			colour = screen.Warn
		}
		t.Row(operator.Short(&r.c.TaskARN), r.c.Name, fmt.Sprintf("%5.1f", r.last.CPU), a.screen.Colour(colour, screen.Spark(cpu, 1, sparks)),
			screen.Bytes(int64(r.last.Memory*(1<<20))), a.screen.Colour(screen.Faint, screen.Spark(memory, 1, sparks)),
			screen.Bytes(int64(r.last.RxRate)), screen.Bytes(int64(r.last.TxRate)))
	}
	return t
}

// topLive draws the table again and again until q, Ctrl-C or the end of the input.
func (a *app) topLive(ctx context.Context, api *operator.Client, cluster string, o order) (err error) {
	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return fmt.Errorf("the terminal cannot be read key by key: %w; see: berth top --once", err)
	}
	const enter, leave = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l" // another page, no cursor; and back
	fmt.Fprint(a.screen.Out, enter)
	defer func() {
		fmt.Fprint(a.screen.Out, leave)
		err = errors.Join(err, term.Restore(int(os.Stdin.Fd()), old))
	}()
	keys := make(chan byte)
	go readKeys(os.Stdin, keys)
	tick := time.NewTicker(topPeriod)
	defer tick.Stop()
	for {
		list, err := api.Usage(ctx, cluster, time.Time{})
		if ctx.Err() != nil {
			return nil
		}
		a.drawTop(usageRows(list, o, time.Now()), cluster, o, err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case k, open := <-keys:
			if !open || k == 'q' || k == 3 { // Ctrl-C is a key in raw mode
				return nil
			}
			if i := slices.IndexFunc(orders, func(o order) bool { return o.key == k }); i >= 0 {
				o = orders[i]
			}
		}
	}
}

func readKeys(r io.Reader, keys chan<- byte) {
	defer close(keys)
	var b [1]byte
	for {
		if n, err := r.Read(b[:]); err != nil || n == 0 {
			return
		}
		keys <- b[0]
	}
}

// drawTop writes one picture over the one before.
func (a *app) drawTop(rows []usageRow, cluster string, o order, err error) {
	var b strings.Builder
	fmt.Fprintf(&b, "Cluster %s: %d containers, by %s (c m n t sort, q ends)\n\n", cluster, len(rows), o.name)
	if err != nil {
		fmt.Fprintf(&b, "%s\n\n", a.screen.Colour(screen.Bad, err.Error()))
	}
	if _, height, sizeErr := term.GetSize(int(os.Stdout.Fd())); sizeErr == nil && height > 4 {
		rows = rows[:min(len(rows), height-4)]
	}
	a.usageTable(rows).WriteTo(&b) //nolint:errcheck // a strings.Builder takes everything
	// Each line is cleared to its end, and what is below after the last one (ECMA-48).
	picture := strings.ReplaceAll(b.String(), "\n", "\x1b[K\r\n")
	fmt.Fprint(a.screen.Out, "\x1b[H", picture, "\x1b[J")
}
