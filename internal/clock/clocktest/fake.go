// Package clocktest has a clock for tests that moves only when it is told to.
package clocktest

import (
	"sync"
	"time"

	"github.com/revokd/revokd/internal/clock"
)

var _ clock.Clock = (*Fake)(nil)

// Fake is a clock whose two hands are moved by hand. Create it with [New]. Its methods may be called concurrently.
type Fake struct {
	mu   sync.Mutex
	wall time.Time
	mono time.Duration
}

// New returns a clock that shows wall. Its monotonic hand has run for an hour.
func New(wall time.Time) *Fake { return &Fake{wall: wall, mono: time.Hour} }

// Now is the wall clock.
func (f *Fake) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wall
}

// Mono is the monotonic clock.
func (f *Fake) Mono() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mono
}

// Advance lets time pass: both hands move. d is not negative.
func (f *Fake) Advance(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.wall.Add(d)
	f.mono += d
}

// Jump moves the wall clock alone, back if d is negative.
func (f *Fake) Jump(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = f.wall.Add(d)
}

// Set makes the wall clock show wall; the monotonic clock stands.
func (f *Fake) Set(wall time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wall = wall
}
