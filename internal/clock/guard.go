package clock

import (
	"fmt"
	"sync"
	"time"
)

// GuardConfig configures a [Guard]. Zero fields mean the defaults.
type GuardConfig struct {
	// Step is how far the wall clock may move against the monotonic one and be followed. Default 5 s.
	Step time.Duration
	// Drift is how much of such movement forward is followed per hour; what is beyond waits. Default Step.
	Drift time.Duration
	// Distrust is how long after a jump by more than [Jump] the wall clock is not used for new cutoffs. Default 1 min.
	Distrust time.Duration
	// Grace is how long after a start the wall clock must stand before it is believed over HighWater. Default 10 min.
	Grace time.Duration
	// HighWater is the guarded time last written to disk by an earlier run; zero if there was none.
	HighWater time.Time
}

// Jump is the smallest step of the wall clock that makes it untrusted for new cutoffs.
const Jump = 60 * time.Second

// Guard keeps guarded time. It follows the wall clock within a bound of its own recent past and
// advances with the monotonic clock otherwise:
//
//   - a jump forward is not followed, because records would be forgotten early; if it was right, records
//     stay longer by that much until the next start;
//   - a jump back is followed, because that only keeps records longer; and it is followed forward again
//     as far as time has really passed;
//   - after a start it goes on from the persisted high water, and believes a later wall clock only after a grace period:
//     a machine that boots with a wrong clock must not forget what it has just read from disk.
//
// The zero Guard is not usable; see [NewGuard]. It may be used concurrently.
type Guard struct {
	cfg   GuardConfig
	clock Clock

	mu         sync.Mutex
	line       time.Time     // trusted time at lineMono; guarded time is never beyond it
	lineMono   time.Duration //
	budget     time.Duration // of forward movement that may be followed now
	offset     time.Duration // of the wall clock against the line at the last reading
	since      time.Duration // mono at which the wall clock took that offset
	unsettled  bool          // started on a high water and not yet confirmed
	lastJumped bool
}

// Reading is guarded time and what the wall clock looks like beside it.
type Reading struct {
	Guarded time.Time
	Wall    time.Time
	// Offset is how far the wall clock is ahead of where it should be, by its own past.
	Offset time.Duration
	// Unconfirmed: started on a high water; the grace period has not passed.
	Unconfirmed bool
	// Trusted: the wall clock may be used for new cutoffs. False for a while after a jump.
	Trusted bool
}

// String says what is wrong with the clock, "ok" if nothing is.
func (r Reading) String() string {
	switch {
	case r.Unconfirmed && r.Offset > 0:
		return fmt.Sprintf("unconfirmed since the start: %s ahead of the last time on disk; nothing expires by it before the grace period has passed", r.Offset.Round(time.Millisecond))
	case r.Unconfirmed:
		return fmt.Sprintf("unconfirmed since the start: %s behind the last time on disk; expiry waits", (-r.Offset).Round(time.Millisecond))
	case r.Offset > 0:
		return fmt.Sprintf("jumped forward by %s; records expire by the time before the jump", r.Offset.Round(time.Millisecond))
	case r.Offset < 0:
		return fmt.Sprintf("jumped back by %s; records expire later", (-r.Offset).Round(time.Millisecond))
	}
	return "ok"
}

// NewGuard returns a guard that has taken its first reading.
func NewGuard(clock Clock, cfg GuardConfig) *Guard {
	if cfg.Step == 0 {
		cfg.Step = 5 * time.Second
	}
	if cfg.Drift == 0 {
		cfg.Drift = cfg.Step
	}
	if cfg.Distrust == 0 {
		cfg.Distrust = time.Minute
	}
	if cfg.Grace == 0 {
		cfg.Grace = 10 * time.Minute
	}
	g := &Guard{cfg: cfg, clock: clock, budget: cfg.Drift}
	wall, mono := clock.Now().Round(0), clock.Mono()
	g.line, g.lineMono, g.since = wall, mono, mono
	if !cfg.HighWater.IsZero() {
		if gap := wall.Sub(cfg.HighWater); gap > cfg.Step || gap < -cfg.Step {
			g.line, g.offset, g.unsettled = cfg.HighWater.Round(0), gap, true
		}
	}
	return g
}

// Read takes a reading of the clocks. The more often it is called, the sooner a jump is seen; once
// a second is plenty.
func (g *Guard) Read() Reading {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, mono := g.clock.Now().Round(0), g.clock.Mono()
	elapsed := mono - g.lineMono
	g.line, g.lineMono = g.line.Add(elapsed), mono
	g.budget = min(g.cfg.Drift, g.budget+time.Duration(float64(elapsed)*float64(g.cfg.Drift)/float64(time.Hour)))

	offset := wall.Sub(g.line)
	if moved := offset - g.offset; moved > g.cfg.Step || moved < -g.cfg.Step {
		g.since = mono // a jump since the last reading
		g.lastJumped = moved > Jump || moved < -Jump
	}
	g.offset = offset
	switch {
	case g.unsettled && mono-g.since >= g.cfg.Grace:
		g.line, g.offset, g.unsettled = wall, 0, false
	case g.unsettled:
	case offset <= 0 && offset >= -g.cfg.Step:
		g.line, g.offset = wall, 0
	case offset > 0 && offset <= g.budget:
		g.budget -= offset
		g.line, g.offset = wall, 0
	}
	r := Reading{Guarded: g.line, Wall: wall, Offset: g.offset, Unconfirmed: g.unsettled}
	if wall.Before(g.line) {
		r.Guarded = wall
	}
	if r.Offset < g.cfg.Step && r.Offset > 0 && !g.unsettled {
		r.Offset = 0 // waits for its drift
	}
	r.Trusted = !g.lastJumped || mono-g.since >= g.cfg.Distrust
	return r
}
