package voters

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// simulation is a cluster of machines on one heap of events, with the least of a replicated store beside each: a set of numbered records that
// spreads only by lossy copies and by catching up. It holds what is published against what happened, after every event.
type simulation struct {
	rng    *rand.Rand
	broken rule
	now    int64
	order  uint64
	queue  events
	nodes  map[string]*node
	names  []string
	cut    map[[2]string]bool // directed
	loss   float64
	crash  float64 // after each Persist

	decided map[[2]uint64]Config // by losses and number
	acked   map[int]bool
	records int
	changed bool // something that check looks at
	trace   uint64
	errs    []string
}

type node struct {
	name    string
	m       *Machine
	inc     Incarnation
	up      bool
	disk    []byte
	held    map[int]bool
	waiting map[int]*write
	results map[uint64]error
	expect  int
	last    Config // adopted by this incarnation last
}

type write struct {
	hash uint64
	acks map[string]Incarnation
}

type action struct {
	at    int64
	order uint64
	do    func()
}

type events []action

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(action)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func newSimulation(seed uint64, broken rule, names ...string) *simulation {
	s := &simulation{
		rng: rand.New(rand.NewPCG(seed, 7)), broken: broken, nodes: map[string]*node{}, cut: map[[2]string]bool{},
		decided: map[[2]uint64]Config{}, acked: map[int]bool{},
	}
	for _, name := range names {
		s.names = append(s.names, name)
		s.nodes[name] = &node{name: name, inc: s.incarnation(), held: map[int]bool{}, results: map[uint64]error{}}
	}
	return s
}

func (s *simulation) incarnation() (inc Incarnation) {
	for i := range inc {
		inc[i] = byte(s.rng.Uint32())
	}
	return inc
}

func (s *simulation) failf(format string, args ...any) {
	if len(s.errs) < 5 {
		s.errs = append(s.errs, fmt.Sprintf("%d ms: ", s.now)+fmt.Sprintf(format, args...))
	}
}

func (s *simulation) after(d int64, do func()) {
	s.order++
	heap.Push(&s.queue, action{s.now + d, s.order, do})
}

func (s *simulation) run(until int64) {
	for len(s.queue) > 0 && s.queue[0].at <= until && len(s.errs) == 0 {
		a := heap.Pop(&s.queue).(action)
		s.now = a.at
		a.do()
		s.check()
	}
	s.now = until
}

// link delivers do to a node as a network does: late, twice, or never.
func (s *simulation) link(from, to string, do func(*node)) {
	if s.nodes[to] == nil || from == to {
		return
	}
	copies := 1
	if s.rng.Float64() < 0.1 {
		copies = 2
	}
	for range copies {
		if s.rng.Float64() < s.loss {
			continue
		}
		delay := 1 + s.rng.Int64N(20)
		if s.rng.Float64() < 0.05 {
			delay += s.rng.Int64N(1500)
		}
		s.after(delay, func() {
			if n := s.nodes[to]; n.up && !s.cut[[2]string{from, to}] {
				do(n)
			}
		})
	}
}

func (s *simulation) start(name string) {
	n := s.nodes[name]
	if len(s.decided) > 0 && !slices.ContainsFunc(s.names, func(o string) bool { return s.nodes[o].expect > 0 && !s.nodes[o].last.IsZero() }) {
		for _, o := range s.nodes {
			o.expect = 0 // those that formed it are lost: to form a first list again would be to make another cluster
		}
	}
	m, err := New(Voter{Name: name, Incarnation: n.inc}, n.disk, s.rng.Uint64())
	if err != nil {
		s.failf("%s: %v", name, err)
		return
	}
	m.broken = s.broken
	n.m, n.up, n.waiting = m, true, map[int]*write{}
	switch c := m.cur.Compare(n.last); {
	case c > 0:
		s.adopted(n, m.cur) // it crashed before it could say so
	case c < 0:
		s.failf("%s has forgotten that it adopted %v", name, n.last)
	}
	s.see()
	s.tick(n, m)
}

func (s *simulation) tick(n *node, m *Machine) {
	s.after(20+s.rng.Int64N(20), func() {
		if n.m == m && n.up {
			s.step(n, Tick{s.now})
			s.tick(n, m)
		}
	})
}

// see tells all nodes which are up with which incarnation.
func (s *simulation) see() {
	var seen, boot []Voter
	for _, name := range s.names {
		n := s.nodes[name]
		if !n.up {
			continue
		}
		seen = append(seen, Voter{Name: name, Incarnation: n.inc})
		if n.expect > 0 {
			boot = append(boot, Voter{Name: name, Incarnation: n.inc})
		}
	}
	for _, name := range s.names {
		n := s.nodes[name]
		if !n.up {
			continue
		}
		for _, v := range seen {
			s.step(n, PeerSeen{v.Name, v.Incarnation})
		}
		if n.expect > 0 {
			s.step(n, Bootstrap{n.expect, boot})
		}
	}
}

func (s *simulation) stop(name string) { s.nodes[name].up = false }

