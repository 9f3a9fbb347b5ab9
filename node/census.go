package node

import (
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/revocation"
)

// All records are counted every censusEvery, and when there are twice as many as at the last count. Blocks end by themselves: those that end within endingSoon are logged every endingWarn.
const (
	censusEvery = 10 * time.Minute
	endingSoon  = 7 * 24 * time.Hour
	endingWarn  = 24 * time.Hour
)

// census belongs to the sweeper, but for last.
type census struct {
	last            atomic.Pointer[revocation.Census] // nil: none yet
	counted, warned time.Duration                     // on the monotonic clock; 0: never
	records         int                               // at the last count
}

// count counts all records, if it is time to.
func (n *Node) count() {
	e, mono := &n.census, n.cfg.Clock.Mono()
	records, _ := n.table.Size()
	if e.counted != 0 && mono-e.counted < censusEvery && records <= 2*e.records {
		return
	}
	now := n.Now()
	c := n.table.Census(now, now+endingSoon.Milliseconds())
	e.counted, e.records = max(mono, 1), records
	e.last.Store(&c)
	if c.BlocksEnding > 0 && (e.warned == 0 || mono-e.warned >= endingWarn) {
		e.warned = max(mono, 1)
		n.log.Warn("blocks end soon: whom they keep out may come back; block again to extend", "blocks", c.BlocksEnding, "within", endingSoon.String())
	}
}
