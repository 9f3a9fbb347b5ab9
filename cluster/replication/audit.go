package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Sizes of an audit: the key space has 65 536 leaves, 256 under each of 256 nodes.
const (
	auditNodes   = 256
	auditLeaves  = auditNodes * auditNodes
	auditAhead   = 5 * 60 // seconds: what expires sooner is not summed, so that expiry is no difference
	auditMost    = 64     // leaves exchanged in one audit; the next one follows at once
	auditLife    = 2 * time.Minute
	auditPiece   = 4096             // records looked at in one step
	auditPause   = time.Millisecond // between two pieces, so that an audit takes a small part of the processor
	maxLeaf      = 100_000          // records of a leaf that are sent
	auditPending = 10 * time.Second
)

// sums adds up a keyed PRF over records: those that both vectors covered when the audit began, and that do not expire soon. Where both vectors have been equal and still since
// the audit before, it is all records of the origin (cut is MaxNumber): what was taken above a hole, and is there when the disk that had what belongs into the hole is lost, no vector will
// ever cover, and no pull brings.
type sums struct {
	id      uint64
	peer    *peer
	horizon uint32
	cut     []uint64 // by index
	at      Key
	done    bool
	dirty   bool // leaves are of an earlier audit
	began   time.Duration
	heard   time.Duration // of a served one
	leaves  [auditLeaves]uint64
}

// audit is one that this replica has begun.
type audit struct {
	*sums
	theirs    []uint64 // the top, when it has arrived
	compared  bool
	next      []byte // nodes that differ and have not been asked for
	exchanged int
	lastHeard time.Duration
}

func leafOf(k Key) int { return int(k.Hi >> 48) }

func (s *sums) covers(d Dot, deadline uint32) bool {
	return d.Index() != 0 && d.Number() <= at(s.cut, d.Index()) && deadline > s.horizon
}

// add sums the next piece of the store.
func (s *sums) add(r *Replica) {
	if s.done {
		return
	}
	if s.dirty {
		clear(s.leaves[:])
	}
	s.dirty = false
	next, more := r.store.Each(s.at, auditPiece, r.now, func(rec *Record, d Dot) {
		if s.covers(d, r.cfg.Deadline(rec)) {
			s.leaves[leafOf(rec.Key())] += r.cfg.Digest(rec)
		}
	})
	s.at, s.done = next, !more
}

// top is the sums of the nodes.
func (s *sums) top() []uint64 {
	t := make([]uint64, auditNodes)
	for i, v := range s.leaves[:] { // of the array itself it would take a copy, and half a MiB of stack from every caller
		// Sums of sums would let differences cancel more easily than a mix of them.
		t[i/auditNodes] += v * (2*uint64(i) + 1)
	}
	return t
}

// runAudit begins an audit when it is time, and goes on with what is under way.
func (r *Replica) runAudit() {
	if r.cfg.Client || r.cfg.AuditEvery < 0 {
		return
	}
	if s := r.served; s != nil {
		wasDone := s.done
		s.add(r)
		if !wasDone {
			s.heard = r.now.Mono
		}
		if s.done && !wasDone {
			r.sendSums(s.peer, s.id, 0, s.top())
		}
		if r.now.Mono > s.began+auditLife {
			r.endServed()
		}
	}
	a := r.audit
	if a == nil {
		if r.now.Mono >= r.auditAt {
			r.beginAudit()
		}
		return
	}
	if !a.done {
		a.lastHeard = r.now.Mono
	}
	a.add(r)
	if a.done && a.theirs != nil && !a.compared {
		r.compare(a)
	}
	if r.now.Mono > a.lastHeard+auditPending {
		r.audit = nil // it is busy, or gave up: another time
	}
}

func (r *Replica) horizon() uint32 { return uint32(max(0, r.now.Guarded/1000)) + auditAhead }

