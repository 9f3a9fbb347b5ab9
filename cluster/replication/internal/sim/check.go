package sim

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// write is one call of a writer.
type write struct {
	by      string
	host    *host // who waits for it; nil: it is undecided for ever, or done
	record  replication.Record
	began   time.Duration
	needs   []replication.Dot
	barrier []replication.VectorEntry
	local   bool                   // durable where it was made, and that disk has not been lost since
	origins []replication.OriginID // of needs
	quorum  bool                   // acknowledged by a majority
	at      time.Duration
}

// write begins a call at a host.
func (h *host) write(r replication.Record, lane replication.Lane) *write {
	w := h.w
	if !h.up || w.now < h.paused || h.client {
		return nil
	}
	held, dot, ok := h.store.Held(&r, h.now())
	if r[36] == 4 || r[36] == 5 { // the later call wins
		p := parse(&r)
		if ok {
			p.Value = max(p.Value, parse(&held).Value+1)
		}
		r = encode(p)
	}
	wr := &write{by: h.name, host: h, record: r, began: w.now}
	w.writes = append(w.writes, wr)
	w.result.Writes++
	if ok && dot != 0 && join(&held, &r) == held {
		wr.needs = []replication.Dot{dot}
		h.written(wr)
		h.settle()
		return wr
	}
	h.enqueue(&batch{own: true, lane: lane, write: wr, records: []replication.Record{r}})
	return wr
}

// written: the call is durable here, or covered by something.
func (h *host) written(wr *write) {
	h.waiters = append(h.waiters, wr)
	wr.local = h.disk.covers(&wr.record)
}

func (h *host) forget(wr *write) {
	wr.host = nil
	h.waiters = slices.DeleteFunc(h.waiters, func(x *write) bool { return x == wr })
}

// settle acknowledges what a majority has confirmed, as package node does.
func (h *host) settle() {
	if h.client || h.rogue != nil || len(h.voters.Names) == 0 {
		return
	}
	h.waiters = slices.DeleteFunc(h.waiters, func(wr *write) bool {
		counts := make(map[string]int)
		for _, d := range wr.needs {
			if !h.core.Durable(d) {
				return false
			}
			for _, name := range h.core.Confirmed(d.Index(), d.Number()) {
				counts[name]++
			}
		}
		n := 0
		var confirmed []string
		for _, name := range h.voters.Names {
			if name == h.name && h.votes || name != h.name && counts[name] == len(wr.needs) {
				n++
				confirmed = append(confirmed, name)
			}
		}
		if n < h.voters.Majority() {
			return false
		}
		if wr.barrier == nil {
			wr.barrier = h.core.Barrier(confirmed)
		}
		if !h.core.Reached(wr.barrier) {
			return false
		}
		h.acknowledged(wr)
		return true
	})
}

func (h *host) acknowledged(wr *write) {
	w := h.w
	wr.quorum, wr.at, wr.host = true, w.now, nil
	w.result.Quorum++
	w.acked = append(w.acked, wr)
	for _, d := range wr.needs {
		wr.origins = append(wr.origins, h.ids[d.Index()])
	}
	holders, why := 0, fmt.Sprintf("%s; ", h.store.describe(&wr.record))
	for _, name := range h.voters.Names {
		if h := w.byName[name]; h.holdsContent(h.disk, &wr.record) || h.before != nil && w.now < h.wipedAt+time.Second && h.holdsContent(h.before, &wr.record) {
			holders++ // or it did when it said so, and has been wiped since
		} else {
			why += fmt.Sprintf("%s has %s; ", name, h.disk.describe(&wr.record))
		}
	}
	if holders < h.voters.Majority() && w.rogue == nil {
		w.failf("%s acknowledged a write of %v that lies on the disks of %d voters of %d: %s", h.name, wr.began, holders, len(h.voters.Names), why)
	}
}

// holder is a store or a disk.
type holder interface {
	covers(r *replication.Record) bool
	describe(r *replication.Record) string
}

// holdsContent reports whether a holder has what a number stands for, or no longer needs it: no host's guarded time is ahead of the true one.
func (h *host) holdsContent(s holder, r *replication.Record) bool {
	return s.covers(r) || expired(r, epoch+int64(h.w.now/time.Millisecond))
}

