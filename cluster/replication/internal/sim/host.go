package sim

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/replication/internal/next"
	"github.com/revokd/revokd/cluster/voters"
)

// epoch is the wall clock at the beginning, Unix milliseconds.
const epoch = int64(1_800_000_000_000)

// host does for a replica what package node does.
type host struct {
	w      *World
	name   string
	id     uint64
	client bool
	inc    replication.Incarnation
	rng    *rand.Rand
	links  []*link
	rogue  *rogue // nil: an honest one

	up       bool
	run      int // counts starts: what an earlier one began is void
	base     time.Duration
	wall     int64 // how far its clocks are off
	guarded  int64
	paused   time.Duration // until then it does nothing
	core     *replication.Replica
	store    *store
	disk     *disk
	sessions map[replication.PeerID]*session

	machine *voters.Machine
	voters  replication.Voters
	losses  uint32
	votes   bool
	caught  []replication.CaughtUp
	lost    bool  // wiped, and not yet a voter again
	before  *disk // that was wiped
	wipedAt time.Duration
	rotten  bool                    // its disk has lost something without knowing
	slow    time.Duration           // least time of a sync
	refuses time.Duration           // until then its disk takes nothing
	fails   bool                    // the next commit fails, and is on disk all the same
	next    bool                    // it runs a later version
	same    [2]replication.OriginID // of its clone: the next origins of this run

	own     [2]ownOrigin
	fenced  bool
	ids     map[uint32]replication.OriginID // by index
	origins map[uint32]replication.Origin   // news for the disk
	dropped map[uint32]bool

	queue   []*batch
	syncing bool
	behind  behind // what its disk has refused
	waiters []*write
	tickAt  time.Duration

	verified map[replication.OriginID]uint64 // of the vector
	fresh    int                             // acknowledged writes that have been looked up
}

type ownOrigin struct {
	index uint32
	id    replication.OriginID
	next  uint64
}

func (h *host) incarnation() (inc replication.Incarnation) {
	for i := range inc {
		inc[i] = byte(h.rng.Uint32())
	}
	return inc
}

func (h *host) now() replication.Now {
	ms := epoch + int64(h.w.now/time.Millisecond)
	return replication.Now{Mono: h.w.now - h.base, Wall: ms + h.wall, Guarded: ms + h.guarded}
}

// start boots the host from what its disk has.
func (h *host) start() {
	w := h.w
	h.up, h.run = true, h.run+1
	h.base = w.now - w.between(time.Second, time.Hour)
	h.store = newStore(w.broken)
	h.store.arrived = w.arrived
	h.store.trusted = func() bool { return !h.client && h.wall == 0 }
	h.sessions = make(map[replication.PeerID]*session)
	h.ids, h.origins, h.dropped = make(map[uint32]replication.OriginID), make(map[uint32]replication.Origin), make(map[uint32]bool)
	h.own, h.fenced, h.queue, h.syncing, h.waiters, h.caught, h.behind = [2]ownOrigin{}, false, nil, false, nil, nil, behind{}
	h.verified, h.fresh, h.tickAt, h.paused = make(map[replication.OriginID]uint64), 0, 0, 0
	h.voters, h.votes, h.losses = replication.Voters{}, false, 0
	cfg := replication.Config{
		Name: h.name, Incarnation: h.inc, Boot: h.rng.Uint64(), KeyID: 7, Client: h.client,
		Digest: digest, Deadline: deadline, DefinitionID: definition, Random: h.rng.Uint64,
		ProbeEvery: 20 * time.Millisecond, AuditEvery: -1,
	}
	if w.rogue != nil {
		cfg.NodeRecords = rogueRecords
	}
	if w.o.Config != nil {
		w.o.Config(&cfg)
	}
	w.audits = cfg.AuditEvery > 0
	switch w.broken {
	case "":
	case "no-audit":
		cfg.AuditEvery = -1
	default:
		cfg.Mutant = func(name string) bool { return name == string(w.broken) }
	}
	origins, vector, latest := h.disk.restore(h)
	core, err := replication.New(cfg, h.store, origins, vector)
	if err != nil {
		w.failf("%s does not start: %v", h.name, err)
		return
	}
	h.core = core
	for _, index := range slices.Sorted(maps.Keys(latest)) {
		core.Seen(index, latest[index])
	}
	w.mark(2, h.id, uint64(h.run))
	if h.rogue != nil {
		h.misbehave(h.run)
	} else if !h.client && !w.large {
		machine, err := voters.New(voters.Voter{Name: h.name, Incarnation: voters.Incarnation(h.inc)}, h.disk.voters, h.rng.Uint64())
		if err != nil {
			w.failf("%s: voters: %v", h.name, err)
			return
		}
		h.machine = machine
		h.adopt()
		h.votersTick(h.run)
	}
	h.step(replication.Tick{})
	if !h.client {
		h.house(h.run)
	}
	for _, l := range h.links {
		l.dial(w.between(0, 5*time.Millisecond))
	}
}

