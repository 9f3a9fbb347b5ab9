package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/revocation"
)

// A filter is made once for many, and anew when it is too old for who asks; nothing is given before the node is ready.
func TestFilter(t *testing.T) {
	clock := clocktest.New(start)
	n, err := New(Config{Name: "n1", Key: testKey, Durability: DurabilityMemory, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Filter(t.Context(), 0); !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
	if _, _, _, err := n.Lookup(nil); !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-done, n.Close()); err != nil {
			t.Error(err)
		}
	}()
	for len(n.Ready()) > 0 {
		time.Sleep(time.Millisecond) // between polls
	}
	first, err := n.Filter(t.Context(), 0)
	if err != nil || first.Filter.Meta().Count != 0 {
		t.Fatal(first, err)
	}
	if _, _, err := n.Write(t.Context(), []revocation.Request{deny(t, "j1")}, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if again, err := n.Filter(t.Context(), 0); err != nil || again != first {
		t.Errorf("made anew: %v", err)
	}
	clock.Advance(2 * time.Second)
	if again, err := n.Filter(t.Context(), 3*time.Second); err != nil || again != first {
		t.Errorf("made anew: %v", err)
	}
	second, err := n.Filter(t.Context(), time.Second)
	if err != nil || second == first || second.Filter.Meta().Count != 1 {
		t.Fatalf("%+v %v", second, err)
	}
	total := uint64(0)
	for _, o := range second.Origins {
		total += o.Number
	}
	if total != 1 {
		t.Errorf("the vector covers %d records", total)
	}
	n.filters.sweep(clock.Mono() + filterAge)
	if n.filters.made != nil {
		t.Error("an old filter is kept")
	}
}