// checkVector holds the vector against what the store has.
func (h *host) checkVector() {
	for _, v := range h.core.Vector() {
		id, ok := h.ids[v.Index]
		if !ok {
			h.w.failf("%s: index %d has no origin", h.name, v.Index)
			return
		}
		h.verified[id] = h.checkRange(h.store, "vector", id, h.verified[id]+1, v.Number)
	}
}

func (h *host) checkRange(s holder, what string, id replication.OriginID, from, to uint64) uint64 {
	list := h.w.content[id]
	if h.w.ambiguous[id] || h.w.rogue != nil {
		return to
	}
	for n := from; n <= to; n++ {
		if n > uint64(len(list)) {
			// A seal of an origin that numbered nothing, or whose records are gone, stands for no content.
			if from == 1 && len(list) == 0 || h.w.broken != "" {
				return to
			}
			h.w.failf("%s: its %s claims number %d of origin %x, which gave %d", h.name, what, n, uint64(id), len(list))
			return to
		}
		if !h.holdsContent(s, &list[n-1]) {
			h.w.failf("%s: its %s claims number %d of origin %x, and the content is not there: %s", h.name, what, n, uint64(id), s.describe(&list[n-1]))
			return to
		}
	}
	return max(to, from-1)
}

// checkDisk holds a vector on disk against the records there.
func (h *host) checkDisk(id replication.OriginID, from, to uint64) {
	h.checkRange(h.disk, "vector on disk", id, from, to)
}

// checkDurable holds what is said to be durable against the disk.
func (h *host) checkDurable() {
	if h.client {
		return
	}
	for index, n := range h.core.DurableVector() {
		id, ok := h.ids[uint32(index)]
		if n == 0 || !ok {
			continue
		}
		if o, known := h.disk.origins[uint32(index)]; known && o.ID == id && o.Node != h.name && h.disk.vector[uint32(index)] < n {
			h.w.failf("%s says that it holds number %d of origin %x durably; its disk has the vector at %d", h.name, n, uint64(id), h.disk.vector[uint32(index)])
			return
		} else if !known && len(h.w.content[id]) > 0 {
			h.w.failf("%s says that it holds number %d of origin %x durably, which its disk does not know", h.name, n, uint64(id))
			return
		}
	}
}

// checkFresh holds the view against the acknowledged writes that are older than it.
func (h *host) checkFresh() {
	quorum, _ := h.core.FreshSince()
	at := h.w.now
	switch quorum {
	case math.MinInt64:
		return
	case math.MaxInt64:
	default:
		at = quorum + h.base
	}
	for h.fresh < len(h.w.acked) && h.w.acked[h.fresh].at < at {
		wr := h.w.acked[h.fresh]
		if !h.holdsContent(h.store, &wr.record) && h.w.rogue == nil {
			h.w.failf("%s calls its view fresh as of %v, and lacks a write of %s that a majority acknowledged at %v: %s; %s", h.name, at, wr.by, wr.at, h.store.describe(&wr.record), h.viewsOf(wr))
			return
		}
		h.fresh++
		h.w.result.Checked++
	}
}

// viewsOf says as of when this replica holds what each voter held, and who has a record.
func (h *host) viewsOf(wr *write) string {
	r := &wr.record
	var b strings.Builder
	for _, id := range wr.origins {
		fmt.Fprintf(&b, "%x:%d, here %d; ", uint64(id), wr.needs[0].Number(), h.vectorByID()[id])
	}
	for _, name := range h.voters.Names {
		p := h.w.byName[name]
		fmt.Fprintf(&b, "%s (run %d, votes %v, has it %v, on disk %v) as of %v; ", name, p.run, p.votes, p.store.covers(r), p.disk.covers(r), h.core.View(name)+h.base)
	}
	return b.String()
}

// cloned: a test has copied a running node.
func (w *World) cloned() bool { return len(w.ambiguous) > 0 || w.rogue != nil || w.broken != "" }

// quiesce heals everything and waits until all replicas are equal.
func (w *World) quiesce(limit time.Duration) {
	w.calm = true
	clear(w.cut)
	w.release()
	for _, h := range w.hosts {
		h.wall, h.guarded, h.store.full, h.refuses = 0, 0, false, 0
		if !h.up {
			h.start()
		}
	}
	end := w.now + limit
	for w.now < end && len(w.result.Failures) == 0 {
		w.run(w.now + 50*time.Millisecond)
		if w.difference() == "" {
			break
		}
	}
	if len(w.result.Failures) > 0 {
		return
	}
	if d := w.difference(); d != "" {
		w.failf("not level after %v: %s", limit, d)
		return
	}
	w.checkEnd()
}