// stop ends the run of a host. What was not synced may be on disk or not.
func (h *host) stop() {
	if !h.up {
		return
	}
	w := h.w
	w.result.Crashes++
	w.mark(3, h.id)
	h.up = false
	for _, wr := range h.waiters {
		wr.host = nil
	}
	if h.syncing {
		n := 0
		for n < len(h.queue) && h.queue[n].taken && w.now >= h.refuses && w.chance(0.5) {
			h.apply(h.queue[n])
			n++
		}
	}
	h.queue = nil
	for _, l := range slices.Clone(w.links) {
		if l.conn != nil && (l.ends[0] == h || l.ends[1] == h) {
			l.conn.close(w.chance(0.5))
		}
	}
	clear(h.sessions)
}

// wipe takes the data directory.
func (h *host) wipe() {
	h.w.result.Wipes++
	h.before, h.wipedAt = h.disk, h.w.now
	h.disk = newDisk()
	h.lost = true
	if h.w.broken != "incarnation-kept" {
		h.inc = h.incarnation()
	}
	for _, wr := range h.w.writes {
		if wr.by == h.name && wr.local {
			wr.local = false // its only promised copy is gone
		}
	}
}

// later calls do in this run, when the host is not paused.
func (h *host) later(d time.Duration, do func()) {
	run := h.run
	var try func()
	try = func() {
		switch {
		case !h.up || h.run != run:
		case h.w.now < h.paused:
			h.w.at(h.paused, try)
		default:
			do()
		}
	}
	h.w.after(d, try)
}

func (h *host) open(s *session) {
	s.open = true
	h.sessions[s.id] = s
	h.step(replication.Connected{Peer: s.id, Name: s.other.name, Client: s.other.client})
}

// step tells the replica what has happened and carries out its answer.
func (h *host) step(e replication.Event) {
	w := h.w
	out := h.core.Step(h.now(), e)
	for _, id := range out.Wake {
		if s := h.sessions[id]; s != nil && !s.filling {
			s.filling = true
			h.later(time.Microsecond, func() { h.fill(s) })
		}
	}
	for _, o := range out.Origins {
		h.origins[o.Index] = o
		h.ids[o.Index] = o.ID
	}
	for _, index := range out.Dropped {
		h.dropped[index] = true
		delete(h.origins, index)
		delete(h.verified, h.ids[index])
		delete(h.ids, index)
	}
	for _, r := range out.Reissue {
		h.enqueue(&batch{lane: replication.Bulk, records: []replication.Record{r}, own: true, renames: true})
	}
	for _, c := range out.Control {
		if h.machine != nil {
			name, message := c.Name, slices.Clone(c.Message)
			h.later(time.Microsecond, func() { h.stepVoters(voters.Received{From: name, Data: message}) })
		}
	}
	h.caught = append(h.caught, out.CaughtUp...)
	for _, j := range out.Journal {
		if w.large { // a disk that does its work
			token := j.Token
			h.later(w.syncs[0], func() { h.step(replication.Journaled{Token: token}) })
			continue
		}
		h.keep(&batch{token: j.Token, records: slices.Clone(j.Records), dots: slices.Clone(j.Dots), vector: slices.Clone(j.Vector)})
		if w.broken == "vector-before-records" {
			h.disk.raise(h, j.Vector)
		}
	}
	if out.Fence && w.broken != "ignore-fence" {
		h.fenced = true
		h.enqueue(&batch{own: true}) // a start must know it
	}
	if out.Fence && !h.w.cloned() {
		w.failf("%s is told that it has a clone", h.name)
	}
	if h.client {
		h.voters = h.core.Voters()
	}
	acks, views, closing := out.Acks, out.Views, slices.Clone(out.Close) // what follows may step again
	if acks || views {
		h.settle()
	}
	if !w.large && !h.rotten && h.rogue == nil {
		h.checkVector()
		if acks {
			h.checkDurable()
		}
		if views {
			h.checkFresh()
		}
	}
	for _, c := range closing {
		if s := h.sessions[c.Peer]; s != nil {
			if !errors.Is(c.Err, replication.ErrClone) && h.rogue == nil && s.other.rogue == nil {
				w.failf("%s ends the session with %s: %v", h.name, s.other.name, c.Err)
			}
			s.conn.close(true)
		}
	}
	h.schedule()
}

