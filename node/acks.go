package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/revocation"
)

// setVoters puts a configuration of voters in force: acknowledgements and views count under it from now on. votes says whether this
// node, with its present data directory, is one of them.
func (n *Node) setVoters(v replication.Voters, votes bool) {
	n.replica.mu.Lock()
	defer n.replica.mu.Unlock()
	n.replica.voters, n.replica.votes = v, votes
	n.replica.stepLocked(replication.SetVoters{Voters: v, Self: votes})
}

// sendControl queues a message for the voters of another node; it may be lost.
func (n *Node) sendControl(to string, message []byte) {
	n.replica.mu.Lock()
	defer n.replica.mu.Unlock()
	if s := n.replica.byName[to]; s != nil {
		n.replica.stepLocked(replication.SendControl{Peer: s.id, Message: message})
	}
}

// takeCaughtUp returns the nodes that this one has caught up with, durably, since it was last called.
func (r *replica) takeCaughtUp() []replication.CaughtUp {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.caughtUp
	r.caughtUp = nil
	return list
}

// connected reports whether there is a session with a node.
func (r *replica) connected(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byName[name] != nil
}

// publish makes the age of the view known to checks; mu is held.
func (r *replica) publish() {
	if m := r.n.members; m != nil && (!m.alike.Load() || m.jumped.Load()) { // now, because the peer may be gone a moment later, and writes wait for it
		for _, p := range r.core.Peers() {
			m.compare(p)
		}
	}
	// Keys come ahead of all that a peer has: no record is made under one that they do not have any more.
	if !r.n.complete.Load() && r.n.cfg.Cluster != nil && r.n.replayed.Load() && r.n.keys.looked() && (r.core.Leveled() || r.alone() || r.n.cfg.Cluster.StartAlone) {
		r.n.completed()
	}
	if r.n.cfg.Cluster == nil {
		return
	}
	r.n.fresh.Store(view.NewFreshness(r.core.FreshSince()))
}

// look publishes again: what completes the node may have happened before the journal had been read.
func (r *replica) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core != nil && !r.ended {
		r.publish()
	}
}

// recovered reports whether a journal that was repaired lacks nothing any more that could be had.
func (r *replica) recovered() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.n.members == nil || r.core != nil && r.core.Leveled() || r.alone()
}

// durable returns up to which number of each origin, by index, everything is on disk.
func (r *replica) durable() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.DurableVector()
}

// alone reports whether this node is the only voter, so that there is nobody to be level with; mu is held.
func (r *replica) alone() bool {
	return r.votes && len(r.voters.Names) == 1
}

// single is alone, for callers that do not hold mu.
func (r *replica) single() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.alone()
}

// waitingFor says why a replica that has read its journal is not complete.
func (r *replica) waitingFor() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.byName) == 0 && len(r.voters.Names) == 0:
		return "no other node is connected and no voters are known: start the others, or this one with --bootstrap-expect 1"
	case len(r.byName) == 0:
		return "no other node is connected: this one may lack revocations that they have acknowledged"
	}
	behind := uint64(0)
	for _, p := range r.core.Peers() {
		if !p.Client {
			behind = max(behind, p.Ahead)
		}
	}
	return fmt.Sprintf("another node has to be caught up with: about %d records to go", behind)
}

// level is the level that a write asks for: a majority by default where there is one to speak of.
func (r *replica) level(asked Ack) Ack {
	r.mu.Lock()
	defer r.mu.Unlock()
	if asked == AckDefault {
		if len(r.voters.Names) >= 3 {
			return AckQuorum
		}
		return AckLocal
	}
	return asked
}

// waiter is a write that waits for other nodes. Its fields are under replica.mu until done is closed.
type waiter struct {
	needs []replication.Dot
	// barriers is what each node held when it was found to have confirmed: it counts when this node holds that too.
	barriers map[string][]replication.VectorEntry
	level    Ack
	done     chan struct{}
	receipt  Receipt // valid once done is closed
}

