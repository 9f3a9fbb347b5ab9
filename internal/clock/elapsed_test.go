package clock_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/clock/clocktest"
)

func TestElapsed(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(f *clocktest.Fake)
		want time.Duration
	}{
		"both hands move":              {func(f *clocktest.Fake) { f.Advance(time.Hour) }, time.Hour},
		"the machine was stopped":      {func(f *clocktest.Fake) { f.Jump(time.Hour); f.Advance(time.Second) }, time.Hour + time.Second},
		"the wall clock was put back":  {func(f *clocktest.Fake) { f.Jump(-time.Hour); f.Advance(time.Second) }, time.Second},
		"the wall clock was never set": {func(f *clocktest.Fake) { f.Set(time.Time{}); f.Advance(time.Second) }, time.Second},
		"a little back and forth": {func(f *clocktest.Fake) {
			f.Jump(-time.Second)
			f.Advance(time.Second)
			f.Jump(time.Second)
			f.Advance(time.Second)
		}, 2 * time.Second},
		"stopped, after it was put forward": {func(f *clocktest.Fake) { f.Jump(time.Hour); f.Advance(time.Second); f.Jump(time.Hour) }, 2*time.Hour + time.Second},
	} {
		f := clocktest.New(noon)
		e := clock.NewElapsed(f)
		before := e.Mono()
		f.Advance(time.Second)
		e.Mono()
		c.do(f)
		f.Advance(time.Second)
		if got := e.Mono() - before - 2*time.Second; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	f := clocktest.New(noon)
	e := clock.NewElapsed(f)
	for last := e.Mono(); f.Mono() < 2*time.Hour; f.Advance(5 * time.Minute) { // a wall clock that shows nonsense
		for _, year := range []int{9999, 1} {
			f.Set(time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))
			f.Advance(time.Second)
			now := e.Mono()
			if now < last || now > 101*365*day {
				t.Fatalf("%s after %s", now, last)
			}
			last = now
		}
	}

	f = clocktest.New(noon)
	e = clock.NewElapsed(f)
	before := e.Mono()
	f.Jump(-time.Hour) // put back, then stopped for less than that
	f.Advance(time.Second)
	e.Mono()
	f.Jump(time.Minute)
	f.Advance(time.Second)
	if got := e.Mono() - before; got != time.Minute+2*time.Second {
		t.Errorf("stopped after the wall clock was put back: %s", got)
	}
}

// Whatever the wall clock does: no less has passed than by either hand, but for a second that it was put back by, and never less than before.
func TestElapsedIsTheLarger(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := clocktest.New(noon)
		e := clock.NewElapsed(f)
		type instant struct {
			elapsed, mono time.Duration
			wall          time.Time
		}
		read := func() instant { return instant{e.Mono(), f.Mono(), f.Now()} }
		last := read()
		for range 50 {
			f.Advance(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, time.Hour}).Draw(t, "passes"))
			f.Jump(rapid.SampledFrom([]time.Duration{0, 0, time.Millisecond, -time.Millisecond, time.Minute, -time.Minute, day, -day}).Draw(t, "jump"))
			now := read()
			passed := now.elapsed - last.elapsed
			if passed < now.mono-last.mono {
				t.Fatalf("%s have passed, by the monotonic clock %s", passed, now.mono-last.mono)
			}
			if byWall := now.wall.Sub(last.wall); passed < byWall-time.Second {
				t.Fatalf("%s have passed, by the wall clock %s", passed, byWall)
			}
			last = now
		}
	})
}

func TestElapsedOfTheSystem(t *testing.T) {
	c := clock.System()
	e := clock.NewElapsed(c)
	before, mono := e.Mono(), c.Mono()
	for range 10_000 {
		e.Mono()
	}
	if extra := (e.Mono() - before) - (c.Mono() - mono); extra > time.Second {
		t.Errorf("%s more have passed than by the monotonic clock", extra)
	}
	if n := testing.AllocsPerRun(100, func() { e.Mono() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
