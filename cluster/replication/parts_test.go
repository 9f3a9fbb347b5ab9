package replication

import (
	"fmt"
	"testing"
	"time"
)

// mesh is nodes with a session between any two, without a network.
type mesh struct {
	t     testing.TB
	r     []*Replica
	store []*table
	own   []uint32
	next  []uint64
	cut   func(from, to int) bool // messages are lost
	now   Now
}

func newMesh(t testing.TB, n int, mutant string) *mesh {
	m := &mesh{t: t, now: Now{Mono: time.Hour, Wall: 1_800_000_000_000, Guarded: 1_800_000_000_000}, cut: func(int, int) bool { return false }}
	voters := Voters{Number: 1, Hash: 7}
	for i := range n {
		voters.Names = append(voters.Names, string(rune('a'+i)))
	}
	for i, name := range voters.Names {
		store, cfg := newTable(), testConfig(name)
		cfg.Mutant = leaveOut(mutant)
		r, err := New(cfg, store, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		own, err := r.NewOrigin(MakeOrigin(uint64(i+1)<<20, Urgent))
		if err != nil {
			t.Fatal(err)
		}
		m.r, m.store, m.own, m.next = append(m.r, r), append(m.store, store), append(m.own, own), append(m.next, 1)
		m.step(i, SetVoters{voters, true})
	}
	for i := range n {
		for j, name := range voters.Names {
			if i != j {
				m.step(i, Connected{Peer: PeerID(j + 1), Name: name})
			}
		}
	}
	return m
}

// step carries out an event; what is given to the journal is durable at once.
func (m *mesh) step(i int, e Event) {
	out := m.r[i].Step(m.now, e)
	if len(out.Close) > 0 {
		m.t.Fatal(out.Close[0].Err)
	}
	if n := len(out.Journal); n > 0 {
		m.step(i, Journaled{out.Journal[n-1].Token})
	}
}

func (m *mesh) write(i int, records ...Record) {
	first := m.next[i]
	for k := range records {
		if _, err := m.store[i].Merge(&records[k], MakeDot(m.own[i], first+uint64(k)), m.now, true); err != nil {
			m.t.Fatal(err)
		}
	}
	m.next[i] += uint64(len(records))
	m.step(i, Written{Index: m.own[i], First: first, Records: records})
}

// exchange passes messages for a while.
func (m *mesh) exchange(d time.Duration) {
	for end := m.now.Mono + d; m.now.Mono < end; m.now.Mono += time.Millisecond {
		for i := range m.r {
			m.step(i, Tick{})
			for j := range m.r {
				for i != j {
					b := m.r[i].Fill(m.now, PeerID(j+1), nil)
					if len(b) == 0 {
						break
					}
					if !m.cut(i, j) {
						m.step(j, Received{PeerID(i + 1), b})
					}
				}
			}
		}
	}
}

// deliver passes on what one has for another now.
func (m *mesh) deliver(from, to int) {
	m.now.Mono += 3 * time.Millisecond // a vector may be sent again
	if b := m.r[from].Fill(m.now, PeerID(to+1), nil); len(b) > 0 {
		m.step(to, Received{PeerID(from + 1), b})
	}
}

// cutOff is a history in which two of five, a and b, are cut off when what they had written last has come to some of the others only.
type cutOff struct {
	name     string
	doubts   bool          // c had asked about what d holds, and d about what c does
	answered time.Duration // so long before the cut
	holds    [2][3]int     // of the last two records of a, and of b: how many c, d and e hold
}

// Sessions with who is cut off seem to be there for a while. The three level among themselves at once, and go on to acknowledge and to see what a majority
// holds: also when one was asked before whether another one can hold what it claims.
func TestWhoIsCutOffHoldsNobodyUp(t *testing.T) {
	for _, x := range cutOffs {
		t.Run(x.name, func(t *testing.T) {
			if err := x.run(t, ""); err != nil {
				t.Error(err)
			}
		})
	}
}

var doubtsAnswered = cutOff{name: "doubts that were answered", doubts: true, answered: 2 * time.Second, holds: [2][3]int{{0, 0, 2}, {0, 0, 2}}}

var cutOffs = []cutOff{
	{name: "one holds more", holds: [2][3]int{{0, 0, 2}, {0, 0, 2}}},
	{name: "each holds more than the next", holds: [2][3]int{{0, 1, 2}, {0, 1, 2}}},
	{name: "more of one, and less of the other", holds: [2][3]int{{2, 0, 1}, {0, 1, 2}}},
	{name: "doubts nobody has answered", doubts: true, holds: [2][3]int{{0, 0, 2}, {0, 0, 2}}},
	doubtsAnswered,
	{name: "doubts, and two hold more", doubts: true, answered: 2 * time.Second, holds: [2][3]int{{0, 1, 2}, {2, 1, 0}}},
}

func (x *cutOff) run(t *testing.T, mutant string) error {
	const a, b, c, d, e = 0, 1, 2, 3, 4
	m := newMesh(t, 5, mutant)
	for i := range m.r {
		m.write(i, testRecord(uint64(i+1), 1))
	}
	m.exchange(3 * time.Second)
	if x.doubts {
		for _, i := range []int{a, b} {
			for k, first := range []int{d, c} {
				second := c + d - first
				m.write(i, testRecord(uint64(50+10*i+k), 1))
				m.deliver(i, first)
				m.deliver(first, second)
				if o := m.r[second].reg.byID[m.r[i].own[Urgent].ID]; o.doubt.peer != PeerID(first+1) {
					t.Fatalf("%s does not doubt %s", m.r[second].cfg.Name, m.r[first].cfg.Name)
				}
				m.deliver(i, second)
			}
		}
		m.exchange(x.answered)
	}
	for k := range 2 {
		for _, i := range []int{a, b} {
			m.write(i, testRecord(uint64(100+10*i+k), 1))
			for j := c; j <= e; j++ {
				if x.holds[i][j-c] > k {
					m.deliver(i, j)
				}
			}
		}
	}
	m.cut = func(from, to int) bool { return from <= b || to <= b }
	begun := m.now.Mono
	m.exchange(maxDoubt + 50*time.Millisecond)
	for round := range 40 {
		for i := c; i <= e; i++ {
			m.write(i, testRecord(uint64(1000+100*round+i), 1))
		}
		m.exchange(100 * time.Millisecond)
		for i := c; i <= e; i++ {
			r, since := m.r[i], m.now.Mono-begun
			if n := len(r.Confirmed(m.own[i], m.next[i]-1)); n != 2 {
				return fmt.Errorf("%s, %s after the cut: %d have confirmed its write", r.cfg.Name, since, n)
			}
			if !r.Reached(r.Barrier([]string{"c", "d", "e"})) {
				return fmt.Errorf("%s, %s after the cut: it lacks what the other two hold", r.cfg.Name, since)
			}
			if view, _ := r.FreshSince(); m.now.Mono-view > 2*time.Second {
				return fmt.Errorf("%s, %s after the cut: the view of a majority is %s old", r.cfg.Name, since, m.now.Mono-view)
			}
		}
	}
	return nil
}

// Who lacks nearly all copies from several: also when the logs of those who write now have given it something already.
func TestLacksMost(t *testing.T) {
	m := newMesh(t, 3, "")
	m.exchange(50 * time.Millisecond)
	r := m.r[0]
	old := r.reg.add(Origin{ID: MakeOrigin(1<<40, Urgent), Node: "gone"})
	for _, test := range []struct {
		held    uint64
		servers int
		want    bool
	}{{0, 2, true}, {10, 2, true}, {124, 2, true}, {125, 2, false}, {1000, 2, false}, {0, 1, false}} {
		old.applied = test.held
		for i, p := range r.order {
			p.applied = grow(p.applied, old.Index)
			p.applied[old.Index], p.hello = 1000, i < test.servers
		}
		if got := r.lacksMost(); got != test.want {
			t.Errorf("%d of 1000 held, %d peers: %v", test.held, test.servers, got)
		}
	}
	old.applied, r.order[1].hello = 10, true
	r.startScan()
	if len(r.scan.parts) != bootstrapPart {
		t.Errorf("%d parts", len(r.scan.parts))
	}
}
