package clock_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/clock/clocktest"
)

const day = 24 * time.Hour

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// truth is a guard on a clock that was right at the start, with the time that has really passed.
type truth struct {
	*clocktest.Fake
	guard *clock.Guard
	now   time.Time
}

func start(cfg clock.GuardConfig) *truth {
	f := clocktest.New(noon)
	return &truth{Fake: f, guard: clock.NewGuard(f, cfg), now: noon}
}

// pass lets d pass in steps, with a reading after each, and calls check with it.
func (tr *truth) pass(d, step time.Duration, check func(clock.Reading)) {
	for ; d > 0; d -= step {
		tr.Advance(min(d, step))
		tr.now = tr.now.Add(min(d, step))
		check(tr.guard.Read())
	}
}

func wantGuarded(t *testing.T, r clock.Reading, want time.Time) {
	t.Helper()
	if !r.Guarded.Equal(want) {
		t.Fatalf("guarded time is %s off; clock: %s", r.Guarded.Sub(want), r)
	}
}

func wantOK(t *testing.T, r clock.Reading) {
	t.Helper()
	if r.String() != "ok" || !r.Trusted || r.Unconfirmed || r.Offset != 0 {
		t.Fatalf("clock: %s, %+v", r, r)
	}
}

func TestSteady(t *testing.T) {
	tr := start(clock.GuardConfig{})
	wantOK(t, tr.guard.Read())
	tr.pass(2*day, time.Second, func(r clock.Reading) {
		wantGuarded(t, r, tr.now)
		wantOK(t, r)
	})
}

// A machine that sleeps: much time passes between two readings, on both clocks.
func TestSuspend(t *testing.T) {
	tr := start(clock.GuardConfig{})
	tr.pass(100*day, 10*day, func(r clock.Reading) {
		wantGuarded(t, r, tr.now)
		wantOK(t, r)
	})
}

// NTP steps the clock of a node, and steps it back: lookups must not miss live records, and inserts
// must not overwrite them.
func TestJumpAndReturn(t *testing.T) {
	for _, by := range []time.Duration{2 * time.Hour, time.Hour, -time.Hour, 30 * day, -30 * day, 61 * time.Second, -61 * time.Second} {
		t.Run(by.String(), func(t *testing.T) {
			tr := start(clock.GuardConfig{})
			tr.pass(time.Hour, time.Second, func(clock.Reading) {})

			tr.Jump(by)
			jumped := tr.now
			tr.pass(3*time.Hour, time.Second, func(r clock.Reading) {
				want := tr.now // a jump forward is not followed
				if by < 0 {
					want = r.Wall // a jump back is
				}
				wantGuarded(t, r, want)
				if r.Offset != by || r.Unconfirmed {
					t.Fatalf("offset %s, want %s", r.Offset, by)
				}
				if word := map[bool]string{true: "jumped forward", false: "jumped back"}[by > 0]; !strings.HasPrefix(r.String(), word) {
					t.Fatalf("clock: %s", r)
				}
				// The first reading, a second after the jump, has seen it.
				if since := tr.now.Sub(jumped) - time.Second; r.Trusted != (since >= time.Minute) {
					t.Fatalf("trusted: %v, %s after the jump was seen", r.Trusted, since)
				}
			})

			tr.Jump(-by)
			r := tr.guard.Read()
			wantGuarded(t, r, tr.now)
			if r.Trusted {
				t.Error("trusted at once after the way back")
			}
			tr.pass(time.Minute, time.Second, func(got clock.Reading) { r = got })
			wantGuarded(t, r, tr.now)
			wantOK(t, r)
		})
	}
}

// A step beyond what is followed but below what makes cutoffs wrong.
func TestSmallJump(t *testing.T) {
	tr := start(clock.GuardConfig{})
	tr.Jump(6 * time.Second)
	tr.pass(day, time.Minute, func(r clock.Reading) {
		wantGuarded(t, r, tr.now)
		if !r.Trusted || r.Offset != 6*time.Second {
			t.Fatalf("clock: %s, %+v", r, r)
		}
	})
}