// wipe replaces the directory of a node; a salvaged one keeps some records and its state.
func (s *simulation) wipe(name string, salvage bool) {
	n := s.nodes[name]
	n.up, n.inc, n.last, s.changed = false, s.incarnation(), Config{}, true
	if !salvage {
		n.disk, n.held = nil, map[int]bool{}
		return
	}
	for r := range s.records {
		if s.rng.IntN(2) == 0 {
			delete(n.held, r)
		}
	}
}

func (s *simulation) step(n *node, e Event) {
	for _, o := range n.m.Step(e) {
		switch o := o.(type) {
		case Persist:
			// A crash between Persist and what is behind it.
			n.disk = o.State
			if s.rng.Float64() < s.crash {
				n.up = false
				name := n.name
				s.after(500, func() {
					if !s.nodes[name].up {
						s.start(name)
					}
				})
				return
			}
		case Adopted:
			s.adopted(n, o.Config)
		case Send:
			for _, b := range o.Data {
				s.trace = s.trace*1099511628211 ^ uint64(b)
			}
			s.link(n.name, o.To, func(to *node) { s.step(to, Received{n.name, o.Data}) })
		case Result:
			n.results[o.ID] = o.Err
		}
	}
}

func (s *simulation) adopted(n *node, c Config) {
	k := [2]uint64{uint64(c.Losses), c.Number}
	if d, ok := s.decided[k]; ok && d.Hash() != c.Hash() {
		s.failf("two configurations of one number: %v | %v", d, c)
	}
	s.decided[k] = c
	if prev, ok := s.decided[[2]uint64{k[0], k[1] - 1}]; ok && c.Number > 1 {
		if _, err := prev.changeTo(c); err != nil {
			s.failf("%v after %v: %v", c, prev, err)
		}
		s.intersect(prev, c)
	}
	if n.last.Compare(c) >= 0 {
		s.failf("%s adopted %v after %v", n.name, c, n.last)
	}
	n.last, s.changed = c, true
	n.waiting = map[int]*write{} // acknowledgements under the old hash count no more
}

// intersect: any majority of one list and any of the next share a voter that kept its incarnation.
func (s *simulation) intersect(c, d Config) {
	common, onlyC, onlyD := 0, 0, 0
	for _, v := range c.Voters {
		switch {
		case v.Silent:
		case d.Votes(v.Name, v.Incarnation):
			common++
		default:
			onlyC++
		}
	}
	for _, v := range d.Voters {
		if !v.Silent && !c.Votes(v.Name, v.Incarnation) {
			onlyD++
		}
	}
	// The smallest shares of the common voters that a majority can do with.
	inC, inD := max(c.Majority()-onlyC, 0), max(d.Majority()-onlyD, 0)
	votingC, votingD := common+onlyC, common+onlyD
	if votingC >= c.Majority() && votingD >= d.Majority() && inC+inD <= common {
		s.failf("majorities of %v and %v need not share a voter", c, d)
	}
}

// write is an acknowledged write: held here, copied once to everybody, acknowledged by a majority under one hash.
func (s *simulation) write(name string) int {
	n := s.nodes[name]
	r := s.records
	s.records++
	n.held[r] = true
	w := &write{hash: n.m.Hash(), acks: map[string]Incarnation{}}
	n.waiting[r] = w
	if n.m.Votes() {
		w.acks[name] = n.inc
	}
	s.count(n, r)
	for _, to := range s.names {
		s.link(name, to, func(p *node) { s.copied(p, n, r) })
	}
	return r
}

func (s *simulation) copied(p, writer *node, r int) {
	p.held[r] = true
	if p.m.Votes() || s.broken&ruleIncarnation != 0 {
		inc, hash := p.inc, p.m.Hash()
		s.link(p.name, writer.name, func(n *node) { s.ack(n, r, p.name, inc, hash) })
	}
}

func (s *simulation) ack(n *node, r int, from string, inc Incarnation, hash uint64) {
	if w := n.waiting[r]; w != nil && n.m.Counts(from, inc, hash) {
		w.acks[from] = inc
		s.count(n, r)
	}
}

func (s *simulation) count(n *node, r int) {
	w := n.waiting[r]
	if w != nil && n.m.Config().Quorum(func(v Voter) bool {
		inc, ok := w.acks[v.Name]
		return ok && n.m.Counts(v.Name, inc, w.hash)
	}) {
		s.acked[r], s.changed = true, true
		delete(n.waiting, r)
	}
}

// catchUp asks a peer for all it holds.
func (s *simulation) catchUp(name, from string) {
	s.link(name, from, func(p *node) {
		hash, held := p.m.Hash(), make([]int, 0, len(p.held))
		for r := range s.records {
			if p.held[r] {
				held = append(held, r)
			}
		}
		inc, answers := s.nodes[name].inc, Voter{Name: from, Incarnation: p.inc}
		s.link(from, name, func(n *node) {
			if n.inc != inc {
				return // the connection ended with the process
			}
			for _, r := range held {
				n.held[r] = true
			}
			s.step(n, CaughtUp{n.name, n.inc, hash, []Voter{answers}})
		})
	})
}

