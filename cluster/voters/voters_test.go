package voters

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
)

func inc(b byte) (i Incarnation) {
	i[0] = b
	return i
}

func list(names string) Config {
	c := Config{Number: 1}
	for _, name := range strings.Split(names, "") {
		c.Voters = append(c.Voters, Voter{Name: name, Incarnation: inc(name[0])})
	}
	return c
}

func TestConfig(t *testing.T) {
	for n, w := range []int{1, 1, 2, 2, 3, 3, 4, 4}[1:] {
		c := list("ABCDEFG"[:n+1])
		if c.Majority() != w {
			t.Errorf("majority of %d is %d, want %d", n+1, c.Majority(), w)
		}
		for mask := range uint64(1) << (n + 1) {
			confirmed := func(v Voter) bool { return mask>>(v.Name[0]-'A')&1 != 0 }
			if got, want := c.Quorum(confirmed), bits.OnesCount64(mask) >= w; got != want {
				t.Errorf("quorum of %b in %d: %v", mask, n+1, got)
			}
			if got, want := c.All(confirmed), bits.OnesCount64(mask) == n+1; got != want {
				t.Errorf("all of %b in %d: %v", mask, n+1, got)
			}
		}
	}
	yes := func(Voter) bool { return true }
	c := list("ABC")
	c.Voters[1].Silent = true
	if !c.Quorum(yes) || c.All(yes) || c.Votes("B", inc('B')) || !c.Contains("B", inc('B')) {
		t.Error("a silent voter is in the list and does not vote")
	}
	c.Voters[2].Silent = true
	if c.Quorum(yes) {
		t.Error("one of three that votes is a quorum")
	}
	if (Config{}).Quorum(yes) || (Config{}).All(yes) {
		t.Error("nobody votes in the zero Config")
	}
	if n := testing.AllocsPerRun(100, func() { c.Quorum(yes); c.Votes("B", inc('B')) }); n != 0 {
		t.Errorf("counting allocates %v times", n)
	}
}

// The encoding is what all nodes hash: it never changes.
func TestHash(t *testing.T) {
	if got := fmt.Sprintf("%016x", list("ABC").Hash()); got != "54bc0d7630c6824f" {
		t.Errorf("hash of the list A, B, C is %s", got)
	}
	seen := map[uint64]string{}
	base := list("ABC")
	for name, change := range map[string]func(*Config){
		"same":        func(*Config) {},
		"number":      func(c *Config) { c.Number = 2 },
		"losses":      func(c *Config) { c.Losses = 1 },
		"name":        func(c *Config) { c.Voters[0].Name = "AA" },
		"incarnation": func(c *Config) { c.Voters[0].Incarnation[15] = 1 },
		"silent":      func(c *Config) { c.Voters[0].Silent = true },
		"fewer":       func(c *Config) { c.Voters = c.Voters[:2] },
	} {
		c := base
		c.Voters = slices.Clone(base.Voters)
		change(&c)
		if other, ok := seen[c.Hash()]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		seen[c.Hash()] = name
	}
}