// beginAudit picks the peer whose last audit is longest ago.
func (r *Replica) beginAudit() {
	r.auditAt = r.now.Mono + r.cfg.AuditEvery + time.Duration(r.cfg.Random()%uint64(r.cfg.AuditEvery/4+1))
	var best *peer
	for _, p := range r.order {
		if p.hello && !p.client && (best == nil || max(p.auditAt, r.lastAudit(p)) < max(best.auditAt, r.lastAudit(best))) {
			best = p
		}
	}
	if best == nil {
		return
	}
	if r.without("audit-level") && slices.ContainsFunc(r.reg.list, func(o *origin) bool { return o != nil && o.applied != at(best.applied, o.Index) }) {
		return
	}
	best.auditAt = r.now.Mono
	best.probeID++
	s := &sums{id: best.probeID, peer: best, horizon: r.horizon(), began: r.now.Mono}
	s.cut = make([]uint64, len(r.reg.list))
	for i, o := range r.reg.list {
		if o != nil {
			theirs := at(best.applied, uint32(i))
			s.cut[i] = min(o.applied, theirs)
			if o.applied == theirs && o.audited == theirs+1 {
				s.cut[i] = MaxNumber
			}
			o.audited = o.applied + 1
		}
	}
	r.audit = &audit{sums: s, lastHeard: r.now.Mono}
	best.say(func(w *writer) {
		w.frame(frameAudit)
		w.uint(s.id)
		w.uint(uint64(s.horizon))
		n := 0
		for _, c := range s.cut {
			n += int(bit(c > 0))
		}
		w.uint(uint64(n))
		for i, c := range s.cut {
			if c > 0 {
				w.fixed(uint64(r.reg.list[i].ID))
				w.uint(c)
			}
		}
		w.end()
	})
	r.wake(best)
}

func (r *Replica) lastAudit(p *peer) time.Duration {
	if at, ok := r.audits[p.name]; ok {
		return at
	}
	return never
}

func (r *Replica) receiveAudit(p *peer, f *reader) {
	id, horizon := f.uint(), uint32(f.limited(1<<32-1))
	s := r.served
	switch {
	case r.cfg.Client || r.cfg.AuditEvery < 0, horizon != r.horizon() && r.without("audit-horizon"):
		return
	case s == nil:
		if s = r.spare; s == nil {
			s = new(sums)
		}
	case s.peer != p && r.now.Mono < s.heard+auditPending:
		return // it is asked again
	}
	cut := grow(s.cut[:0], uint32(len(r.reg.list)-1))
	clear(cut)
	for range f.count(9) {
		origin, n := OriginID(f.fixed()), f.limited(MaxNumber)
		if o := r.reg.byID[origin]; o != nil {
			if cut[o.Index] = n; n < MaxNumber {
				cut[o.Index] = min(n, o.applied)
			}
		}
	}
	if f.err != nil {
		return
	}
	s.id, s.peer, s.horizon, s.cut, s.at, s.done, s.dirty, s.began, s.heard = id, p, horizon, cut, Key{}, false, true, r.now.Mono, r.now.Mono
	r.served, r.spare = s, nil
}

// endServed keeps the sums for the next audit: they are large.
func (r *Replica) endServed() {
	r.served.peer = nil
	r.served, r.spare = nil, r.served
}

func (r *Replica) sendSums(p *peer, id uint64, node uint64, list []uint64) {
	p.say(func(w *writer) {
		w.frame(frameSums)
		w.uint(id)
		w.uint(node)
		for _, v := range list {
			w.fixed(v)
		}
		w.end()
	})
	r.wake(p)
}

// receiveSums takes the top from who serves this replica's audit, or the leaves of a node from whose audit this one serves.
func (r *Replica) receiveSums(p *peer, f *reader) {
	id, node := f.uint(), f.limited(auditNodes)
	list := make([]uint64, auditNodes)
	for i := range list {
		list[i] = f.fixed()
	}
	if f.err != nil {
		return
	}
	if node == 0 {
		if a := r.audit; a != nil && a.peer == p && a.id == id {
			a.theirs, a.lastHeard = list, r.now.Mono
		}
		return
	}
	s := r.served
	if s == nil || s.peer != p || s.id != id || !s.done {
		return
	}
	s.heard = r.now.Mono
	first := int(node-1) * auditNodes
	sent := 0
	for i, v := range list {
		if s.leaves[first+i] != v && sent < auditMost {
			sent++
			r.sendLeaf(p, s, first+i, true)
		}
	}
	p.say(func(w *writer) {
		w.frame(frameAuditEnd)
		w.uint(id)
		w.end()
	})
	r.wake(p)
}

