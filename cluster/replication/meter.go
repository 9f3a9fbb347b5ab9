package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrQuota: a node has written more than one node may. What it goes beyond is refused like what a full store refuses: the vector stays, and views that
// need it grow old.
var ErrQuota = errors.New("replication: a node has written more than one node may")

// What one node may do to the others, beside NodeRecords and NodeRate.
const (
	nodeOrigins = MaxOrigins / 4
	rateBurst   = 10 // seconds of NodeRate that may come at once
	// Definitions that a node may send at once, and in a second; each session begins with those that its records need.
	definitionBurst, definitionRate = 4096, 100
	recountEvery                    = 5 * time.Second
	recountBudget                   = 20_000 // records looked at in one step
	fenceEvery                      = 10 * time.Second
	fenceBurst                      = 3
	maxDoubt                        = 250 * time.Millisecond
)

// meter is what a node makes this replica hold and do.
type meter struct {
	// held is at most how many live records lie under dots of the node: it counts what has changed something, until the store is counted again.
	held        int
	refused     uint64
	rate        bucket // records
	definitions bucket
	fences      bucket
}

// bucket lets through what comes at a rate, and a burst.
type bucket struct {
	left  float64
	at    time.Duration
	begun bool
}

// take reports whether there is something left, and takes n, if need be from what comes later.
func (b *bucket) take(n, burst, perSecond float64, now time.Duration) bool {
	if !b.begun {
		b.begun, b.left, b.at = true, burst, now
	}
	b.left = min(burst, b.left+perSecond*(now-b.at).Seconds())
	b.at = now
	if b.left < 1 {
		return false
	}
	b.left -= n
	return true
}

func (r *Replica) meter(node string) *meter {
	m := r.meters[node]
	if m == nil {
		m = new(meter)
		r.meters[node] = m
	}
	return m
}

// metered reports whether records of a node are counted here: a client takes what its node has accepted.
func (r *Replica) metered() bool { return !r.cfg.Client && !r.without("no-meter") }

// room refuses one more record of a node. What others bring they have taken within the same limit, each of them, and to refuse it would keep this replica
// from what it needs beside: of that there may be as much as all voters can have taken.
func (r *Replica) room(m *meter, node string, direct bool) error {
	limit := r.cfg.NodeRecords
	if !direct {
		limit *= max(2, len(r.voters.Names))
	}
	if m.held < limit || !r.metered() {
		return nil
	}
	if r.now.Mono >= r.countedAt+recountEvery || r.countedAt == 0 {
		r.recount()
	}
	m.refused++
	return fmt.Errorf("%w: %s, limit %d records", ErrQuota, node, limit)
}

// pace refuses a run of records of a node for now.
func (r *Replica) pace(m *meter, node string, n int) error {
	rate := float64(r.cfg.NodeRate)
	if !r.metered() || m.rate.take(float64(n), rate*rateBurst, rate, r.now.Mono) {
		return nil
	}
	m.refused++
	return fmt.Errorf("%w: %s, limit %d records a second", ErrQuota, node, r.cfg.NodeRate)
}

// counting is a pass over the store that finds out how many live records each origin has.
type counting struct {
	at    Key
	held  []int          // by index
	since map[string]int // held of each meter when it began
}

// recount begins one: what has expired or been superseded counts no more.
func (r *Replica) recount() {
	if r.counting == nil {
		r.countedAt = r.now.Mono
		r.counting = &counting{held: make([]int, len(r.reg.list)), since: make(map[string]int)}
		for node, m := range r.meters {
			r.counting.since[node] = m.held
		}
	}
}