// A small step soon after a jump must not end the distrust of the jump.
func TestDistrustStays(t *testing.T) {
	tr := start(clock.GuardConfig{})
	tr.Jump(2 * time.Hour)
	tr.guard.Read()
	tr.pass(10*time.Second, time.Second, func(clock.Reading) {})
	tr.Jump(6 * time.Second)
	tr.pass(49*time.Second, time.Second, func(r clock.Reading) {
		if r.Trusted {
			t.Fatalf("trusted %s after a jump", tr.now.Sub(noon))
		}
	})
	tr.pass(time.Second, time.Second, func(r clock.Reading) {
		if !r.Trusted {
			t.Error("not trusted a minute after the jump")
		}
	})
}

// A jump in several steps is a jump.
func TestJumpInSteps(t *testing.T) {
	for _, by := range []time.Duration{20 * time.Second, -20 * time.Second} {
		tr := start(clock.GuardConfig{})
		for i := range 4 {
			tr.Jump(by)
			tr.pass(time.Second, 100*time.Millisecond, func(r clock.Reading) {
				if want := i < 3; r.Trusted != want {
					t.Fatalf("trusted: %v after %d steps of %s", r.Trusted, i+1, by)
				}
			})
		}
	}
}

func TestDriftIsFollowed(t *testing.T) {
	for _, perHour := range []time.Duration{4 * time.Second, time.Second, -4 * time.Second} {
		tr := start(clock.GuardConfig{})
		tr.pass(10*day, time.Minute, func(r clock.Reading) {
			wantGuarded(t, r, r.Wall)
			wantOK(t, r)
			tr.Jump(perHour / 60)
		})
	}
}

// The same clock among others: they say that it is ahead, and it forgets nothing early, however long it goes on.
func TestDriftIsBoundedByOthers(t *testing.T) {
	tr := start(clock.GuardConfig{})
	tr.pass(10*day, time.Minute, func(r clock.Reading) {
		if gain := r.Guarded.Sub(tr.now); gain > 6*time.Second {
			t.Fatalf("%s ahead after %s", gain, tr.now.Sub(noon))
		}
		tr.Jump(4 * time.Second / 60)
		tr.guard.Ahead(r.Wall.Sub(tr.now))
	})
	tr.guard.Ahead(0) // set right
	tr.Jump(tr.now.Sub(tr.Now()))
	tr.pass(time.Minute, time.Second, func(r clock.Reading) { wantGuarded(t, r, tr.now) })
}

// What a jump back gave up may be taken again only as far as time has really passed.
func TestForwardAfterBack(t *testing.T) {
	tr := start(clock.GuardConfig{})
	tr.Jump(-time.Hour)
	tr.pass(time.Hour, time.Second, func(r clock.Reading) { wantGuarded(t, r, r.Wall) })
	tr.Jump(3 * time.Hour)
	tr.pass(time.Hour, time.Second, func(r clock.Reading) { wantGuarded(t, r, tr.now) })
}

// Somebody who steps the clock by little each minute gains no more than the budget.
func TestManySmallSteps(t *testing.T) {
	for _, by := range []time.Duration{4 * time.Second, 100 * time.Millisecond, time.Second} {
		tr := start(clock.GuardConfig{})
		for range 48 * 60 {
			tr.Jump(by)
			tr.pass(time.Minute, time.Second, func(r clock.Reading) {
				hours := tr.now.Sub(noon).Hours()
				if gain, allowed := r.Guarded.Sub(tr.now), time.Duration((5+5*hours)*float64(time.Second)); gain > allowed {
					t.Fatalf("steps of %s gained %s in %.2f h, allowed %s", by, gain, hours, allowed)
				}
			})
		}
	}
}

// Jitter between the two readings, many times a second, uses up nothing and leaves no lag behind.
func TestJitter(t *testing.T) {
	tr := start(clock.GuardConfig{})
	for range 10000 {
		tr.Jump(-3 * time.Second)
		tr.pass(10*time.Microsecond, 10*time.Microsecond, func(r clock.Reading) { wantGuarded(t, r, r.Wall) })
		tr.Jump(3 * time.Second)
		tr.pass(10*time.Microsecond, 10*time.Microsecond, func(r clock.Reading) {
			wantGuarded(t, r, tr.now)
			wantOK(t, r)
		})
	}
}