// difference says how replicas differ, nothing if they do not.
func (w *World) difference() string {
	first := w.nodes[0]
	expected := w.live(first)
	vector := first.vectorByID()
	for _, o := range first.core.Origins() {
		if o.Node == rogueName { // how much of it each node takes depends on what it has of it already
			delete(vector, o.ID)
		}
	}
	stranded := w.stranded()
	maps.DeleteFunc(expected, func(k replication.Key, _ *entry) bool { return stranded[k] })
	for _, h := range w.hosts {
		if h.rogue != nil {
			continue
		}
		if h.core.Stats().Behind > 0 && w.rogue == nil {
			return h.name + " is behind"
		}
		if w.rogue != nil { // what it has written, and joined with theirs, they need not all have
			for _, wr := range w.writes {
				if (wr.quorum || wr.local && !h.client) && !h.holdsContent(h.store, &wr.record) {
					return h.name + " lacks content"
				}
			}
		}
		if h.client { // it may hold what went from a node straight to it, and was lost with that node's disk
			if d := w.lacks(h, expected, vector); d != "" {
				return d
			}
			continue
		}
		live := w.live(h)
		maps.DeleteFunc(live, func(k replication.Key, _ *entry) bool { return stranded[k] })
		if w.rogue != nil {
			live, expected = nil, nil
		}
		if len(live) != len(expected) {
			return h.name + " holds more, or fewer, records than " + first.name
		}
		for k, e := range live {
			x := expected[k]
			switch {
			case x == nil:
				return h.name + " holds what " + first.name + " does not: " + h.store.describe(&e.record)
			case x.record != e.record:
				return h.name + " holds other content than " + first.name + ": " + h.store.describe(&x.record)
			case e.dot == 0:
				return h.name + " holds content without a name"
			}
		}
		// Of an origin that one of them has not heard of yet, too: what expires soon is in no comparison but this one.
		have := h.vectorByID()
		for id := range w.content {
			if have[id] != vector[id] && !w.ambiguous[id] && w.rogue == nil {
				return h.name + " has another vector than " + first.name
			}
		}
		if len(h.queue) > 0 || h.behind.missed {
			return h.name + " writes to its disk"
		}
		if !w.large && !h.votes && (w.rogue == nil || h.core.Stats().Refused == 0) { // what it refuses keeps it from being level
			return h.name + " does not vote"
		}
	}
	return ""
}

// stranded are the keys of what a node has taken above a hole that nobody can fill, since its origin's disk is lost: only an audit moves it on. None if there are audits.
func (w *World) stranded() map[replication.Key]bool {
	keys := make(map[replication.Key]bool)
	if w.audits {
		return keys
	}
	for _, h := range w.nodes {
		applied := make(map[uint32]uint64)
		for _, v := range h.core.Vector() {
			applied[v.Index] = v.Number
		}
		for k, e := range h.store.entries {
			if e.dot.Index() != 0 && e.dot.Number() > applied[e.dot.Index()] {
				keys[k] = true
			}
		}
	}
	return keys
}

// lacks says what a client lacks of what the nodes hold.
func (w *World) lacks(h *host, expected map[replication.Key]*entry, vector map[replication.OriginID]uint64) string {
	for _, e := range expected {
		if !h.store.covers(&e.record) {
			return h.name + " lacks content"
		}
	}
	have := h.vectorByID()
	for id, n := range vector {
		if have[id] < n && len(w.content[id]) > 0 {
			return h.name + " has another vector than the nodes"
		}
	}
	return ""
}

// live returns what a replica holds that will not expire while one looks.
func (w *World) live(h *host) map[replication.Key]*entry {
	live := make(map[replication.Key]*entry, len(h.store.entries))
	for k, e := range h.store.entries {
		if !expired(&e.record, h.now().Guarded+int64(time.Minute/time.Millisecond)) {
			live[k] = e
		}
	}
	return live
}

func (h *host) vectorByID() map[replication.OriginID]uint64 {
	m := make(map[replication.OriginID]uint64)
	for _, v := range h.core.Vector() {
		m[h.ids[v.Index]] = v.Number
	}
	return m
}

