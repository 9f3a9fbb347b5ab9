package clock

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/internal/faults"
)

// Elapsed tells how much time has passed as the larger of what the two hands of a clock say, for what must not look younger than it is: a machine that was
// stopped by its host has a monotonic clock that stood still, and a wall clock that has been put right since. Never measure expiry with it: a wall clock that is put ahead
// makes everything look old.
//
// It misses no more than a second of what the wall clock alone has seen, after that was put back. The zero Elapsed is not usable; see [NewElapsed]. It may
// be used concurrently.
type Elapsed struct {
	clock Clock
	extra atomic.Int64 // how much more than the monotonic clock says has passed; it never falls
	until atomic.Int64 // by the monotonic clock: then the wall clock is looked at again

	mu   sync.Mutex
	high time.Duration // by how much the wall clock is ahead of the monotonic one without more time having passed
}

const (
	lookEvery  = time.Millisecond // a caller that was stopped after reading a clock is no better off
	putBack    = time.Second      // less than that between the two hands may be the time between looking at them
	mostExtra  = 100 * 365 * 24 * time.Hour
	oldestWall = -mostExtra // of a clock that shows nonsense
)

// NewElapsed returns an Elapsed over a clock.
func NewElapsed(c Clock) *Elapsed {
	e := &Elapsed{clock: c}
	e.high, _ = e.look()
	return e
}

// look returns how far the wall clock is ahead of the monotonic one. The wall clock is read first: what passes in between makes it less.
func (e *Elapsed) look() (ahead, mono time.Duration) {
	wall := e.clock.Now().Sub(Earliest.Round(0))
	mono = e.clock.Mono()
	return min(max(wall, oldestWall), mostExtra) - mono, mono
}

// Mono is the time since some instant in the past. It never goes back.
func (e *Elapsed) Mono() time.Duration {
	mono := e.clock.Mono()
	if int64(mono) < e.until.Load() {
		return mono + time.Duration(e.extra.Load())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ahead, now := e.look()
	e.until.Store(int64(now + lookEvery))
	switch more := ahead - e.high; {
	case more > 0 && !faults.Mutant("suspended"):
		extra := e.extra.Load()
		e.extra.Store(extra + min(int64(more), int64(mostExtra)-extra))
		e.high = ahead
	case more < -putBack:
		e.high = ahead
	}
	return now + time.Duration(e.extra.Load())
}