func TestRestart(t *testing.T) {
	grace := clock.GuardConfig{}
	for _, test := range []struct {
		name   string
		disk   time.Duration // the high water, before the true time
		wall   time.Duration // the wall clock, against the true time
		behind bool          // of the high water
	}{
		{name: "after an hour", disk: time.Hour},
		{name: "after half a year", disk: 180 * day},
		{name: "clock ahead", disk: time.Minute, wall: 30 * day},
		{name: "clock behind", disk: time.Minute, wall: -30 * day, behind: true},
		{name: "high water ahead", disk: -time.Hour, behind: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := clocktest.New(noon.Add(test.wall))
			high := noon.Add(-test.disk)
			cfg := grace
			cfg.HighWater = high
			tr := &truth{Fake: f, guard: clock.NewGuard(f, cfg), now: noon}
			var last clock.Reading
			tr.pass(10*time.Minute-time.Second, time.Second, func(r clock.Reading) {
				line := high.Add(tr.now.Sub(noon))
				if test.behind {
					line = r.Wall
				}
				wantGuarded(t, r, line)
				if !r.Unconfirmed || !strings.HasPrefix(r.String(), "unconfirmed") || (r.Offset < 0) != test.behind {
					t.Fatalf("clock: %s, %+v", r, r)
				}
				if !r.Trusted {
					t.Fatal("there was no jump")
				}
				last = r
			})
			tr.pass(time.Second, time.Second, func(r clock.Reading) { last = r })
			wantGuarded(t, last, last.Wall)
			wantOK(t, last)
		})
	}
}

func TestRestartWithRightClock(t *testing.T) {
	for _, gap := range []time.Duration{0, 3 * time.Second, -3 * time.Second} {
		tr := start(clock.GuardConfig{HighWater: noon.Add(gap)})
		r := tr.guard.Read()
		wantGuarded(t, r, tr.now)
		wantOK(t, r)
	}
}

// A machine whose battery is empty boots in 1970; NTP sets the clock after ten minutes and more.
func TestRestartIn1970(t *testing.T) {
	for _, high := range []time.Time{{}, noon.Add(-time.Hour)} {
		f := clocktest.New(time.Unix(40, 0))
		tr := &truth{Fake: f, guard: clock.NewGuard(f, clock.GuardConfig{HighWater: high}), now: noon}
		tr.pass(20*time.Minute, time.Second, func(r clock.Reading) {
			wantGuarded(t, r, r.Wall)
			if r.Trusted || !r.Unconfirmed || !strings.HasPrefix(r.String(), "not set: shows 1970-01-01T00:") {
				t.Fatalf("clock: %s, %+v", r, r)
			}
		})
		f.Set(tr.now)
		set := tr.guard.Read()
		tr.pass(10*time.Minute-time.Second, time.Second, func(r clock.Reading) {
			if !r.Unconfirmed || r.Guarded.After(tr.now.Add(-time.Hour)) {
				t.Fatalf("believed %s after it was set: %s", tr.now.Sub(set.Wall), r)
			}
		})
		tr.pass(time.Second, time.Second, func(r clock.Reading) {
			wantGuarded(t, r, tr.now)
			wantOK(t, r)
		})
	}
}

// Each jump starts the grace period anew.
func TestGraceStartsAnew(t *testing.T) {
	tr := start(clock.GuardConfig{HighWater: noon.Add(-time.Hour)})
	tr.pass(9*time.Minute, time.Second, func(clock.Reading) {})
	tr.Jump(30 * day)
	tr.guard.Read()
	tr.pass(10*time.Minute-time.Second, time.Second, func(r clock.Reading) {
		wantGuarded(t, r, tr.now.Add(-time.Hour))
		if !r.Unconfirmed {
			t.Fatal("a jump was believed")
		}
	})
}