// compare finds the nodes that differ.
func (r *Replica) compare(a *audit) {
	a.compared = true
	for i, v := range a.top() {
		if v != a.theirs[i] {
			a.next = append(a.next, byte(i))
		}
	}
	if len(a.next) == 0 {
		r.endAudit(a, true)
		return
	}
	r.stats.AuditDifferences++
	r.askNode(a)
}

// askNode sends the leaves of the next node that differs.
func (r *Replica) askNode(a *audit) {
	a.lastHeard = r.now.Mono
	node := int(a.next[0])
	a.next = a.next[1:]
	r.sendSums(a.peer, a.id, uint64(node)+1, a.leaves[node*auditNodes:(node+1)*auditNodes])
}

func (r *Replica) receiveAuditEnd(p *peer, f *reader) {
	a := r.audit
	if a == nil || a.peer != p || a.id != f.uint() || !a.compared {
		return
	}
	if len(a.next) > 0 && a.exchanged < auditMost {
		r.askNode(a)
		return
	}
	r.endAudit(a, false)
	// Again soon: to see that it is mended, or for what was too much at once.
	r.auditAt = r.now.Mono + r.cfg.AuditEvery/16
}

func (r *Replica) endAudit(a *audit, equal bool) {
	r.audit = nil
	if equal {
		if len(r.audits) < 4096 || r.audits[a.peer.name] != 0 {
			r.audits[a.peer.name] = r.now.Mono
		}
		r.stats.AuditsEqual++
	}
}

// sendLeaf sends the records of a leaf; the peer merges them, and with answer sends its own back.
func (r *Replica) sendLeaf(p *peer, s *sums, leaf int, answer bool) {
	from := Key{Hi: uint64(leaf) << 48}
	var b []byte
	n := 0
	r.store.Scan(from, maxLeaf, r.now, func(Dot) bool { return true }, func(rec *Record, d Dot) bool {
		if leafOf(rec.Key()) != leaf || n >= maxLeaf || len(b)+p.waiting() > maxOut/2 {
			return false
		}
		n++
		if o := r.reg.get(d.Index()); o != nil {
			r.define(p, o)
		} else {
			d = 0
		}
		b = putDot(append(b, rec[:]...), d)
		p.say(func(w *writer) { r.fillDefinition(w, p, r.cfg.DefinitionID(rec)) })
		return true
	})
	p.say(func(w *writer) {
		w.frame(frameLeaf)
		w.uint(s.id)
		w.uint(uint64(leaf))
		w.flag(answer)
		w.records(b)
		w.end()
	})
	r.wake(p)
}

func (r *Replica) receiveLeaf(p *peer, f *reader) error {
	id, leaf, answer := f.uint(), f.limited(auditLeaves-1), f.flag()
	b := f.take(len(f.b))
	if f.err != nil || len(b)%(RecordSize+8) != 0 {
		return fmt.Errorf("%w: leaf", ErrProtocol)
	}
	mine := r.audit != nil && r.audit.peer == p && r.audit.id == id
	theirs := r.served != nil && r.served.peer == p && r.served.id == id
	if !mine && !theirs {
		return nil
	}
	s := r.served
	if mine {
		s = r.audit.sums
	}
	if _, err := r.mergeAll(p, b, func(rec *Record, d Dot) {
		if o := r.reg.get(d.Index()); s.covers(d, r.cfg.Deadline(rec)) && d.Number() <= o.applied { // else it has come since the audit began, or no vector claims it
			r.stats.Repaired++
		}
	}); errors.Is(err, ErrDefinition) {
		return err
	} else if err != nil {
		return nil // counted; the next audit finds it again
	}
	if mine {
		r.audit.lastHeard = r.now.Mono
		r.audit.exchanged++
		if answer {
			r.sendLeaf(p, r.audit.sums, int(leaf), false)
		}
	}
	return nil
}