// schedule sees to the next tick.
func (h *host) schedule() {
	next := h.core.Deadline() + h.base
	next = max(next, h.w.now+50*time.Microsecond)
	if h.tickAt > h.w.now && h.tickAt <= next {
		return
	}
	h.tickAt = next
	h.later(next-h.w.now, func() {
		if h.tickAt == next {
			h.step(replication.Tick{})
		}
	})
}

// fill writes messages until there are none.
func (h *host) fill(s *session) {
	if !s.open {
		return
	}
	b := h.core.Fill(h.now(), s.id, nil)
	if len(b) == 0 {
		s.filling = false
		h.schedule()
		return
	}
	if h.next {
		b = next.Message(b)
	}
	if len(b) > replication.MaxMessage {
		h.w.failf("%s sends a message of %d bytes", h.name, len(b))
	}
	s.send(b)
	h.later(2*time.Microsecond+time.Duration(len(b)), func() { h.fill(s) })
}

// batch is one write to the journal.
type batch struct {
	own     bool
	renames bool
	lane    replication.Lane
	write   *write
	records []replication.Record
	dots    []replication.Dot
	token   uint64
	vector  []replication.VectorEntry
	mend    *mending // a piece of what the disk has missed

	taken   bool // a sync is under way
	origins []replication.Origin
	dropped []uint32
}

func (h *host) enqueue(b *batch) {
	h.queue = append(h.queue, b)
	h.sync()
}

// sync takes what waits: numbers are given in the order in which batches reach the disk.
func (h *host) sync() {
	if h.syncing || len(h.queue) == 0 {
		return
	}
	h.syncing = true
	n := len(h.queue)
	for _, b := range h.queue {
		h.assign(b)
	}
	// What is committed together fails together.
	failed, reached := !h.w.calm && h.w.chance(0.005) || h.fails, h.w.chance(0.5) || h.fails
	h.fails = false
	d := h.w.between(h.w.syncs[0], h.w.syncs[1]) + h.slow
	if !h.w.calm && h.w.chance(0.02) {
		d *= 30
	}
	h.later(d, func() {
		list := h.queue[:n:n]
		h.queue = slices.Clone(h.queue[n:])
		h.syncing = false
		if h.w.now < h.refuses {
			failed, reached = true, false
		}
		missed := h.behind.missed
		for _, b := range list {
			if failed {
				h.failed(b, reached, missed)
			} else {
				h.committed(b)
			}
		}
		h.sync()
	})
}

func (h *host) assign(b *batch) {
	b.taken = true
	if b.own {
		h.number(b)
	}
	b.dropped = slices.Sorted(maps.Keys(h.dropped))
	for _, index := range slices.Sorted(maps.Keys(h.origins)) {
		b.origins = append(b.origins, h.origins[index])
	}
	clear(h.origins)
	clear(h.dropped)
}

// number gives records their dots.
func (h *host) number(b *batch) {
	if h.fenced {
		h.fenced, h.own = false, [2]ownOrigin{}
	}
	o := &h.own[b.lane]
	if o.id == 0 {
		id := replication.MakeOrigin(h.rng.Uint64(), b.lane)
		if h.same[b.lane] != 0 {
			id, h.same[b.lane] = h.same[b.lane], 0
		} else if h.w.broken == "reuse-epoch" {
			id = replication.MakeOrigin(mix(99, h.id), b.lane)
		}
		index, err := h.core.NewOrigin(id)
		if err != nil && h.w.broken == "reuse-epoch" {
			id = replication.MakeOrigin(h.rng.Uint64(), b.lane)
			index, err = h.core.NewOrigin(id)
		}
		if err != nil {
			h.w.failf("%s: %v", h.name, err)
			return
		}
		*o = ownOrigin{index: index, id: id}
		h.ids[index] = id
		h.origins[index] = replication.Origin{Index: index, ID: id, Node: h.name}
	}
	for i := range b.records {
		o.next++
		b.dots = append(b.dots, replication.MakeDot(o.index, o.next))
		h.w.newContent(o.id, o.next, &b.records[i])
	}
}

