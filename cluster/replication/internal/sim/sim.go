// Package sim runs clusters of [replication.Replica] in virtual time: one goroutine, one heap of events, one seed, and the same trace each
// time. It stands in for hosts, disks, networks and clocks, breaks all of them, and holds the promises of package replication against what really happened.
//
// # What it knows
//
// Everything: which content every number of every origin stands for, what lies on every disk, when each write was acknowledged. The replicas
// know only what they are told. Voters are agreed on by the real machine of package voters; joins are those of package revocation.
//
// # What it promises
//
// Any broken promise ends the run with a sentence that says when, where and what. The same [Options] give the same [Result], bit for bit.
//
// # Concurrency
//
// A [World] is for one goroutine. The zero World is not usable: see [New].
package sim

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
)

// Options say what to simulate. Zero fields mean the defaults.
type Options struct {
	Seed    uint64
	Nodes   int           // default 3
	Clients int           // replicas that only read
	For     time.Duration // how long things break and writes happen; default 1.5 s
	Rogue   bool          // there is one: see rogue
	Calm    bool          // nothing breaks, nobody writes by chance
	Mutant  string        // a rule that is left out: see Mutants
	Config  func(*replication.Config)

	large bool // there are no voters, and disks do their work without being looked at; so it is with more nodes than can vote
}

// Result is what came of a run.
type Result struct {
	Trace    uint64 // a hash over everything that happened
	Events   uint64
	Virtual  time.Duration
	Messages uint64
	Bytes    uint64
	Writes   int
	Quorum   int // writes that a majority acknowledged
	Crashes  int
	Wipes    int
	Rolls    int // changes of a host's version
	Cuts     int // links cut for a while, one way or both
	Pauses   int
	Steps    int // of wall clocks
	Refusals int // batches of peers' records that a disk refused
	Breaks   int // sessions that ended
	Scans    uint64
	Pulls    uint64
	Reissued uint64
	Repaired uint64
	Checked  uint64 // acknowledged writes that were looked up in a view that had to have them
	Failures []string
}

// rule names a mutant.
type rule string

// World is one simulated cluster.
type World struct {
	o      Options
	broken rule
	rng    *rand.Rand
	now    time.Duration
	order  uint64
	queue  events
	trace  uint64
	result Result

	nodes     []*host // and then clients
	hosts     []*host
	rogue     *host // one of them, and none of nodes
	byName    map[string]*host
	links     []*link
	lastID    replication.PeerID
	content   map[replication.OriginID][]replication.Record // by number - 1
	writes    []*write
	acked     []*write // by a majority, in the order of time
	cut       map[[2]*host]bool
	calm      bool
	ambiguous map[replication.OriginID]bool // origins of nodes that were cloned
	setup     bool                          // the first voters are still being agreed on

	latency [2]time.Duration
	silent  time.Duration
	syncs   [2]time.Duration
	large   bool // no checks on the way
	audits  bool // replicas compare sums
	arrived func(replication.Key)
}

type action struct {
	at    time.Duration
	order uint64
	do    func()
}

type events []action

func (a *action) before(b *action) bool { return a.at < b.at || a.at == b.at && a.order < b.order }

