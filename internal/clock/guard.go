package clock

import (
	"fmt"
	"sync"
	"time"

	"github.com/revokd/revokd/internal/faults"
)

// GuardConfig configures a [Guard]. Zero fields mean the defaults.
type GuardConfig struct {
	// Step is how far the wall clock may move against the monotonic one and be followed. Default 5 s.
	Step time.Duration
	// Drift is how much of such movement forward is followed per hour, beyond the first Step; the rest waits. Default Step.
	Drift time.Duration
	// Distrust is how long after a jump by more than [Jump] the wall clock is not used for new cutoffs. Default 1 min.
	Distrust time.Duration
	// Grace is how long after a start the wall clock must stand before it is believed over HighWater. Default 10 min.
	Grace time.Duration
	// HighWater is the guarded time last written to disk by an earlier run, from a reading that was not
	// Unconfirmed; zero if there was none.
	HighWater time.Time
}

// Jump is the smallest movement of the wall clock that makes it untrusted for new cutoffs, in one step or several.
const Jump = 60 * time.Second

// Earliest is a time before revokd was first released: a wall clock that shows less has not been set.
var Earliest = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Guard keeps guarded time. It follows the wall clock within a bound of its own recent past and
// advances with the monotonic clock otherwise:
//
//   - a jump forward is not followed, because records would be forgotten early; if it was right, records
//     stay longer by that much until the next start;
//   - a jump back is followed, because that only keeps records longer; and it is followed forward again
//     as far as time has really passed;
//   - small steps, up to Step, are followed both ways. Forward they draw on a budget of Step that grows by
//     Drift per hour and never beyond Step; what a step back gives up it returns to the budget, so that
//     jitter between the two clocks uses up nothing;
//   - after a start it goes on from the persisted high water, and believes another wall clock only after a
//     grace period without a jump: a machine that boots with a wrong clock must not forget what it has just
//     read from disk. A wall clock before [Earliest] is never believed;
//   - it is at most Step ahead of the median of other machines, once that is known: a clock that gains
//     a little each hour, which its own past does not show, forgets nothing early.
//
// The bound: t after the guard was made, by the monotonic clock, guarded time is at most
//
//	start + t + Step + Drift * t/1h        (start: the first reading of the wall clock)
//
// whatever the wall clock did, and at most what the wall clock shows. So nothing expires earlier than by a
// clock that was right at the start, but for Step and Drift per hour. With a high water more than Step away
// from the first reading, start is the high water until the grace period ends, and then the wall
// clock at that moment; a lone machine whose clock is wrong for all of the grace period is beyond this rule.
//
// The zero Guard is not usable; see [NewGuard]. It may be used concurrently.
type Guard struct {
	cfg   GuardConfig
	clock Clock

	mu        sync.Mutex
	line      time.Time     // trusted time at mono; guarded time is never beyond it
	mono      time.Duration // at the last reading
	budget    time.Duration // by how much the line may follow the wall clock forward now
	anchor    time.Duration // offset of the wall clock against the line that counts as no jump
	since     time.Duration // mono of the last jump, or of the start
	jumped    bool          // there was a jump
	ahead     time.Duration // of the wall clock, of the median of other machines
	unsettled bool          // the wall clock at the start was not believed, and is not yet
}

// Reading is guarded time and what the wall clock looks like beside it.
type Reading struct {
	// Guarded is never after Wall. It goes back with the wall clock.
	Guarded time.Time
	Wall    time.Time
	// Offset is how far the wall clock is ahead of where it should be, by its own past; 0 if that is within what is followed.
	Offset time.Duration
	// Unconfirmed: the wall clock differed from the high water at the start, or had not been set; the
	// grace period has not passed.
	Unconfirmed bool
	// Trusted: the wall clock may be used for new cutoffs. False for a while after a jump, and before [Earliest].
	Trusted bool
}