// check is P6: under no configuration that nodes hold can a majority be formed of voters none of which holds an acknowledged record.
func (s *simulation) check() {
	if !s.changed {
		return
	}
	s.changed = false
	for i, name := range s.names {
		n := s.nodes[name]
		c := n.last
		if c.IsZero() || slices.ContainsFunc(s.names[:i], func(o string) bool { return s.nodes[o].last.Hash() == c.Hash() }) {
			continue
		}
		// Whoever answers a probe under c; on disk is enough, a node may come back.
		var voters []*node
		for _, v := range c.Voters {
			p := s.nodes[v.Name]
			same := p.last.Hash() == c.Hash() || s.broken&ruleHash != 0
			if same && !v.Silent && (p.inc == v.Incarnation || s.broken&ruleIncarnation != 0) {
				voters = append(voters, p)
			}
		}
		if len(voters) < c.Majority() {
			continue
		}
		for r := range s.acked {
			without := 0
			for _, p := range voters {
				if !p.held[r] {
					without++
				}
			}
			if without >= c.Majority() {
				s.failf("record %d was acknowledged, and a majority of %v does not hold it", r, c)
				return
			}
		}
	}
}

// agree reports whether all these nodes have adopted one configuration and what is wrong otherwise.
func (s *simulation) agree(names ...string) (Config, error) {
	c := s.nodes[names[0]].m.Config()
	for _, name := range names {
		if d := s.nodes[name].m.Config(); d.Hash() != c.Hash() {
			return c, fmt.Errorf("%s has %v, %s has %v", names[0], c, name, d)
		}
	}
	return c, nil
}

func letters(n int) []string { return strings.Split("ABCDEFGHI"[:n], "")[:n] }

// chaos runs one seed: faults, concurrent proposals, wipes within what a majority may miss; then calm, in which everything that is wanted must come true.
func chaos(seed uint64, broken rule) *simulation {
	rng := rand.New(rand.NewPCG(seed, 1))
	size := 3 + rng.IntN(5)
	first := 1 + rng.IntN(size)
	s := newSimulation(seed, broken, letters(size)...)
	s.loss, s.crash = []float64{0, 0.05, 0.3}[rng.IntN(3)], 0.001
	for _, name := range s.names[:first] {
		s.nodes[name].expect = first
		s.start(name)
	}
	s.after(1500, func() {
		for _, name := range s.names[first:] {
			s.start(name)
		}
	})
	id := uint64(0)
	const calm = 15_000
	var do func()
	do = func() {
		if s.now > calm {
			return
		}
		s.after(rng.Int64N(120), do)
		name := s.names[rng.IntN(size)]
		n := s.nodes[name]
		other := s.names[rng.IntN(size)]
		switch p := rng.IntN(1000); {
		case p < 350:
			if n.up {
				s.write(name)
			}
		case p < 750:
			if n.up && name != other {
				s.catchUp(name, other)
			}
		case p < 850:
			if n.up {
				id++
				s.step(n, Propose{ID: id, Op: Op(1 + rng.IntN(2)), Name: other, Until: s.now + 8000})
			}
		case p < 890:
			s.cut[[2]string{name, other}] = true
			if rng.IntN(2) == 0 {
				s.cut[[2]string{other, name}] = true
			}
		case p < 930:
			clear(s.cut)
		case p < 950:
			side := rng.Uint64()
			for i, a := range s.names {
				for j, b := range s.names {
					s.cut[[2]string{a, b}] = side>>i&1 != side>>j&1
				}
			}
		case p < 970:
			if n.up {
				s.stop(name)
				s.after(rng.Int64N(3000), func() {
					if !n.up {
						s.start(name)
					}
				})
			}
		case p < 980:
			if len(s.decided) > 0 && (s.spare(name) || rng.IntN(20) == 0) {
				s.wipe(name, rng.IntN(3) == 0)
				s.after(rng.Int64N(2000), func() {
					if !n.up {
						s.start(name)
					}
				})
			}
		}
	}
	s.after(10, do)
	s.run(calm)
	return s
}

// spare reports whether the newest list can miss this node's disk.
func (s *simulation) spare(name string) bool {
	var newest Config
	for _, n := range s.names {
		if c := s.nodes[n].last; c.Compare(newest) > 0 {
			newest = c
		}
	}
	left := 0
	for _, v := range newest.Voters {
		if !v.Silent && v.Name != name && s.nodes[v.Name].inc == v.Incarnation {
			left++
		}
	}
	return left >= newest.Majority()
}

// settleDown ends all faults and lets every node catch up with every other.
func (s *simulation) settleDown(d int64) {
	clear(s.cut)
	s.loss, s.crash = 0, 0
	for _, name := range s.names {
		if !s.nodes[name].up {
			s.start(name)
		}
	}
	end := s.now + d
	var level func()
	level = func() {
		for _, a := range s.names {
			for _, b := range s.names {
				s.catchUp(a, b)
			}
		}
		if s.now < end {
			s.after(200, level)
		}
	}
	level()
	s.run(end)
}
