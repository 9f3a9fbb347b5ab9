package replication

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// scan is the copying of what no log has any more. Its parts cover the key space; when all have arrived, everything that all their
// servers held before they began is here.
type scan struct {
	parts []*part
}

// part is an interval of keys, both ends included.
type part struct {
	from, to  Key
	peer      *peer // who serves it now
	id        uint64
	begun     bool
	vector    []VectorEntry // what its server held before the scan
	done      bool
	askedAt   time.Duration
	notBefore time.Duration
}

// serving is a scan that a peer is sent.
type serving struct {
	id       uint64
	from, to Key
	early    func(*Record) bool // what goes first, as long as that is being sent
	begin    Key                // where the rest begins
	has      []uint64           // the peer's vector, by index, when it asked
	bound    []uint64           // of a mutant
}

// release takes a part from its server: what has arrived is a part of its own, and somebody else sends the rest.
func (r *Replica) release(s *part) {
	s.peer.part, s.peer = nil, nil
	if s.begun && r.scan != nil {
		r.scan.parts = append(r.scan.parts, &part{done: true, vector: s.vector})
	}
	s.begun, s.vector = false, nil
}

// startScan begins to copy.
func (r *Replica) startScan() {
	r.scan = &scan{}
	n := uint64(1)
	if !r.copied && r.lacksMost() {
		n = bootstrapPart
	}
	step := (1<<63)/n*2 - 1
	for i := range n {
		s := &part{from: Key{Hi: i * (step + 1)}, to: Key{i*(step+1) + step, ^uint64(0)}}
		r.scan.parts = append(r.scan.parts, s)
	}
	r.scan.parts[n-1].to = lastKey
	r.stats.Scans++
}

// lacksMost reports whether there are several peers to copy from, and this replica holds less than an eighth of what the best of them does. By the time it copies, the newest of what
// others write now has come from their logs already.
func (r *Replica) lacksMost() bool {
	var held, best uint64
	for _, o := range r.reg.list {
		if o != nil && !o.own {
			held += o.applied
		}
	}
	servers := 0
	for _, p := range r.order {
		if !p.hello || p.client {
			continue
		}
		servers++
		var holds uint64
		for i, n := range p.applied {
			if o := r.reg.get(uint32(i)); o != nil && !o.own {
				holds += n
			}
		}
		best = max(best, holds)
	}
	return servers > 1 && 8*held < best
}

// runScan hands parts to peers that can serve them, and ends the scan when all have arrived.
func (r *Replica) runScan() {
	if r.scan == nil {
		return
	}
	done := true
	for _, s := range r.scan.parts {
		if s.done {
			continue
		}
		done = false
		if s.peer != nil && !s.begun && r.now.Mono > s.askedAt+scanTimeout {
			s.peer.busyUntil = r.now.Mono + scanTimeout
			r.release(s)
		}
		if s.peer != nil || r.now.Mono < s.notBefore {
			continue
		}
		if p := r.scanServer(); p != nil {
			p.probeID++ // any number that this session has not used
			s.peer, s.id, s.begun, s.askedAt = p, p.probeID, false, r.now.Mono
			p.part, p.scanAt = s, r.now.Mono
			p.due = true // it filters by our vector; what it does not know yet comes twice
			p.say(func(w *writer) {
				w.frame(frameScan)
				w.uint(s.id)
				w.key(s.from)
				w.key(s.to)
				w.end()
			})
			r.wake(p)
		}
	}
	if done {
		r.endScan()
	} else if !slices.ContainsFunc(r.order, r.knowsMore) {
		for _, s := range r.scan.parts { // who had more is gone, or the logs had it after all
			if s.peer != nil {
				s.peer.part = nil
			}
		}
		r.scan = nil
	}
}

// scanServer returns who can serve a part now, nil if nobody can. It is who was asked the longest time ago: what one claims and does not have, others do.
func (r *Replica) scanServer() (server *peer) {
	for _, p := range r.order {
		if !p.hello || p.client || p.part != nil || r.now.Mono < p.busyUntil || p.waiting() >= maxOut || !r.knowsMore(p) {
			continue
		}
		if server == nil || p.scanAt < server.scanAt {
			server = p
		}
	}
	return server
}

// knowsMore reports whether a peer holds what this replica does not.
func (r *Replica) knowsMore(p *peer) bool {
	if p.client {
		return false
	}
	for i, n := range p.applied {
		if o := r.reg.get(uint32(i)); o != nil && n > o.applied {
			return true
		}
	}
	return false
}

