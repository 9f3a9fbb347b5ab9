package clock

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

type system struct{}

func (system) Now() time.Time { return time.Now() }

// suspendEvery is for how long of running time a suspension may go unnoticed: a caller that was stopped between reading the clock and
// using what it showed is no better off.
const suspendEvery = time.Millisecond

// suspended is how far CLOCK_BOOTTIME is ahead of the runtime's clock, which stands while the machine is suspended. It never falls.
var suspended struct {
	offset atomic.Int64
	until  atomic.Int64 // by the runtime's clock: then it is looked at again
}

// Mono shows CLOCK_BOOTTIME: a suspended machine must not look as if no time had passed. Asking for it is a system call, ten times
// as slow as the runtime's clock.
func (system) Mono() time.Duration {
	now := int64(time.Since(started))
	if now >= suspended.until.Load() {
		suspended.until.Store(now + int64(suspendEvery))
		now = lookSuspended()
	}
	return time.Duration(now + suspended.offset.Load())
}

// lookSuspended raises the offset and returns what the runtime's clock shows.
func lookSuspended() (now int64) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return int64(time.Since(started))
	}
	// The runtime's clock is read last, so that the offset is never more than it is, and what is shown does not go back.
	now = int64(time.Since(started))
	for {
		old := suspended.offset.Load()
		if ts.Nano()-now <= old || suspended.offset.CompareAndSwap(old, ts.Nano()-now) {
			return now
		}
	}
}

var started = time.Now()

func init() { lookSuspended() }
