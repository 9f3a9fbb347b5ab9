//go:build faults

package clock

import (
	"time"

	"github.com/revokd/revokd/internal/faults"
)

// System returns the clocks of the operating system. The wall clock is shifted by the fault "clock", which
// may change while the process runs; the monotonic clock is never shifted.
func System() Clock { return shifted{} }

type shifted struct{ system }

func (s shifted) Now() time.Time {
	shift := faults.Value("clock")
	if shift == "" {
		return s.system.Now()
	}
	by, err := time.ParseDuration(shift)
	if err != nil {
		panic("clock: the fault clock is " + err.Error()) // cannot be: faults has validated it
	}
	return s.system.Now().Add(by)
}