// endScan raises the vector to what every part's server held.
func (r *Replica) endScan() {
	held := make(map[uint32]uint64)
	for _, v := range r.scan.parts[0].vector {
		held[v.Index] = v.Number
	}
	for _, s := range r.scan.parts[1:] {
		next := make(map[uint32]uint64)
		for _, v := range s.vector {
			if n := min(held[v.Index], v.Number); n > 0 {
				next[v.Index] = n
			}
			if r.without("scan-max") {
				next[v.Index] = max(held[v.Index], v.Number)
			}
		}
		held = next
	}
	r.scan, r.copied = nil, true
	var raised []VectorEntry
	for index := range uint32(len(r.reg.list)) {
		o := r.reg.get(index)
		if o == nil || o.own {
			continue
		}
		if owner := r.owner(o); owner != nil && !r.silent(o, owner) { // what its node has not given, nobody holds
			held[index] = min(held[index], at(owner.applied, index))
		}
		if held[index] <= o.applied {
			continue
		}
		o.applied = held[index]
		o.since = r.now
		if !r.without("floor-kept") {
			r.log.forget(o)
		}
		r.move(o)
		raised = append(raised, VectorEntry{index, o.applied})
	}
	r.wakeClients()
	r.keep(nil, nil, raised...)
}

func (r *Replica) receiveScan(p *peer, f *reader) {
	s := &serving{id: f.uint(), from: f.key(), to: f.key()}
	if f.err != nil || r.cfg.Client {
		return
	}
	if p.scan != nil { // it has given the earlier one up
		p.scan = nil
		r.serving--
	}
	undefined := 0
	for _, o := range r.reg.list {
		if o != nil && o.applied > at(p.applied, o.Index) && at(p.defined, o.Index).id != o.ID {
			undefined++
		}
	}
	if undefined > maxUndefined { // the vector defines them, in as many messages as it takes
		p.due = true
	}
	accepted := r.serving < r.cfg.Scans && undefined <= maxUndefined
	var vector []VectorEntry
	p.say(func(w *writer) {
		if accepted {
			r.serving++
			s.has = slices.Clone(p.applied)
			s.early, s.begin = r.store.Early(r.now), s.from
			p.scan = s
			p.scanSent, p.scanTaken = 0, 0
			for _, o := range r.reg.list {
				if o != nil && o.applied > at(s.has, o.Index) {
					r.define(p, o)
					vector = append(vector, VectorEntry{o.Index, o.applied})
				}
				if o != nil && r.without("scan-upper-bound") {
					s.bound = grow(s.bound, o.Index)
					s.bound[o.Index] = o.applied
				}
			}
		}
		w.frame(frameScanBegin)
		w.uint(s.id)
		w.flag(accepted)
		w.uint(uint64(len(vector)))
		for _, v := range vector {
			w.uint(uint64(v.Index))
			w.uint(v.Number)
		}
		w.end()
	})
	r.wake(p)
}

func (r *Replica) receiveScanBegin(p *peer, f *reader) {
	id, accepted := f.uint(), f.flag()
	vector := []VectorEntry{}
	// What both hold already is not in it.
	listed := make(map[uint32]bool)
	for range f.count(2) {
		o := p.origin(r, f.uint())
		n := f.limited(MaxNumber)
		if o != nil && !listed[o.Index] {
			vector = append(vector, VectorEntry{o.Index, n})
			listed[o.Index] = true
		}
	}
	s := p.part
	if f.err != nil {
		return
	}
	if accepted {
		p.gotScan, p.saidScan = 0, 0
	}
	if s == nil || s.id != id {
		return // given up meanwhile
	}
	if !accepted {
		r.release(s)
		s.notBefore = r.now.Mono + pullTimeout
		p.busyUntil = r.now.Mono + 2*pullTimeout
		return
	}
	for _, o := range r.reg.list {
		if o != nil && !listed[o.Index] && o.applied > 0 {
			vector = append(vector, VectorEntry{o.Index, o.applied})
		}
	}
	s.begun, s.vector = true, vector
	if r.without("raise-at-begin") {
		for _, v := range vector {
			if o := r.reg.get(v.Index); v.Number > o.applied {
				o.applied = v.Number
				r.move(o)
				r.keep(nil, nil, v)
			}
		}
	}
}

// receiveScanned merges records of a scan. The vector stays where it is, and those that come early are no part of what has been copied in order.
func (r *Replica) receiveScanned(p *peer, f *reader, early bool) error {
	id := f.uint()
	b := f.scanned(r.scratch[:0])
	r.scratch = b
	if f.err != nil {
		return fmt.Errorf("%w: scanned records", ErrProtocol)
	}
	p.gotScan += uint64(len(b) / entrySize)
	if p.gotScan >= p.saidScan+scanWindow/4 { // also for a scan that was given up: it ends sooner
		p.saidScan = p.gotScan
		p.say(func(w *writer) {
			w.frame(frameWindow)
			w.uint(p.gotScan)
			w.end()
		})
		r.wake(p)
	}
	s := p.part
	if s == nil || s.id != id || !s.begun {
		return nil
	}
	last, err := r.mergeAll(p, b, nil)
	if err != nil {
		// The scan cannot end without it: the part goes back, and is tried again later.
		r.release(s)
		s.notBefore = r.now.Mono + refusedRetry
		if errors.Is(err, ErrQuota) {
			p.busyUntil = r.now.Mono + scanTimeout // somebody else may not have it
		}
		if errors.Is(err, ErrDefinition) {
			return err
		}
		return nil
	}
	if last != nil && !early {
		if next, ok := last.Key().next(); ok {
			s.from = next
		}
	}
	return nil
}

