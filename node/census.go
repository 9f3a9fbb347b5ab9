package node

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/revocation"
)

// All records are counted every censusEvery, and when there are twice as many as at the last count. Blocks end by themselves: those that end within endingSoon are logged every endingWarn.
const (
	censusEvery  = 10 * time.Minute
	recountEvery = time.Second // not more often, whoever asks
	endingSoon   = 7 * 24 * time.Hour
	endingWarn   = 24 * time.Hour
)

// census is the last count of all records.
type census struct {
	last atomic.Pointer[revocation.Census] // nil: none yet

	mu              sync.Mutex    // guards what follows; held for a count
	counted, warned time.Duration // on the monotonic clock; 0: never
	records         int           // at the last count
}

// count counts all records, if it is time to. It is for the sweeper.
func (n *Node) count() {
	e := &n.census
	e.mu.Lock()
	defer e.mu.Unlock()
	every := censusEvery
	if records, _ := n.table.Size(); records > 2*e.records {
		every = 0
	}
	c := n.countLocked(every)
	if mono := n.cfg.Clock.Mono(); c.BlocksEnding > 0 && (e.warned == 0 || mono-e.warned >= endingWarn) {
		e.warned = max(mono, 1)
		n.log.Warn("blocks end soon: whom they keep out may come back; block again to extend", "blocks", c.BlocksEnding, "within", endingSoon.String())
	}
}

// Recount has [Node.Keys] and [Node.Status] tell what is live now, not at the last count. That takes a second for some ten million records, and is done once a second at most.
func (n *Node) Recount() {
	n.census.mu.Lock()
	defer n.census.mu.Unlock()
	n.countLocked(recountEvery)
}

// countLocked counts all records, unless that was done so recently; mu of the census is held.
func (n *Node) countLocked(every time.Duration) *revocation.Census {
	e, mono := &n.census, n.cfg.Clock.Mono()
	if last := e.last.Load(); last != nil && mono-e.counted < every {
		return last
	}
	now := n.Now()
	c := n.table.Census(now, now+endingSoon.Milliseconds())
	e.counted = mono
	e.records, _ = n.table.Size()
	e.last.Store(&c)
	return &c
}
