package clock_test

import (
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock"
)

func TestSystem(t *testing.T) {
	c := clock.System()
	before := time.Now()
	mono := c.Mono()
	wall := c.Now()
	if after := time.Now(); wall.Before(before) || wall.After(after) {
		t.Errorf("the wall clock shows %s, between %s and %s", wall, before, after)
	}
	for range 1000 {
		next := c.Mono()
		if next < mono {
			t.Fatalf("the monotonic clock went back by %s", mono-next)
		}
		mono = next
	}
	// A guard on the clocks of the system has nothing to say about them.
	g := clock.NewGuard(c, clock.GuardConfig{})
	if r := g.Read(); r.String() != "ok" || !r.Trusted {
		t.Errorf("clock: %s", r)
	}
}