// acknowledged waits until dots are durable on as many voters as a level asks for, and this replica has seen all that those had
// seen. Without a time limit of its own it waits as long as Config says.
func (r *replica) acknowledged(ctx context.Context, needs []replication.Dot, level Ack, limit time.Duration) (Receipt, error) {
	if limit == 0 {
		limit = r.n.cfg.AckTimeout
	}
	w := &waiter{needs: latest(needs), barriers: make(map[string][]replication.VectorEntry), level: level, done: make(chan struct{})}
	r.mu.Lock()
	receipt, ok := r.receipt(w)
	if ok && level == AckLocal {
		r.mu.Unlock()
		return receipt, nil
	}
	r.waiters = append(r.waiters, w)
	r.settle()
	r.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	var err error
	select {
	case <-w.done:
	case <-t.C:
		err = fmt.Errorf("%w: %s", ErrAck, limit)
	case <-ctx.Done():
		err = fmt.Errorf("%w: %w", ErrAck, ctx.Err())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settle()
	select {
	case <-w.done: // in the last moment
		return w.receipt, nil // of then: who has confirmed may be away by now
	default:
		r.waiters = slices.DeleteFunc(r.waiters, func(x *waiter) bool { return x == w })
	}
	receipt, _ = r.receipt(w)
	return receipt, err
}

// Confirm waits until positions, of the receipts of many writes at [AckLocal], are held as durably as a level asks for; limit 0 is that of
// Config. Errors match [ErrNotReady], or [ErrAck] and come with the receipt.
func (n *Node) Confirm(ctx context.Context, positions []Position, level Ack, limit time.Duration) (Receipt, error) {
	if !n.complete.Load() {
		return Receipt{}, ErrNotReady
	}
	var needs []replication.Dot
	n.replica.mu.Lock()
	for _, p := range positions {
		if d, ok := n.replica.core.DotOf(p.Origin, p.Number); ok { // else all of it has expired
			needs = append(needs, d)
		}
	}
	n.replica.mu.Unlock()
	return n.replica.acknowledged(ctx, needs, n.replica.level(level), limit)
}

// latest returns the last dot of each origin: who holds that holds all before it.
func latest(dots []replication.Dot) []replication.Dot {
	if len(dots) < 2 {
		return dots
	}
	dots = slices.Clone(dots) // they may be kept for an idempotency key
	slices.Sort(dots)
	last := dots[:0]
	for i, d := range dots {
		if i+1 == len(dots) || dots[i+1].Index() != d.Index() {
			last = append(last, d)
		}
	}
	return last
}

// settle ends the waiters whose level is reached; mu is held.
func (r *replica) settle() {
	r.waiters = slices.DeleteFunc(r.waiters, func(w *waiter) bool {
		receipt, ok := r.receipt(w)
		if ok {
			w.receipt = receipt
			close(w.done)
		}
		return ok
	})
}

// seen reports whether this node holds all that another one held when that had confirmed a write; mu is held. What one that is away held last may
// never come, so each node counts by itself.
func (r *replica) seen(w *waiter, name string) bool {
	if w.level <= AckLocal {
		return true
	}
	barrier, ok := w.barriers[name]
	if !ok {
		barrier = r.core.Barrier([]string{name})
		w.barriers[name] = barrier
	}
	return r.core.Reached(barrier)
}

// receipt says who holds a write durably, and whether they are enough; mu is held.
func (r *replica) receipt(w *waiter) (receipt Receipt, ok bool) {
	receipt = Receipt{Durability: r.n.cfg.Durability, Ack: AckLocal}
	held := true // here
	counts := make(map[string]int)
	for _, d := range w.needs {
		held = held && r.core.Durable(d)
		for _, name := range r.core.Confirmed(d.Index(), d.Number()) {
			counts[name]++
		}
	}
	for _, d := range w.needs {
		if id := r.core.OriginOf(d); id != 0 {
			receipt.Positions = append(receipt.Positions, Position{id, d.Number()})
		}
	}
	if len(w.needs) == 0 { // nothing was written
		receipt.Ack, receipt.Confirmed = w.level, []string{r.n.cfg.Name}
		return receipt, true
	}
	voting := 0
	names := r.voters.Names
	if !slices.Contains(names, r.n.cfg.Name) {
		names = append([]string{r.n.cfg.Name}, names...)
	}
	for _, name := range names {
		self := name == r.n.cfg.Name
		confirmed := self && held || !self && counts[name] == len(w.needs) && r.seen(w, name)
		if !confirmed {
			receipt.Unconfirmed = append(receipt.Unconfirmed, name)
			continue
		}
		receipt.Confirmed = append(receipt.Confirmed, name)
		if !self || r.votes {
			voting++
		}
	}
	switch n := len(r.voters.Names); {
	case n > 0 && voting == n:
		receipt.Ack = AckAll
	case n > 0 && voting >= r.voters.Majority():
		receipt.Ack = AckQuorum
	}
	ok = held && receipt.Ack >= w.level
	receipt.Ack = min(receipt.Ack, max(w.level, AckLocal))
	return receipt, ok
}

// newOrigin registers an origin of this run.
func (r *replica) newOrigin(id replication.OriginID) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.NewOrigin(id)
}