// mergeAll merges records with dots and returns the last one; changed is told the dots of those that changed something.
func (r *Replica) mergeAll(p *peer, b []byte, changed func(*Record, Dot)) (last *Record, err error) {
	records, dots := make([]Record, 0, len(b)/entrySize), make([]Dot, 0, len(b)/entrySize)
	for i := 0; len(b) > 0; i, b = i+1, b[entrySize:] {
		if i%MaxRun == 0 {
			r.ahead(b, entrySize)
		}
		rec := (*Record)(b)
		theirs := dotOf(b[RecordSize:])
		var d Dot // of an origin that has been forgotten: its content still counts
		if o := p.origin(r, uint64(theirs.Index())); o != nil && theirs.Index() != 0 {
			d = MakeDot(o.Index, theirs.Number())
			o.latest = max(o.latest, r.cfg.Deadline(rec))
		}
		node := p.name // of content without a dot
		if d != 0 {
			node = r.reg.get(d.Index()).Node
		}
		meter := r.meter(node)
		var m Merged
		refused := r.room(meter, node, p.name == node)
		if refused == nil {
			m, refused = r.store.Merge(rec, d, r.now, false)
		}
		if refused != nil {
			r.stats.Refused++
			r.stats.LastRefused = refused
			if err = refused; errors.Is(err, ErrQuota) {
				continue // the others are not held up by it
			}
			break
		}
		if r.journals(m) {
			records, dots = append(records, *rec), append(dots, d)
		}
		if m.Changed {
			meter.held++
			r.stats.ScannedNew++
			if changed != nil {
				changed(rec, d)
			}
		}
		if m.Unnamed || m.Changed && r.nameless(d) {
			r.addUnnamed(rec)
		}
		last = rec
		r.stats.Scanned++
	}
	r.keep(records, dots)
	return last, err
}

func (r *Replica) receiveScanEnd(p *peer, f *reader) {
	if s := p.part; s != nil && s.id == f.uint() && s.begun {
		s.done, s.peer, p.part = true, nil, nil
		if r.without("scan-vector-late") {
			s.vector = nil
			for i, n := range p.applied {
				s.vector = append(s.vector, VectorEntry{uint32(i), n})
			}
		}
	}
}

// fillScan writes a piece of the scan that a peer is served. If there is nothing in it the message says so, and the next one goes on.
func (r *Replica) fillScan(w *writer, p *peer) {
	s := p.scan
	if s == nil || p.scanSent >= p.scanTaken+scanWindow {
		return
	}
	found, n := r.scratch[:0], 0
	next, more := r.store.Scan(s.from, scanBudget, r.now, func(d Dot) bool {
		o := r.reg.get(d.Index())
		if o != nil && r.without("scan-upper-bound") && d.Number() > at(s.bound, d.Index()) {
			return false
		}
		return o == nil || d.Number() > at(s.has, d.Index())
	}, func(rec *Record, d Dot) bool {
		if s.to.less(rec.Key()) {
			return false
		}
		if s.early != nil && !s.early(rec) {
			return true
		}
		if o := r.reg.get(d.Index()); o != nil {
			r.defineIn(w, p, o)
		} else {
			d = 0
		}
		r.fillDefinition(w, p, r.cfg.DefinitionID(rec))
		found = putDot(append(found, rec[:]...), d)
		n++
		return n < r.cfg.ScanPiece
	})
	r.scratch = found
	t := frameScanned
	if s.early != nil {
		t = frameEarly
	}
	for len(found) > scanFrame*entrySize {
		w.scanned(t, s.id, found[:scanFrame*entrySize])
		found = found[scanFrame*entrySize:]
	}
	w.scanned(t, s.id, found)
	p.scanSent += uint64(n)
	r.stats.ScanSent += uint64(n)
	s.from = next
	switch ended := !more || s.to.less(next); {
	case ended && s.early != nil:
		s.from, s.early = s.begin, nil
	case ended:
		w.frame(frameScanEnd)
		w.uint(s.id)
		w.end()
		p.scan = nil
		r.serving--
	}
}