// failed is called when a batch is on disk or not, and nobody knows. Its numbers are never given again. missed: something in front of it is not there.
func (h *host) failed(b *batch, reached, missed bool) {
	if reached {
		if missed && b.mend == nil {
			b.vector = nil
		}
		h.disk.apply(h, b)
	} else {
		for _, o := range b.origins {
			if _, ok := h.origins[o.Index]; !ok && h.ids[o.Index] == o.ID {
				h.origins[o.Index] = o
			}
		}
		for _, index := range b.dropped {
			h.dropped[index] = true
		}
	}
	if !b.own {
		h.behind.missed, h.behind.mending = true, nil // from the beginning
		h.w.result.Refusals++
		return
	}
	h.own[b.lane] = ownOrigin{}
	if b.write != nil {
		h.forget(b.write)
	}
}

// apply brings a batch to the disk. Behind one that the disk has refused it brings no vector: a start would believe that it has what was in there.
func (h *host) apply(b *batch) {
	if h.behind.missed && b.mend == nil && h.w.broken != "vector-over-refused" {
		b.vector = nil
	}
	h.disk.apply(h, b)
}

// committed is called when a batch is durable.
func (h *host) committed(b *batch) {
	h.apply(b)
	switch {
	case b.mend != nil:
		if b.mend == h.behind.mending {
			h.mended(b.mend)
		}
		return
	case !b.own:
		if (len(b.records) > 0 || len(b.vector) > 0) && (!h.behind.missed || h.w.broken == "vector-over-refused") {
			h.step(replication.Journaled{Token: b.token})
		}
		return
	}
	if len(b.records) == 0 {
		return
	}
	e := replication.Written{Index: b.dots[0].Index(), First: b.dots[0].Number(), Records: b.records}
	now := h.now()
	full := h.store.full
	h.store.full = false // a host admits before it writes
	defer func() { h.store.full = full }()
	for i := range b.records {
		h.store.defs[definition(&b.records[i])] = true
		if m, err := h.store.Merge(&b.records[i], b.dots[i], now, true); err == nil && m.Unnamed {
			e.Unnamed = append(e.Unnamed, b.records[i])
		}
		if b.renames {
			h.store.rename(&b.records[i], b.dots[i])
		}
	}
	if wr := b.write; wr != nil {
		wr.needs = append(wr.needs, b.dots[len(b.dots)-1])
		h.written(wr)
	}
	h.step(e)
}

// house writes what has become known of origins.
func (h *host) house(run int) {
	h.later(h.w.between(200*time.Millisecond, 400*time.Millisecond), func() {
		if h.run == run {
			if len(h.origins)+len(h.dropped) > 0 {
				h.enqueue(&batch{own: true})
			}
			h.mend()
			h.house(run)
		}
	})
}

// disk is what has been synced.
type disk struct {
	entries []entry
	byKey   map[replication.Key][]replication.Record // of entries
	origins map[uint32]replication.Origin
	vector  map[uint32]uint64
	voters  []byte
}

func newDisk() *disk {
	return &disk{byKey: make(map[replication.Key][]replication.Record), origins: make(map[uint32]replication.Origin), vector: make(map[uint32]uint64)}
}

func (d *disk) apply(h *host, b *batch) {
	for _, index := range b.dropped {
		delete(d.origins, index)
		delete(d.vector, index)
	}
	for _, o := range b.origins {
		o.Fenced = o.Fenced && h.w.broken != "fence-forgotten"
		d.origins[o.Index] = o
	}
	for i := range b.records {
		d.entries = append(d.entries, entry{b.records[i], b.dots[i]})
		d.byKey[b.records[i].Key()] = append(d.byKey[b.records[i].Key()], b.records[i])
	}
	d.raise(h, b.vector)
}

// covers reports whether a start finds at least r as long as r counts: what expires earlier may be gone by then.
func (d *disk) covers(r *replication.Record) bool {
	list := d.byKey[r.Key()]
	all := replication.Record{}
	for i := len(list) - 1; i >= 0; i-- {
		switch {
		case deadline(&list[i]) < deadline(r):
			continue
		case all == replication.Record{}:
			all = list[i]
		default:
			all = join(&all, &list[i])
		}
		if all == *r || join(&all, r) == all {
			return true
		}
	}
	return false
}

func (d *disk) describe(r *replication.Record) string {
	var b strings.Builder
	b.WriteString(describe(r) + "; on disk are")
	for i := range d.byKey[r.Key()] {
		b.WriteString(" (" + describe(&d.byKey[r.Key()][i]) + ")")
	}
	return b.String()
}