// checkEnd holds what all replicas have against what was acknowledged and what was ever asked for.
func (w *World) checkEnd() {
	for _, h := range w.hosts {
		h.rotten = false // by now it must have been repaired
	}
	first := w.nodes[0]
	now := first.now().Guarded
	all := newStore("")
	for _, wr := range w.writes {
		all.merge(&wr.record, 1, 0)
		if (wr.quorum || wr.local) && !first.store.covers(&wr.record) && !expired(&wr.record, now) {
			w.failf("a write of %s at %v was acknowledged (a majority: %v) and is nowhere", wr.by, wr.began, wr.quorum)
		}
	}
	for _, k := range sortedKeys(w.live(first)) {
		if w.rogue != nil {
			break
		}
		if r := first.store.entries[k].record; !all.covers(&r) {
			w.failf("all hold content that nobody wrote")
		}
	}
	for _, h := range w.hosts {
		if h.rogue != nil {
			continue
		}
		if w.rogue != nil {
			h.checkRogue()
		}
		h.checkFresh()
		if n := len(h.core.Origins()); n > len(w.content)+2*len(w.nodes) && w.rogue == nil {
			w.failf("%s knows %d origins; there were %d", h.name, n, len(w.content))
		}
		for _, o := range h.core.Origins() {
			if n, m := h.vectorByID()[o.ID], w.content[o.ID]; n > 0 && len(m) > 0 {
				h.checkRange(h.store, "vector", o.ID, 1, n)
			}
		}
		if !h.client && !w.large {
			h.verifyDisk()
		}
		s := h.core.Stats()
		w.result.Scans += s.Scans
		w.result.Pulls += s.Pulls
		w.result.Reissued += s.Reissued
		w.result.Repaired += s.Repaired
	}
}

// checkRogue: it has made nobody keep more than one node may, and everybody has what was acknowledged in the end. What a rogue can do meanwhile, until the audit, is
// to have others believe that they hold what a node has written, while that node is away (docs/adr/0010): so claims, views and acknowledgements are not held against the content in a world with
// one, and no disk is lost there.
func (h *host) checkRogue() {
	w := h.w
	n := 0
	for _, e := range h.store.entries {
		if o, ok := h.nodeOf(e.dot.Index()); ok && o == rogueName {
			n++
		}
	}
	if limit := rogueRecords * len(w.nodes); n > limit && !h.client {
		w.failf("%s holds %d records of the rogue, limit %d", h.name, n, limit)
	}
	for _, wr := range w.writes {
		if wr.quorum && !h.holdsContent(h.store, &wr.record) {
			w.failf("%s lacks a write of %s at %v that a majority acknowledged: %s", h.name, wr.by, wr.began, h.store.describe(&wr.record))
		}
	}
	for _, e := range h.store.entries {
		if parse(&e.record).Plausible(epoch+int64(w.now/time.Millisecond)) != nil {
			w.failf("%s holds a record that is out of bounds: %s", h.name, h.store.describe(&e.record))
		}
	}
}

func (h *host) nodeOf(index uint32) (string, bool) {
	for _, o := range h.core.Origins() {
		if o.Index == index {
			return o.Node, true
		}
	}
	return "", false
}

// verifyDisk holds the whole vector on disk against the records there.
func (h *host) verifyDisk() {
	for _, index := range slices.Sorted(maps.Keys(h.disk.vector)) {
		if o, ok := h.disk.origins[index]; ok {
			h.checkDisk(o.ID, 1, h.disk.vector[index])
		}
	}
}

func describe(r *replication.Record) string {
	return fmt.Sprintf("class %d value +%d until +%d s", r[36], parse(r).Value-epoch, int64(deadline(r))-epoch/1000)
}

// describe compares a record with what is held under its key.
func (s *store) describe(r *replication.Record) string {
	if e := s.entries[r.Key()]; e != nil {
		return fmt.Sprintf("%s; held is %s as %d:%d", describe(r), describe(&e.record), e.dot.Index(), e.dot.Number())
	}
	return describe(r) + "; nothing is held"
}

// Describe says where every replica stands.
func (w *World) Describe() string {
	var b strings.Builder
	for _, h := range w.hosts {
		fmt.Fprintf(&b, "%s up %v stats %+v\n", h.name, h.up, h.core.Stats())
		for _, v := range h.core.Vector() {
			fmt.Fprintf(&b, "  %x %d of %d\n", uint64(h.ids[v.Index]), v.Number, len(w.content[h.ids[v.Index]]))
		}
		for _, p := range h.core.Peers() {
			fmt.Fprintf(&b, "  peer %s behind %d ahead %d\n", p.Name, p.Behind, p.Ahead)
		}
	}
	return b.String()
}
