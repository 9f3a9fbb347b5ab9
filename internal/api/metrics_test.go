package api

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/node"
)

// pipe is one end of a stream between two nodes in memory.
type pipe struct {
	in     <-chan []byte
	out    chan<- []byte
	closed chan struct{}
	once   *sync.Once
}

func newPipe() (a, b *pipe) {
	ab, ba, closed, once := make(chan []byte, 16), make(chan []byte, 16), make(chan struct{}), new(sync.Once)
	return &pipe{ba, ab, closed, once}, &pipe{ab, ba, closed, once}
}

func (p *pipe) Send(b []byte) error {
	select {
	case p.out <- append([]byte{}, b...):
		return nil
	case <-p.closed:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Receive() ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

func (p *pipe) Close() { p.once.Do(func() { close(p.closed) }) }

// pair starts a second node, n2, and a session with it.
func (f *fixture) pair(cfg node.Config) {
	f.Helper()
	cfg.Name, cfg.Cluster = "n2", &node.ClusterConfig{}
	other, err := node.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := other.Run(ctx); err != nil {
			f.Errorf("n2: %v", err)
		}
	})
	eventually(f, "n2 waits for n1", func() bool { return strings.Contains(fmt.Sprint(other.Ready()), "no other node is connected") })
	a, b := newPipe()
	eventually(f, "n1 is the only voter", func() bool {
		f.clock.Advance(5 * time.Millisecond)
		return f.node.Voters().Votes
	})
	running.Go(func() { _ = f.node.Session(ctx, a, node.SessionPeer{Name: "n2", Dialed: true}) })
	running.Go(func() { _ = other.Session(ctx, b, node.SessionPeer{Name: "n1"}) })
	f.Cleanup(func() {
		cancel()
		running.Wait()
		if err := other.Close(); err != nil {
			f.Error(err)
		}
	})
}

// collected returns what a function shows as lines like those of /metrics, but for the labels.
func collected(t *testing.T, collect func(gaugeFunc, counterFunc)) string {
	t.Helper()
	var b strings.Builder
	line := func(d *prometheus.Desc, value any) {
		_, name, ok := strings.Cut(d.String(), `fqName: "`)
		if !ok {
			t.Fatalf("%s has no name", d)
		}
		name, _, _ = strings.Cut(name, `"`)
		fmt.Fprintf(&b, "%s %v\n", name, value)
	}
	collect(
		func(d *prometheus.Desc, v float64, _ ...string) { line(d, v) },
		func(d *prometheus.Desc, v uint64, _ ...string) { line(d, v) },
	)
	return b.String()
}

func gossipMetrics(t *testing.T, s cluster.Stats) string {
	t.Helper()
	return collected(t, func(g gaugeFunc, c counterFunc) { collectGossip(s, g, c) })
}

// Whoever adds a number to the statistics of a package is reminded to show it.
func TestEveryStatisticIsShown(t *testing.T) {
	var gossip cluster.Stats
	fill(t, &gossip)
	everyNumber(t, gossip, gossipMetrics(t, gossip))

	f := start(t)
	var st node.Status
	fill(t, &st.Replication)
	everyNumber(t, st.Replication, collected(t, func(g gaugeFunc, c counterFunc) { nodeCollector{f.server.metrics}.collectReplication(st, g, c) }))
}

// noNumbers are fields that are no numbers.
var noNumbers = map[string]bool{"LastRefused": true}

// fill sets each field to another number.
func fill(t *testing.T, stats any) {
	t.Helper()
	v := reflect.ValueOf(stats).Elem()
	for i := range v.NumField() {
		switch field := v.Field(i); {
		case noNumbers[v.Type().Field(i).Name]:
		case field.CanInt():
			field.SetInt(int64(1000 + i))
		case field.CanUint():
			field.SetUint(uint64(1000 + i))
		default:
			t.Fatalf("%s is no number", v.Type().Field(i).Name)
		}
	}
}

func everyNumber(t *testing.T, stats any, text string) {
	t.Helper()
	v := reflect.ValueOf(stats)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if !noNumbers[name] && !strings.Contains(text, fmt.Sprintf(" %d\n", 1000+i)) {
			t.Errorf("%T.%s is in no metric:\n%s", stats, name, text)
		}
	}
}