func TestOneChange(t *testing.T) {
	base := list("ABC")
	base.Voters[2].Silent = true
	next := func(edit func([]Voter) []Voter) Config { return base.successor(edit(slices.Clone(base.Voters))) }
	for name, test := range map[string]struct {
		next Config
		want change
		err  error
	}{
		"add":                  {base.with(Voter{Name: "D"}), changeAdd, nil},
		"remove":               {base.without("A"), changeRemove, nil},
		"replace":              {base.with(Voter{Name: "A", Incarnation: inc(9), Silent: true}), changeReplace, nil},
		"replace silent":       {base.with(Voter{Name: "C", Incarnation: inc(9), Silent: true}), changeReplace, nil},
		"voice":                {base.with(Voter{Name: "C", Incarnation: inc('C')}), changeVoice, nil},
		"nothing":              {next(func(l []Voter) []Voter { return l }), 0, ErrChange},
		"add silent":           {base.with(Voter{Name: "D", Silent: true}), 0, ErrChange},
		"replace with a voice": {base.with(Voter{Name: "A", Incarnation: inc(9)}), 0, ErrChange},
		"silenced":             {base.with(Voter{Name: "A", Incarnation: inc('A'), Silent: true}), 0, ErrChange},
		"another name":         {next(func(l []Voter) []Voter { l[0].Name = "a"; return l }), 0, ErrChange},
		"two added":            {next(func(l []Voter) []Voter { return append(l, Voter{Name: "D"}, Voter{Name: "E"}) }), 0, ErrChange},
		"two removed":          {next(func(l []Voter) []Voter { return l[2:] }), 0, ErrChange},
		"number":               {Config{Number: 3, Voters: base.with(Voter{Name: "D"}).Voters}, 0, ErrChange},
		"losses":               {Config{Losses: 1, Number: 2, Voters: base.with(Voter{Name: "D"}).Voters}, 0, ErrChange},
		"empty":                {Config{Number: 2}, 0, ErrList},
		"twice":                {next(func(l []Voter) []Voter { return append(l, l[0]) }), 0, ErrList},
	} {
		got, err := base.changeTo(test.next)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := (Config{}).changeTo(base); !errors.Is(err, ErrChange) {
		t.Errorf("the first list with a silent voter: %v", err)
	}
}

// lone is a machine that is alone in its list.
func lone(t *testing.T) *Machine {
	t.Helper()
	m, err := New(Voter{Name: "A", Incarnation: inc('A')}, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	m.Step(Bootstrap{Expect: 1})
	m.Step(Tick{0})
	if c := m.Config(); len(c.Voters) != 1 || !m.Votes() || !m.Status().Settled {
		t.Fatalf("%v, %+v", c, m.Status())
	}
	return m
}

func results(outs []Output) (errs []error) {
	for _, o := range outs {
		if r, ok := o.(Result); ok {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

func TestPropose(t *testing.T) {
	none, err := New(Voter{Name: "A"}, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := results(none.Step(Propose{Op: Add, Name: "B"})); len(got) != 1 || !errors.Is(got[0], ErrNoConfig) {
		t.Errorf("without a list: %v", got)
	}
	for name, test := range map[string]struct {
		propose Propose
		want    error
	}{
		"add a present":      {Propose{Op: Add, Name: "A"}, nil},
		"another of present": {Propose{Op: Add, Name: "A", Incarnation: inc(1)}, ErrPresent},
		"remove an absent":   {Propose{Op: Remove, Name: "B"}, nil},
		"remove the last":    {Propose{Op: Remove, Name: "A"}, ErrLast},
		"no name":            {Propose{Op: Add}, ErrName},
		"long name":          {Propose{Op: Add, Name: strings.Repeat("n", MaxName+1)}, ErrName},
		"no operation":       {Propose{Name: "B"}, ErrUnknown},
	} {
		if got := results(lone(t).Step(test.propose)); len(got) != 1 || !errors.Is(got[0], test.want) {
			t.Errorf("%s: %v", name, got)
		}
	}

	m := lone(t)
	for id := range uint64(maxProposals + 1) {
		got := results(m.Step(Propose{ID: id, Op: Add, Name: "B", Until: 1000}))
		if refused := len(got) == 1 && errors.Is(got[0], ErrBusy); refused != (id == maxProposals) {
			t.Errorf("proposal %d: %v", id, got)
		}
	}
	if got := m.Status().Waits; len(got) != maxProposals || got[0] != "B: the node to be seen" {
		t.Errorf("waits for %q", got)
	}
	m.Step(PeerSeen{"B", inc('B')})
	if got := m.Status().Waits; got[0] != "B: the node to catch up with 1 voters, it has with 0" {
		t.Errorf("waits for %q", got)
	}
	if got := results(m.Step(Tick{1000})); len(got) != maxProposals || !errors.Is(got[0], ErrTimeout) || !strings.Contains(got[0].Error(), "catch up") {
		t.Errorf("at its time: %v", got)
	}

	// Evidence of another hash is none; with the right one B is added, and the list of two waits for B.
	m.Step(Propose{ID: 1, Op: Add, Name: "B", Until: 9000})
	m.Step(CaughtUp{"B", inc('B'), m.Hash() + 1, []Voter{{Name: "A", Incarnation: inc('A')}}})
	m.Step(Tick{2000})
	if len(m.Config().Voters) != 1 {
		t.Fatal("B was added on evidence of another configuration")
	}
	m.Step(CaughtUp{"B", inc('B'), m.Hash(), []Voter{{Name: "A", Incarnation: inc('A')}}})
	if got := results(m.Step(Tick{3000})); len(got) != 1 || got[0] != nil || len(m.Config().Voters) != 2 || m.Status().Settled {
		t.Fatalf("%v: %+v", got, m.Status())
	}
	old := m.Hash()
	m.Step(CaughtUp{"A", inc('A'), m.Hash(), []Voter{{Name: "B", Incarnation: inc('B')}}})
	m.Step(CaughtUp{"B", inc('B'), m.Hash(), []Voter{{Name: "A", Incarnation: inc('A')}}})
	if !m.Status().Settled || m.Hash() != old {
		t.Errorf("%+v", m.Status())
	}
	if !m.Counts("B", inc('B'), old) || m.Counts("B", inc(1), old) || m.Counts("C", inc('C'), old) || m.Counts("B", inc('B'), old+1) {
		t.Error("only B's incarnation counts, under this hash")
	}
	if n := testing.AllocsPerRun(100, func() { m.Counts("B", inc('B'), old) }); n != 0 {
		t.Errorf("counting allocates %v times", n)
	}

	// B comes back with another disk: a list of two cannot miss one, and the operator goes on.
	m.Step(PeerSeen{"B", inc(9)})
	if s := m.Status(); !s.TooFew || !slices.Equal(s.Changed, []string{"B"}) {
		t.Errorf("%+v", s)
	}
	for name, test := range map[string]struct {
		lost []string
		want error
	}{
		"unknown": {[]string{"C"}, ErrUnknown}, "itself": {[]string{"A"}, ErrNotVoter},
	} {
		if got := results(m.Step(AcceptLoss{Names: test.lost})); len(got) != 1 || !errors.Is(got[0], test.want) {
			t.Errorf("accept-loss of %s: %v", name, got)
		}
	}
	outs := m.Step(AcceptLoss{ID: 7, Names: []string{"B"}})
	if got := results(outs); len(got) != 1 || got[0] != nil {
		t.Fatal(got)
	}
	if c := m.Config(); c.Losses != 1 || c.Number != 3 || len(c.Voters) != 1 || !m.Votes() || !m.Status().Settled {
		t.Errorf("%+v", m.Status())
	}
	if _, ok := outs[0].(Persist); !ok {
		t.Error("an adopted list is persisted first")
	}
	if _, ok := outs[1].(Adopted); !ok {
		t.Error("and then adopted")
	}
}

func TestFull(t *testing.T) {
	c := Config{Number: 5}
	for i := range MaxVoters {
		c.Voters = append(c.Voters, Voter{Name: fmt.Sprintf("%s%02d", strings.Repeat("n", MaxName-2), i), Incarnation: inc(byte(i))})
	}
	ballot := ballot{1 << 60, c.Voters[0].Name, inc(1)}
	msg := message{kind: kindPromise, cur: c, ballot: ballot, other: ballot, value: c}.encode()
	if len(msg) > MaxMessage {
		t.Errorf("the largest message has %d bytes", len(msg))
	}
	d := durable{cur: c, promised: ballot, accepted: ballot, value: c}
	if b := d.encode(c.Voters[0].Name); len(b) > MaxMessage {
		t.Errorf("the largest state has %d bytes", len(b))
	}
	m, err := New(c.Voters[0], durable{cur: c, settled: true}.encode(c.Voters[0].Name), 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := results(m.Step(Propose{Op: Add, Name: "z"})); len(got) != 1 || !errors.Is(got[0], ErrFull) {
		t.Error(got)
	}
	c.Voters = append(c.Voters, Voter{Name: "z"})
	if _, err := decodeMessage(message{kind: kindHello, cur: c}.encode()); !errors.Is(err, ErrMessage) {
		t.Errorf("65 voters: %v", err)
	}
	for i := range maxPeers + 10 {
		m.Step(PeerSeen{fmt.Sprint("peer", i), inc(1)})
		m.Step(CaughtUp{fmt.Sprint("peer", i), inc(1), m.Hash(), nil})
	}
	if len(m.peers) != maxPeers || len(m.evidence) != maxEvidence {
		t.Errorf("%d peers and %d pieces of evidence are remembered", len(m.peers), len(m.evidence))
	}
}

func TestState(t *testing.T) {
	m := lone(t)
	state := m.durable.encode("A")
	again, err := New(m.self, state, 1)
	if err != nil || again.Hash() != m.Hash() || !again.Votes() || again.round != m.round {
		t.Fatalf("%v, %+v", err, again)
	}
	salvaged, err := New(Voter{Name: "A", Incarnation: inc(9)}, state, 1)
	if err != nil || salvaged.Votes() || !salvaged.Status().TooFew {
		t.Errorf("another incarnation with the state of the last: %v, votes: %v", err, salvaged.Votes())
	}
	for n := range state {
		if n == 0 {
			continue // a directory without a state
		}
		if _, err := New(m.self, state[:n], 1); !errors.Is(err, ErrState) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	newer := slices.Clone(state)
	newer[0]++
	for name, b := range map[string][]byte{"longer": append(slices.Clone(state), 0), "newer": newer, "huge": make([]byte, MaxMessage+1)} {
		if _, err := New(m.self, b, 1); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Voter{Name: "B"}, state, 1); !errors.Is(err, ErrState) {
		t.Errorf("state of A on B: %v", err)
	}
	if _, err := New(Voter{}, nil, 1); !errors.Is(err, ErrName) {
		t.Errorf("no name: %v", err)
	}
}

// What it takes from a peer without a say is the newer list and nothing else.
func TestStranger(t *testing.T) {
	m := lone(t)
	next := m.Config().with(Voter{Name: "X"})
	for k := kindHello; k <= kindNack; k++ {
		msg := message{kind: k, inc: inc('X'), cur: m.Config(), ballot: ballot{m.round, "A", inc('A')}, other: ballot{m.round, "X", inc('X')}, value: next}
		m.Step(Received{"X", msg.encode()})
	}
	m.Step(Received{"A", message{kind: kindHello, cur: next}.encode()})
	m.Step(Received{"", message{kind: kindHello, cur: next}.encode()})
	m.Step(Received{"X", []byte{version}})
	if m.Config().Number != 1 || m.Status().Refused != 3 {
		t.Errorf("%+v", m.Status())
	}
	m.Step(Received{"X", message{kind: kindHello, inc: inc('X'), cur: next}.encode()})
	if m.Config().Number != 2 {
		t.Errorf("%+v", m.Status())
	}
	outs := m.Step(Received{"Y", message{kind: kindPrepare, inc: inc('Y'), cur: list("A"), ballot: ballot{99, "Y", inc('Y')}}.encode()})
	if len(outs) != 1 {
		t.Fatalf("to one that is behind: %v", outs)
	}
	if s := outs[0].(Send); s.To != "Y" {
		t.Errorf("%+v", s)
	}
	// Another cluster, whose list does not name A, changes nothing.
	before := m.Status()
	other := list("XY")
	other.Number = 2
	m.Step(Received{"X", message{kind: kindHello, inc: inc('X'), cur: other}.encode()})
	if m.Hash() != before.Hash || m.Status().Fenced {
		t.Errorf("%+v", m.Status())
	}
}

// Nodes that see different first lists end with one of them, whoever has accepted what.
func TestFirstListsCompete(t *testing.T) {
	for seed := range uint64(200) {
		s := newSimulation(seed, 0, letters(4)...)
		s.loss = 0.2
		for _, name := range s.names {
			s.start(name)
		}
		v := func(names ...string) (l []Voter) {
			for _, n := range names {
				l = append(l, Voter{Name: n, Incarnation: s.nodes[n].inc})
			}
			return l
		}
		for name, seen := range map[string][]Voter{"A": v("A", "B", "C"), "B": v("B", "C", "D"), "C": v("A", "B", "C"), "D": v("B", "C", "D")} {
			s.after(int64(name[0]), func() { s.step(s.nodes[name], Bootstrap{3, seen}) })
		}
		s.run(60_000)
		c, err := s.agree(s.names...)
		if err != nil || c.Number != 1 || s.err() != nil {
			t.Fatalf("seed %d: %v, %v, %v", seed, c, err, s.err())
		}
	}
}

func TestSameSeedSameTrace(t *testing.T) {
	for seed := range uint64(5) {
		if a, b := chaos(seed, 0).trace, chaos(seed, 0).trace; a != b || a == 0 {
			t.Errorf("seed %d: %x, then %x", seed, a, b)
		}
	}
}

// Two nodes that know each other and have nothing to decide say little.
func TestIdle(t *testing.T) {
	s := formed(0, 5, letters(5)...)
	bytes, start := 0, s.now
	for _, name := range s.names {
		m := s.nodes[name].m
		for now := start; now < start+60_000; now += 50 {
			for _, o := range m.Step(Tick{now}) {
				if p, ok := o.(Send); ok {
					bytes += len(p.Data)
				} else {
					t.Errorf("idle: %T", o)
				}
			}
		}
	}
	if perPeer := bytes / (5 * 4 * 60); perPeer > 100 {
		t.Errorf("%d bytes a second for each peer", perPeer)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add(message{kind: kindHello, inc: inc('B'), cur: list("ABC"), settled: true}.encode())
	f.Add(message{kind: kindPrepare, inc: inc('B'), ballot: ballot{3, "B", inc('B')}, value: list("AB")}.encode())
	f.Add(message{kind: kindAccept, inc: inc('B'), cur: list("AB"), ballot: ballot{3, "B", inc('B')}, value: list("AB").without("B")}.encode())
	f.Add(message{kind: kindHave, inc: inc('B'), cur: list("AB"), mask: 3}.encode())
	f.Add(durable{cur: list("AB"), round: 3}.encode("A"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var msg message
		var err error
		alloctest.AtMost(t, 4*len(data)+64<<10, func() { msg, err = decodeMessage(data) }) // 64 voters of 40 bytes and their names, twice
		if err == nil && !bytes.Equal(msg.encode(), data) {
			t.Error("a message has two encodings")
		}
		if err != nil && !errors.Is(err, ErrMessage) {
			t.Error(err)
		}
		if d, err := decodeState("A", data); err == nil && !bytes.Equal(d.encode("A"), data) {
			t.Error("a state has two encodings")
		}
		m, err := New(Voter{Name: "A", Incarnation: inc('A')}, durable{cur: list("AB"), settled: true}.encode("A"), 1)
		if err != nil {
			t.Fatal(err)
		}
		m.Step(Bootstrap{2, []Voter{{Name: "B", Incarnation: inc('B')}}})
		outs := m.Step(Received{"B", data})
		if len(outs) > 2+MaxVoters+3 {
			t.Errorf("one message makes %d outputs", len(outs))
		}
		for now := range int64(5) {
			m.Step(Tick{now * 1000})
		}
		if err := m.Config().check(); err != nil {
			t.Error(err)
		}
		if _, err := decodeState("A", m.durable.encode("A")); err != nil {
			t.Error(err)
		}
	})
}

// A majority that is connected decides, with the others dead and every third message lost; a minority decides nothing and says why.
func TestMajorityGoesOn(t *testing.T) {
	for seed := range uint64(20) {
		s := formed(0, 5, letters(6)...)
		s.loss = 0.3
		for range seed {
			s.rng.Uint64()
		}
		s.split("A", "B", "F")
		s.start("F")
		s.step(s.nodes["A"], Propose{ID: 1, Op: Remove, Name: "E", Until: s.now + 10_000})
		s.pass(11_000)
		if err := s.nodes["A"].results[1]; !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "majority of the voters") {
			t.Fatalf("a minority removes E: %v", err)
		}
		if c := s.nodes["A"].m.Config(); c.Number != 1 {
			t.Fatalf("a minority has decided %v", c)
		}
		clear(s.cut)
		s.stop("D")
		s.stop("E")
		for id, p := range []Propose{{Op: Remove, Name: "D"}, {Op: Remove, Name: "E"}, {Op: Add, Name: "F"}} {
			p.ID, p.Until = uint64(10+id), s.now+60_000
			s.step(s.nodes[[]string{"A", "B", "F"}[id]], p)
		}
		for range 8 {
			s.level("A", "B", "C", "F")
		}
		c, err := s.agree("A", "B", "C", "F")
		if err != nil || s.err() != nil || len(c.Voters) != 4 || !s.nodes["F"].m.Votes() {
			t.Fatalf("seed %d: %v, %v, %v", seed, c, err, s.err())
		}
	}
}