func (d *disk) raise(h *host, vector []replication.VectorEntry) {
	for _, v := range vector {
		old := d.vector[v.Index]
		d.vector[v.Index] = max(old, v.Number)
		if o, ok := d.origins[v.Index]; ok && !h.w.large && !h.rotten && h.rogue == nil {
			h.checkDisk(o.ID, old+1, v.Number)
		}
	}
}

// restore is what node does at a start.
func (d *disk) restore(h *host) ([]replication.Origin, []replication.VectorEntry, map[uint32]uint32) {
	now := h.now()
	last, latest := make(map[uint32]uint64), make(map[uint32]uint32)
	gone := h.w.chance(0.5) // files of what has expired
	for i := range d.entries {
		e := &d.entries[i]
		h.store.defs[definition(&e.record)] = true
		if gone && expired(&e.record, now.Guarded-1000) {
			continue
		}
		last[e.dot.Index()] = max(last[e.dot.Index()], e.dot.Number())
		latest[e.dot.Index()] = max(latest[e.dot.Index()], deadline(&e.record))
		dot := e.dot
		if d.origins[dot.Index()].Fenced {
			dot = 0
		}
		_, _ = h.store.Merge(&e.record, dot, now, false)
	}
	var origins []replication.Origin
	held := maps.Clone(d.vector)
	for _, index := range slices.Sorted(maps.Keys(d.origins)) {
		o := d.origins[index]
		h.ids[index] = o.ID
		own := o.Node == h.name && !o.Fenced && !o.Partial
		if own {
			held[index] = max(held[index], last[index], o.Sealed)
		}
		if last[index] == 0 && (own || o.Sealed > 0 && held[index] >= o.Sealed) {
			o.Sealed, o.Expires = max(1, held[index]), 1
			held[index] = o.Sealed
		}
		origins = append(origins, o)
	}
	var vector []replication.VectorEntry
	for _, index := range slices.Sorted(maps.Keys(held)) {
		vector = append(vector, replication.VectorEntry{Index: index, Number: held[index]})
	}
	return origins, vector, latest
}

// Voters.

func (h *host) votersTick(run int) {
	if h.run != run || h.machine == nil {
		return
	}
	list := h.caught
	h.caught = nil
	for _, c := range list {
		h.stepVoters(voters.CaughtUp{
			Name: h.name, Incarnation: voters.Incarnation(h.inc), Hash: c.Hash,
			With: []voters.Voter{{Name: c.Name, Incarnation: voters.Incarnation(c.Incarnation)}},
		})
	}
	var seen []voters.Voter
	for _, p := range h.w.nodes {
		if p != h && (!p.up || h.w.isCut(p, h)) {
			continue
		}
		v := voters.Voter{Name: p.name, Incarnation: voters.Incarnation(p.inc)}
		seen = append(seen, v)
		if p != h {
			h.stepVoters(voters.PeerSeen{Name: v.Name, Incarnation: v.Incarnation})
		}
	}
	if h.w.setup && h.machine.Config().IsZero() && len(seen) == len(h.w.nodes) {
		h.stepVoters(voters.Bootstrap{Expect: len(seen), Seen: seen})
	}
	h.stepVoters(voters.Tick{Now: (h.w.now - h.base).Milliseconds()})
	h.later(h.w.between(20*time.Millisecond, 30*time.Millisecond), func() { h.votersTick(run) })
}

func (h *host) stepVoters(e voters.Event) {
	for _, out := range h.machine.Step(e) {
		switch out := out.(type) {
		case voters.Persist:
			h.disk.voters = slices.Clone(out.State)
		case voters.Send:
			for _, id := range slices.Sorted(maps.Keys(h.sessions)) {
				if s := h.sessions[id]; s.other.name == out.To {
					h.step(replication.SendControl{Peer: id, Message: out.Data})
				}
			}
		}
	}
	h.adopt()
}

// adopt puts what the machine has adopted in force.
func (h *host) adopt() {
	st := h.machine.Status()
	votes := st.Votes
	if h.w.broken == "silent-votes" && !st.Config.IsZero() {
		votes = true
	}
	if st.Config.IsZero() || h.voters.Hash == st.Hash && h.votes == votes {
		return
	}
	v := replication.Voters{Number: st.Config.Number, Hash: st.Hash}
	for _, voter := range st.Config.Voters {
		v.Names = append(v.Names, voter.Name)
	}
	h.voters, h.votes, h.losses = v, votes, st.Config.Losses
	if votes {
		h.lost = false
	}
	h.w.mark(5, h.id, v.Number, v.Hash)
	h.step(replication.SetVoters{Voters: v, Self: votes})
}
