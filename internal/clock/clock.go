// Package clock is the seam through which revokd learns the time, and the rule by which records expire.
//
// [Clock] has two hands: the wall clock, which may be wrong and may jump, and a monotonic one, which
// counts suspended time too where the system can tell. [Guard] makes guarded time of them: what
// lookup, insert, sweep and file removal go by, so that no jump of the wall clock makes a node forget.
package clock

import "time"

// Clock tells the time. Its methods may be called concurrently.
type Clock interface {
	// Now is the wall clock.
	Now() time.Time
	// Mono is the time since some instant in the past; it never goes back and does not jump with the wall clock.
	Mono() time.Duration
}