// Stats counts what a replica has done.
type Stats struct {
	Sent, Received uint64 // records of logs
	Duplicates     uint64 // of those received
	ScanSent       uint64
	Scanned        uint64 // records of scans and audits taken in
	ScannedNew     uint64 // of those, what was not held
	Refused        uint64
	LastRefused    error
	Pulls          uint64
	Scans          uint64
	Reissued       uint64
	Impostors      uint64 // claims of what its node has not written, and names of origins that only their node can have
	Unasked        uint64 // records of other nodes that nobody had asked for

	AuditsEqual      uint64
	AuditDifferences uint64
	Repaired         uint64 // records that an audit brought: vectors claimed what was not there

	Origins  int
	LogBytes int
	Behind   int // origins of which somebody holds more
}

// PeerStats describes a session.
type PeerStats struct {
	ID     PeerID
	Name   string
	Client bool
	RTT    time.Duration
	Offset time.Duration // of its wall clock from this one's
	Timed  bool
	Behind uint64 // records that it lacks of what this replica holds
	Ahead  uint64 // records that it holds and this replica lacks
	// Records is how many it holds, expired ones that were not freed yet included, by its last answer. Counted: it has said so.
	Records uint64
	Counted bool
	View    time.Duration
	Votes   bool
	// Guarded is the peer's guarded time, Unix milliseconds, when it answered at GuardedAt; 0: it has not.
	Guarded   int64
	GuardedAt time.Duration
	Audit     time.Duration // the last one that found no difference; the least Duration: none
	Lag       Lag
	// Incarnation is of its data directory; zero: it has not said it yet.
	Incarnation Incarnation
}

// Stats returns counters.
func (r *Replica) Stats() Stats {
	s := r.stats
	s.Origins, s.LogBytes, s.Behind = len(r.reg.byID), r.log.bytes, len(r.behind)
	return s
}

// Peers describes the sessions, in the order in which they began.
func (r *Replica) Peers() []PeerStats {
	list := make([]PeerStats, 0, len(r.order))
	for _, p := range r.order {
		s := PeerStats{
			ID: p.id, Name: p.name, Client: p.client, RTT: p.rtt, Offset: time.Duration(p.offset) * time.Millisecond, Timed: p.timed,
			View: p.viewed, Votes: p.votes, Guarded: p.guarded, GuardedAt: p.guardedAt, Audit: r.lastAudit(p), Lag: p.lag,
			Incarnation: p.incarnation, Records: p.records, Counted: p.counted,
		}
		for i, o := range r.reg.list {
			if o == nil {
				continue
			}
			if theirs := at(p.applied, uint32(i)); theirs < o.applied {
				s.Behind += o.applied - theirs
			} else {
				s.Ahead += theirs - o.applied
			}
		}
		list = append(list, s)
	}
	return list
}

// Vector returns what this replica holds.
func (r *Replica) Vector() []VectorEntry {
	var list []VectorEntry
	for i, o := range r.reg.list {
		if o != nil && o.applied > 0 {
			list = append(list, VectorEntry{uint32(i), o.applied})
		}
	}
	return list
}

// DurableVector returns up to which number of each origin, by index, this replica holds everything durably.
func (r *Replica) DurableVector() []uint64 {
	list := make([]uint64, len(r.reg.list))
	for i, o := range r.reg.list {
		if o != nil {
			list[i] = o.durable
		}
	}
	return list
}

// Voters returns the configuration that this replica follows.
func (r *Replica) Voters() Voters { return r.voters }

// ReachedOrigin reports whether everything of an origin up to a number is held.
func (r *Replica) ReachedOrigin(id OriginID, number uint64) bool {
	o := r.reg.byID[id]
	return o != nil && o.applied >= number
}

// OriginOf returns the id of a dot's origin, 0 if it is not known.
func (r *Replica) OriginOf(d Dot) OriginID {
	if o := r.reg.get(d.Index()); o != nil {
		return o.ID
	}
	return 0
}

// DotOf returns the dot of a number of an origin; ok is false if the origin is not known.
func (r *Replica) DotOf(id OriginID, number uint64) (d Dot, ok bool) {
	if o := r.reg.byID[id]; o != nil {
		return MakeDot(o.Index, number), true
	}
	return 0, false
}

// Origins returns the origins that are known.
func (r *Replica) Origins() []Origin {
	var list []Origin
	for _, o := range r.reg.list {
		if o != nil {
			list = append(list, o.Origin)
		}
	}
	return slices.Clip(list)
}