// reissues writes content that has no name, or none that counts, under dots of this node, until ctx ends. What fails is asked for again.
func (r *replica) reissues(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.unnamedReady:
		}
		r.mu.Lock()
		list := r.unnamed
		r.unnamed = nil
		r.mu.Unlock()
		for records := range slices.Chunk(list, MaxBatch) {
			w := &writing{node: r.n, lane: replication.Bulk, renames: true}
			for _, rec := range records {
				record, err := revocation.ParseRecord(rec[:])
				shape, ok := r.n.table.Shape(record.Shape)
				if err == nil && ok {
					w.entries = append(w.entries, entry{record: record, shape: shape})
				}
			}
			if len(w.entries) > 0 {
				_ = r.n.commit(ctx, w) // shows in the state of the journal
			}
		}
	}
}

// MaxNodeStats bounds Status.Nodes: a node that misbehaves may name any number of others.
const MaxNodeStats = 64

// describe adds to a status; nothing before the journal has been read.
func (r *replica) describe(s *Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.QuorumAge, s.AllAge = view.Oldest, view.Oldest
	if r.core == nil {
		return
	}
	s.Replication = r.core.Stats()
	s.Nodes = r.core.Nodes()
	slices.SortFunc(s.Nodes, func(a, b replication.NodeStats) int {
		return cmp.Or(cmp.Compare(b.Records, a.Records), cmp.Compare(b.Refused, a.Refused), cmp.Compare(a.Name, b.Name))
	})
	s.Nodes = s.Nodes[:min(len(s.Nodes), MaxNodeStats)]
	s.Voters, s.VotersNumber, s.Votes = slices.Clone(r.voters.Names), r.voters.Number&(1<<40-1), r.votes
	if f := r.n.fresh.Load(); f != nil {
		now := r.n.elapsed.Mono()
		s.QuorumAge, s.AllAge = f.Age(now, false), f.Age(now, true)
	} else {
		s.QuorumAge, s.AllAge = 0, 0
	}
}

// Peer describes a session with another replica.
type Peer struct {
	replication.PeerStats
	ViewAge  time.Duration // how old the view of what it holds is; the largest Duration: there is none
	AuditAge time.Duration // since sums were last found equal; likewise
}

// Peers describes the sessions with other replicas.
func (n *Node) Peers() []Peer {
	r := n.replica
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core == nil {
		return nil
	}
	now := n.elapsed.Mono()
	since := func(at time.Duration) time.Duration {
		if at <= 0 {
			return view.Oldest
		}
		return now - at
	}
	var list []Peer
	for _, p := range r.core.Peers() {
		list = append(list, Peer{PeerStats: p, ViewAge: since(p.View), AuditAge: since(p.Audit)})
	}
	return list
}