// String says what is wrong with the clock, "ok" if nothing is.
func (r Reading) String() string {
	offset := r.Offset.Round(time.Millisecond)
	switch {
	case r.Wall.Before(Earliest):
		return "not set: shows " + r.Wall.UTC().Format(time.RFC3339) + "; nothing expires"
	case r.Unconfirmed && r.Offset >= 0:
		return fmt.Sprintf("unconfirmed since the start: %s ahead of the last time on disk; nothing expires by it before the grace period has passed", offset)
	case r.Unconfirmed:
		return fmt.Sprintf("unconfirmed since the start: %s behind the last time on disk; expiry waits", -offset)
	case r.Offset > 0:
		return fmt.Sprintf("jumped forward by %s; records expire by the time before the jump", offset)
	case r.Offset < 0:
		return fmt.Sprintf("jumped back by %s; records expire later", -offset)
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
	g := &Guard{cfg: cfg, clock: clock, budget: cfg.Step}
	wall, mono := g.look()
	g.line, g.mono, g.since = wall, mono, mono
	g.unsettled = wall.Before(Earliest)
	if !cfg.HighWater.IsZero() {
		if gap := wall.Sub(cfg.HighWater); gap > cfg.Step || gap < -cfg.Step {
			g.line, g.anchor, g.unsettled = cfg.HighWater.Round(0), gap, true
		}
	}
	return g
}

// look reads both hands, the wall clock first: if the process is stopped in between, the wall clock
// looks late, which is the safe side.
func (g *Guard) look() (wall time.Time, mono time.Duration) {
	wall = g.clock.Now().Round(0)
	return wall, g.clock.Mono()
}

// Confirm says that the wall clock agrees with those of other machines: then what was on disk at the start needs no grace
// period. A jump while running is not confirmed by it: whoever sets all clocks at once must not make everybody forget.
func (g *Guard) Confirm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wall, mono := g.look(); g.unsettled && !g.jumped && !wall.Before(Earliest) {
		g.line, g.mono, g.anchor, g.unsettled = wall, mono, 0, false
	}
}

// Ahead says by how much the wall clock is ahead of the median of those of other machines and itself; not above 0 if it is not. It counts until it is said anew:
// while nobody is there to compare with, the clock is as wrong as it was.
func (g *Guard) Ahead(by time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ahead = by
}

// Read takes a reading of the clocks. The more often it is called, the sooner a jump is seen; once
// a second is plenty.
func (g *Guard) Read() Reading {
	g.mu.Lock()
	defer g.mu.Unlock()
	wall, mono := g.look()
	elapsed := mono - g.mono
	g.line, g.mono = g.line.Add(elapsed), mono
	g.budget = min(g.cfg.Step, g.budget+time.Duration(float64(elapsed)*float64(g.cfg.Drift)/float64(time.Hour)))

	offset := wall.Sub(g.line)
	if offset > g.anchor+Jump || offset < g.anchor-Jump {
		g.anchor, g.since, g.jumped = offset, mono, true
	}
	switch {
	case g.unsettled:
		if mono-g.since >= g.cfg.Grace && !wall.Before(Earliest) {
			g.line, g.anchor, g.unsettled = wall, 0, false
			offset = 0
		}
	case offset >= -g.cfg.Step && offset <= g.cfg.Step:
		// Back as far as the wall clock went, forward as far as the budget allows.
		follow := min(offset, g.budget)
		g.line = g.line.Add(follow)
		g.budget = min(g.cfg.Step, g.budget-follow)
		offset = 0
	}
	r := Reading{Guarded: g.line, Wall: wall, Offset: offset, Unconfirmed: g.unsettled}
	if wall.Before(g.line) || faults.Mutant("wall-clock") {
		r.Guarded = wall
	}
	if most := wall.Add(g.cfg.Step - g.ahead); g.ahead > g.cfg.Step && most.Before(r.Guarded) && !faults.Mutant("wall-clock") {
		r.Guarded = most
	}
	r.Trusted = (!g.jumped || mono-g.since >= g.cfg.Distrust) && !wall.Before(Earliest)
	return r
}