// push and pop keep a heap with four children to a node; container/heap allocates for each of them.
func (e *events) push(a action) {
	h := append(*e, a)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !a.before(&h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = a
	*e = h
}

func (e *events) pop() action {
	h := *e
	first, last := h[0], h[len(h)-1]
	h[len(h)-1] = action{}
	h = h[:len(h)-1]
	*e = h
	if len(h) == 0 {
		return first
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= len(h) {
			break
		}
		for c := least + 1; c < min(4*i+5, len(h)); c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if !h[least].before(&last) {
			break
		}
		h[i] = h[least]
		i = least
	}
	h[i] = last
	return first
}

func (w *World) after(d time.Duration, do func()) { w.at(w.now+d, do) }

func (w *World) at(t time.Duration, do func()) {
	w.order++
	w.queue.push(action{max(t, w.now), w.order, do})
}

// run carries on until a time, or until something is wrong.
func (w *World) run(until time.Duration) {
	for len(w.queue) > 0 && w.queue[0].at <= until && len(w.result.Failures) == 0 {
		a := w.queue.pop()
		w.now = a.at
		w.result.Events++
		a.do()
	}
	w.now = max(w.now, until)
}

func (w *World) failf(format string, args ...any) {
	if w.rogue != nil {
		format += " (with a rogue)"
	}
	if len(w.result.Failures) < 5 {
		w.result.Failures = append(w.result.Failures, fmt.Sprintf("%v: ", w.now)+fmt.Sprintf(format, args...))
	}
}

func (w *World) mark(values ...uint64) {
	h := mix(w.trace, uint64(w.now))
	for _, v := range values {
		h = mix(h, v)
	}
	w.trace = h
}

// between returns a random duration.
func (w *World) between(a, b time.Duration) time.Duration {
	if b <= a {
		return a
	}
	return a + time.Duration(w.rng.Int64N(int64(b-a)))
}

func (w *World) chance(p float64) bool { return w.rng.Float64() < p }

// New makes a cluster whose nodes have agreed on who votes.
func New(o Options) *World {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.For == 0 {
		o.For = 1500 * time.Millisecond
	}
	w := &World{
		o: o, broken: rule(o.Mutant), rng: rand.New(rand.NewPCG(o.Seed, 1)), byName: make(map[string]*host), content: make(map[replication.OriginID][]replication.Record),
		cut: make(map[[2]*host]bool), ambiguous: make(map[replication.OriginID]bool), latency: [2]time.Duration{100 * time.Microsecond, 500 * time.Microsecond}, silent: 300 * time.Millisecond,
		syncs: [2]time.Duration{100 * time.Microsecond, 3 * time.Millisecond}, calm: true, setup: true, large: o.large || o.Nodes > voters.MaxVoters,
	}
	for i := range o.Nodes {
		w.nodes = append(w.nodes, w.addHost(fmt.Sprintf("n%d", i+1), uint64(i+1), false))
	}
	for i := range o.Clients {
		w.addHost(fmt.Sprintf("c%d", i+1), uint64(o.Nodes+i+1), true)
	}
	w.connectAll()
	if o.Rogue {
		w.addRogue()
	}
	for _, h := range w.hosts {
		h.start()
	}
	return w
}

func (w *World) addHost(name string, id uint64, client bool) *host {
	h := &host{w: w, name: name, id: id, client: client, disk: newDisk(), rng: rand.New(rand.NewPCG(w.o.Seed, id+99))}
	h.inc = h.incarnation()
	w.hosts = append(w.hosts, h)
	w.byName[name] = h
	return h
}

// connectAll makes the links: sessions are begun over them, and begun anew when they end.
func (w *World) connectAll() {
	n := len(w.nodes)
	for i := range n {
		for j := i + 1; j < n; j++ {
			if replication.Near(i, j, n) {
				w.links = append(w.links, &link{w: w, ends: [2]*host{w.nodes[i], w.nodes[j]}})
			}
		}
	}
	for _, c := range w.hosts[n:] {
		w.links = append(w.links, &link{w: w, ends: [2]*host{c, w.nodes[w.rng.IntN(n)]}})
	}
	for _, l := range w.links {
		l.ends[0].links = append(l.ends[0].links, l)
		if l.ends[0].client {
			continue
		}
		l.ends[1].links = append(l.ends[1].links, l)
	}
}

// link is where two hosts may have a session. That of a client moves from node to node.
type link struct {
	w    *World
	ends [2]*host
	dead bool // for good
	conn *conn
	busy bool // a dial is under way
}

// conn is one session: two ends, ordered messages both ways.
type conn struct {
	link    *link
	ends    [2]*session
	last    [2]time.Duration // arrival of the last message to an end
	queue   [2][]packet      // on their way to an end
	waiting [2]bool          // a link that is cut is waited for
	over    bool
}

type packet struct {
	at      time.Duration
	message []byte
}

// session is one end.
type session struct {
	id      replication.PeerID
	conn    *conn
	side    int // index in conn.ends
	host    *host
	other   *host
	filling bool
	open    bool
	helped  bool // something was sent
	heard   bool // it has said something
}

func (w *World) isCut(from, to *host) bool { return w.cut[[2]*host{from, to}] }

// dial begins a session over a link if there can be one, now or a little later.
func (l *link) dial(after time.Duration) {
	if l.busy || l.dead {
		return
	}
	l.busy = true
	l.w.after(after, func() {
		l.busy = false
		a, b := l.ends[0], l.ends[1]
		if l.conn != nil || !a.up {
			return
		}
		if !b.up || l.w.isCut(a, b) || l.w.isCut(b, a) {
			if a.client && l.w.chance(0.3) {
				l.move()
			}
			l.dial(l.w.between(5*time.Millisecond, 40*time.Millisecond))
			return
		}
		c := &conn{link: l}
		l.conn = c
		for i, h := range l.ends {
			l.w.lastID++
			c.ends[i] = &session{id: l.w.lastID, conn: c, side: i, host: h, other: l.ends[1-i]}
		}
		for _, s := range c.ends {
			s.host.open(s)
		}
	})
}

// move takes a client to another node.
func (l *link) move() {
	c, old := l.ends[0], l.ends[1]
	next := l.w.nodes[l.w.rng.IntN(len(l.w.nodes))]
	if l.conn != nil {
		l.conn.close(true)
	}
	l.ends[1] = next
	l.w.mark(4, c.id, old.id, next.id)
}

// close ends a session; what is on its way is lost if hard, else one side learns later than the other.
func (c *conn) close(hard bool) {
	if c.over {
		return
	}
	c.over = true
	w := c.link.w
	w.result.Breaks++
	c.link.conn = nil
	first := w.rng.IntN(2)
	c.ends[first].shut()
	other := c.ends[1-first]
	if hard || !other.open {
		other.shut()
	} else { // it still receives what was sent, then the end
		w.at(max(c.last[1-first], w.now)+w.between(0, w.latency[1]), other.shut)
	}
	c.link.dial(w.between(1*time.Millisecond, 30*time.Millisecond))
}

// shut tells the host of an end.
func (s *session) shut() {
	if !s.open {
		return
	}
	s.open = false
	h := s.host
	delete(h.sessions, s.id)
	if h.up {
		h.step(replication.Disconnected{Peer: s.id})
	}
}

// send puts a message on its way.
func (s *session) send(message []byte) {
	w := s.host.w
	s.helped = true
	s.host.overheard(message)
	s.other.overheard(message)
	w.result.Messages++
	w.result.Bytes += uint64(len(message))
	c, side := s.conn, 1-s.side
	t := max(w.now+w.between(w.latency[0], w.latency[1]), c.last[side]+1)
	c.last[side] = t
	c.queue[side] = append(c.queue[side], packet{t, message})
	w.at(t, func() { c.pump(side) })
}

// pump delivers what has arrived at an end, in order, unless the link is cut or the host does nothing: then it waits.
func (c *conn) pump(side int) {
	w, s := c.link.w, c.ends[side]
	for s.open && s.host.up && len(c.queue[side]) > 0 && c.queue[side][0].at <= w.now {
		switch {
		case w.isCut(s.other, s.host):
			if !c.waiting[side] {
				c.waiting[side] = true
				first := c.queue[side][0].at
				w.after(w.silent, func() { // TCP sends it again, or gives up
					c.waiting[side] = false
					if len(c.queue[side]) > 0 && c.queue[side][0].at == first && w.isCut(s.other, s.host) {
						c.close(true)
					}
				})
			}
			return
		case w.now < s.host.paused:
			w.at(s.host.paused, func() { c.pump(side) })
			return
		}
		message := c.queue[side][0].message
		s.heard = s.heard || len(message) > 100
		c.queue[side] = c.queue[side][1:]
		w.mark(1, s.other.id, s.host.id, uint64(len(message)), uint64(crc32.Checksum(message, castagnoli)))
		s.host.step(replication.Received{Peer: s.id, Message: message})
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// release lets through what was held.
func (w *World) release() {
	for _, l := range w.links {
		c := l.conn
		if c == nil {
			continue
		}
		for side := range 2 {
			w.after(w.between(w.latency[0], w.latency[1]), func() { c.pump(side) })
		}
	}
}

// newContent notes what a number stands for.
func (w *World) newContent(id replication.OriginID, number uint64, r *replication.Record) {
	list := w.content[id]
	switch {
	case number <= uint64(len(list)):
		if list[number-1] != *r && w.broken == "" && !w.ambiguous[id] {
			w.failf("number %d of origin %x stands for two contents", number, uint64(id))
		}
	case number == uint64(len(list))+1:
		w.content[id] = append(list, *r)
	default:
		w.failf("origin %x jumps from %d to %d", uint64(id), len(list), number)
	}
}

// record makes the record of a key: class and definition follow from it.
func makeRecord(key uint64, value int64, expires uint32) replication.Record {
	var r replication.Record
	h := mix(1, key)
	binary.BigEndian.PutUint64(r[:], h)
	binary.BigEndian.PutUint64(r[8:], mix(h, 2))
	binary.BigEndian.PutUint64(r[16:], uint64(value))
	binary.BigEndian.PutUint64(r[24:], 1+key%3)
	binary.BigEndian.PutUint32(r[32:], expires)
	r[36] = byte([]int{2, 2, 4}[key%3])
	if r[36] == 4 {
		// A later stamp wins with its deadline, which must not be earlier: else the loser would be there again when the winner has expired.
		binary.BigEndian.PutUint32(r[32:], uint32(epoch/1000)+36_000)
		r[36] += byte(value % 2)
	}
	return r
}

// nextRecord is what a later version makes of a record: another class now and then, under a key of its own, and one more flag.
func nextRecord(r replication.Record, key uint64) replication.Record {
	if key%4 == 0 {
		binary.BigEndian.PutUint64(r[8:], mix(key, 9))
		r[36] = 200
		binary.BigEndian.PutUint64(r[24:], 9)
	}
	r[39] |= 1
	return r
}

func sortedKeys(entries map[replication.Key]*entry) []replication.Key {
	keys := make([]replication.Key, 0, len(entries))
	for k := range entries {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}