// count goes on with it.
func (r *Replica) count() {
	c := r.counting
	if c == nil {
		return
	}
	next, more := r.store.Each(c.at, recountBudget, r.now, func(_ *Record, d Dot) {
		if int(d.Index()) < len(c.held) {
			c.held[d.Index()]++
		}
	})
	if c.at = next; more {
		return
	}
	r.counting, r.countedAt = nil, r.now.Mono
	exact := make(map[string]int)
	for i, n := range c.held {
		if o := r.reg.get(uint32(i)); o != nil {
			exact[o.Node] += n
			r.meter(o.Node)
		}
	}
	for node, m := range r.meters {
		m.held += exact[node] - c.since[node] // what has come meanwhile counts on top
		if _, ok := exact[node]; !ok && m.held <= 0 && !slices.ContainsFunc(r.order, func(p *peer) bool { return p.name == node }) {
			delete(r.meters, node)
		}
	}
}

// NodeStats is what one node makes this replica hold.
type NodeStats struct {
	Name    string
	Records int // at most so many live records that it has written are held
	Origins int
	Refused uint64 // runs of its records that were refused because it had written too many, or too fast
}

// Nodes describes the nodes of which something is held, in no order.
func (r *Replica) Nodes() []NodeStats {
	origins := make(map[string]int)
	for _, o := range r.reg.list {
		if o != nil {
			origins[o.Node]++
		}
	}
	list := make([]NodeStats, 0, len(origins))
	for node, n := range origins {
		s := NodeStats{Name: node, Origins: n}
		if m := r.meters[node]; m != nil {
			s.Records, s.Refused = max(0, m.held), m.refused
		}
		list = append(list, s)
	}
	return list
}

// Held returns how many live records of this node's are held, at most.
func (r *Replica) Held() int {
	if m := r.meters[r.cfg.Name]; m != nil {
		return m.held
	}
	return 0
}

// owner is the session with the node that gives the numbers of an origin now, as that node says itself; nil: there is none.
func (r *Replica) owner(o *origin) *peer {
	if o.owner == 0 || r.without("hearsay") {
		return nil
	}
	return r.peers[o.owner]
}

// claim is how much of an origin a peer can be believed to hold. Nobody has more than its node has given: who says so is not believed before that node was
// asked. When it has answered, and given less, one of them lies, and what the peer has said counts for nothing; when it does not answer, relays are all there is,
// each of them, until it does.
func (r *Replica) claim(p *peer, o *origin) (number uint64, waits bool) {
	number = at(p.applied, o.Index)
	owner := r.owner(o)
	if owner == nil || p == owner || number <= at(owner.applied, o.Index) || r.silent(o, owner) {
		return number, false
	}
	d := &o.doubt
	given := at(owner.applied, o.Index)
	if d.peer != p.id {
		// One at a time, as long as it claims something: nobody looks at the answer about one whose claim is here or was given meanwhile.
		if q := r.peers[d.peer]; q != nil && (at(q.applied, o.Index) > max(given, o.applied) || r.without("stale-doubts")) {
			return given, true
		}
		*d = doubt{peer: p.id, number: number, at: r.now.Mono, probe: owner.probeID + 1}
		r.probe(owner, 0)
		return given, true
	}
	switch {
	case owner.answered < d.probe:
		return given, true
	case given < d.number:
		*d = doubt{}
		r.stats.Impostors++
		p.applied[o.Index] = given
		for i := range p.probes { // a node that gives its numbers has given no more when it was asked, so nothing is missed
			if need := p.probes[i].need; at(need, o.Index) > given {
				need[o.Index] = given
			}
		}
		return given, false
	default: // that much was true; there is more since
		*d = doubt{}
		return r.claim(p, o)
	}
}

// silent reports whether the node of an origin was asked about a claim, and should have answered by now.
func (r *Replica) silent(o *origin, owner *peer) bool {
	d := &o.doubt
	return d.peer != 0 && owner.answered < d.probe && r.now.Mono > d.at+min(maxDoubt, r.cfg.PullAfter/4+2*owner.rtt)
}

// doubt is a claim that an origin's node is asked about.
type doubt struct {
	peer   PeerID
	number uint64
	at     time.Duration
	probe  uint64
}