// Whatever the wall clock does, nothing expires earlier than the doc comment of Guard says.
func TestBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		step := time.Duration(rapid.Int64Range(1, int64(20*time.Second)).Draw(t, "step"))
		drift := time.Duration(rapid.Int64Range(1, int64(20*time.Second)).Draw(t, "drift"))
		f := clocktest.New(noon)
		g := clock.NewGuard(f, clock.GuardConfig{Step: step, Drift: drift})
		var passed time.Duration
		small := rapid.Int64Range(-2*int64(step), 2*int64(step))
		large := rapid.Int64Range(-int64(40*day), int64(40*day))
		for range rapid.IntRange(1, 100).Draw(t, "readings") {
			f.Jump(time.Duration(rapid.OneOf(small, small, rapid.Just(int64(0)), large).Draw(t, "jump")))
			d := time.Duration(rapid.OneOf(rapid.Int64Range(0, int64(time.Second)), rapid.Int64Range(0, int64(2*time.Hour))).Draw(t, "pass"))
			f.Advance(d)
			passed += d
			r := g.Read()
			bound := noon.Add(passed + step + time.Duration(float64(drift)*passed.Hours()) + time.Microsecond) // for rounding
			if r.Guarded.After(bound) {
				t.Fatalf("guarded time is %s beyond its bound after %s: %s", r.Guarded.Sub(bound), passed, r)
			}
			if r.Guarded.After(r.Wall) {
				t.Fatalf("guarded time is %s ahead of the wall clock", r.Guarded.Sub(r.Wall))
			}
			if r.Unconfirmed {
				t.Fatal("unconfirmed without a high water")
			}
		}
	})
}

// From the same start, with a high water: until the grace period is over the bound holds from the high water.
func TestBoundAfterRestart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		high := noon.Add(-time.Duration(rapid.Int64Range(-int64(40*day), int64(40*day)).Draw(t, "high water")))
		f := clocktest.New(noon)
		g := clock.NewGuard(f, clock.GuardConfig{HighWater: high})
		var passed time.Duration
		for range rapid.IntRange(1, 100).Draw(t, "readings") {
			f.Jump(time.Duration(rapid.Int64Range(-int64(2*day), int64(2*day)).Draw(t, "jump")))
			d := time.Duration(rapid.Int64Range(0, int64(3*time.Minute)).Draw(t, "pass"))
			f.Advance(d)
			passed += d
			r := g.Read()
			if bound := high.Add(passed); r.Unconfirmed && r.Guarded.After(bound) {
				t.Fatalf("guarded time is %s beyond its bound after %s: %s", r.Guarded.Sub(bound), passed, r)
			}
			if passed < 10*time.Minute && !r.Unconfirmed && noon.Sub(high).Abs() > 5*time.Second {
				t.Fatalf("confirmed after %s", passed)
			}
		}
	})
}

func TestConcurrently(t *testing.T) {
	f := clocktest.New(noon)
	g := clock.NewGuard(f, clock.GuardConfig{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				if r := g.Read(); r.Guarded.After(r.Wall) {
					t.Errorf("guarded time is ahead of the wall clock: %s", r)
				}
			}
		})
	}
	for range 2000 {
		f.Advance(time.Millisecond)
	}
	wg.Wait()
	wantGuarded(t, g.Read(), noon.Add(2*time.Second))
}

// Other machines can confirm the clock at a start, not a jump while running.
func TestConfirm(t *testing.T) {
	day := 24 * time.Hour
	start := clock.Earliest.Add(100 * day)
	clk := clocktest.New(start.Add(10 * day)) // switched off for ten days
	g := clock.NewGuard(clk, clock.GuardConfig{HighWater: start})
	if r := g.Read(); !r.Unconfirmed || r.Guarded.Sub(start) > time.Minute {
		t.Fatalf("%+v", r)
	}
	g.Confirm()
	if r := g.Read(); r.Unconfirmed || !r.Guarded.Equal(clk.Now()) {
		t.Fatalf("confirmed: %+v", r)
	}
	clk.Jump(2 * time.Hour)
	g.Read()
	g.Confirm()
	if r := g.Read(); r.Guarded.After(clk.Now().Add(-2*time.Hour + time.Minute)) {
		t.Fatalf("a jump was confirmed: %+v", r)
	}
}
