package node

import (
	"sync/atomic"
	"time"
)

// Blocks end by themselves: what ends within endingSoon is counted every endingCount and logged every endingWarn.
const (
	endingSoon  = 7 * 24 * time.Hour
	endingCount = time.Hour
	endingWarn  = 24 * time.Hour
)

// ending belongs to the sweeper, but for soon.
type ending struct {
	soon            atomic.Int64
	counted, warned time.Duration // on the monotonic clock; 0: never
}

// countEnding counts the blocks that end soon, if it is time to.
func (n *Node) countEnding() {
	e, mono := &n.ending, n.cfg.Clock.Mono()
	if e.counted != 0 && mono-e.counted < endingCount {
		return
	}
	now := n.Now()
	soon := n.table.BlocksEnding(now, now+endingSoon.Milliseconds())
	e.counted = max(mono, 1)
	e.soon.Store(int64(soon))
	if soon > 0 && (e.warned == 0 || mono-e.warned >= endingWarn) {
		e.warned = max(mono, 1)
		n.log.Warn("blocks end soon: whom they keep out may come back; block again to extend", "blocks", soon, "within", endingSoon.String())
	}
}
