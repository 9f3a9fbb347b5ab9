package voters

import (
	"errors"
	"fmt"
	"testing"
)

// history is what breaks a promise when one of its rules is taken out.
type history struct {
	name  string
	play  func(rule) error
	taken []rule // each alone must break it
}

var histories = []history{
	{"3 a count is not a configuration", countIsNoConfiguration, []rule{ruleBootstrap | ruleHash}},
	{"3 two names at once", twoNamesAtOnce, []rule{ruleOneChange}},
	{"3 counts before it caught up", countsBeforeCaughtUp, []rule{ruleCatchUp}},
	{"3 two joins without catching up", twoJoins, []rule{ruleCatchUp | ruleSettle}},
	{"3 two removals in a row", twoRemovals, []rule{ruleSettle}},
	{"3 acks under the old list", acksUnderOld, []rule{rulePersist, ruleHash}},
	{"3 a promise is forgotten", promiseForgotten, []rule{rulePersist}},
	{"3 two lists of one number", twoLists, []rule{ruleFence}},
	{"4 a wiped voter votes", wipedVotes, []rule{ruleIncarnation, ruleSilent | ruleOneChange, ruleOthers}},
	{"4 a salvaged voter votes", salvagedVotes, []rule{ruleIncarnation, ruleSilent | ruleOneChange, ruleOthers}},
	{"4 the last holder is removed", lastHolderRemoved, []rule{ruleLeft, ruleLeft | ruleSettle}},
	{"4 caught up with a wiped voter", caughtUpWithWiped, []rule{ruleIncarnation}},
	{"4 caught up before recorded", caughtUpBeforeRecorded, []rule{ruleRecorded}},
}

// With all rules no history breaks a promise. That each does without them is TestMutants, built with the tag faults.
func TestHistories(t *testing.T) {
	for _, h := range histories {
		t.Run(h.name, func(t *testing.T) {
			if err := h.play(0); err != nil {
				t.Error(err)
			}
		})
	}
}

// formed is a cluster with its first list, which these nodes form; the others are down.
func formed(broken rule, voters int, names ...string) *simulation {
	s := newSimulation(1, 0, names...)
	for _, name := range names[:voters] {
		s.nodes[name].expect = voters
		s.start(name)
	}
	s.run(3000)
	s.broken = broken
	for _, name := range names[:voters] {
		n := s.nodes[name]
		n.m.broken = broken
		if len(n.m.Config().Voters) != voters {
			s.failf("%s has not formed the first list: %v", name, n.m.Config())
		}
	}
	return s
}

func (s *simulation) pass(d int64) { s.run(s.now + d) }

func (s *simulation) split(side ...string) {
	in := map[string]bool{}
	for _, name := range side {
		in[name] = true
	}
	for _, a := range s.names {
		for _, b := range s.names {
			s.cut[[2]string{a, b}] = in[a] != in[b]
		}
	}
}

// level lets each of these nodes catch up with each other one.
func (s *simulation) level(names ...string) {
	for _, a := range names {
		for _, b := range names {
			s.catchUp(a, b)
		}
	}
	s.pass(1700) // the slowest message
	for _, a := range names {
		for _, b := range names {
			s.catchUp(a, b)
		}
	}
	s.pass(5000)
}

func (s *simulation) wants(name string, op Op, subject string) {
	s.step(s.nodes[name], Propose{ID: uint64(op)<<8 | uint64(subject[0]), Op: op, Name: subject, Until: s.now + 60_000})
}

// active returns an error if a node could call a view of these voters fresh while none of them holds the record.
func (s *simulation) active(r int, reader string, of ...string) error {
	m := s.nodes[reader].m
	fresh := m.Config().Quorum(func(v Voter) bool {
		for _, name := range of {
			p := s.nodes[name]
			if name == v.Name && m.Counts(name, p.inc, p.m.Hash()) && (p.m.Votes() || s.broken&ruleIncarnation != 0) {
				return true
			}
		}
		return false
	})
	for _, name := range of {
		fresh = fresh && !s.nodes[name].held[r]
	}
	if fresh && s.acked[r] {
		return fmt.Errorf("%s calls a view of %v fresh, and none of them holds the acknowledged record %d", reader, of, r)
	}
	return s.err()
}

func (s *simulation) err() error {
	var errs []error
	for _, e := range s.errs {
		errs = append(errs, errors.New(e))
	}
	return errors.Join(errs...)
}

// acknowledged writes a record at the first node that only these nodes get.
func (s *simulation) acknowledged(by ...string) int {
	s.split(by...)
	r := s.write(by[0])
	s.pass(1700)
	if !s.acked[r] {
		s.failf("the record was not acknowledged by %v", by)
	}
	clear(s.cut)
	return r
}

// A, B, C know "3"; D, E join with "5"; A, B acknowledge; the view {C, D, E} must not call itself a majority.
func countIsNoConfiguration(broken rule) error {
	s := formed(broken, 3, letters(5)...)
	r := s.acknowledged("A", "B")
	s.split("A", "B")
	for _, name := range []string{"D", "E"} {
		s.nodes[name].expect = 5
		s.start(name)
		s.nodes[name].m.broken = broken
	}
	var all []Voter
	for _, name := range s.names {
		all = append(all, Voter{Name: name, Incarnation: s.nodes[name].inc})
	}
	for _, name := range []string{"D", "E"} {
		s.step(s.nodes[name], Bootstrap{5, all})
	}
	if err := s.active(r, "D", "C", "D", "E"); err != nil {
		return err
	}
	s.pass(3000)
	return s.active(r, "D", "C", "D", "E")
}

// A proposer that knows no better adds D and E in one step.
func twoNamesAtOnce(broken rule) error {
	s := formed(broken, 3, letters(5)...)
	r := s.acknowledged("A", "B")
	s.start("D")
	s.start("E")
	s.pass(3000)
	c := s.nodes["C"]
	next := c.m.Config().with(Voter{Name: "D", Incarnation: s.nodes["D"].inc}).with(Voter{Name: "E", Incarnation: s.nodes["E"].inc})
	next.Number = c.m.Config().Number + 1
	msg := message{
		kind: kindAccept, inc: c.inc, cur: c.m.Config(), settled: true,
		ballot: ballot{9, "C", c.inc}, value: next,
	}
	c.m.lead = &lead{ballot: msg.ballot, voters: c.m.Config().Voters, need: 2, value: next}
	for _, name := range []string{"A", "B"} {
		s.step(s.nodes[name], Received{"C", msg.encode()})
	}
	s.pass(3000)
	return s.active(r, "D", "C", "D", "E")
}

func countsBeforeCaughtUp(broken rule) error {
	s := formed(broken, 3, letters(4)...)
	r := s.acknowledged("A", "B")
	s.start("D")
	s.pass(3000)
	s.wants("A", Add, "D")
	s.pass(5000)
	if d := s.nodes["D"]; d.m.Votes() && !d.held[r] {
		return errors.New("D votes and has caught up with nobody")
	}
	s.level(s.names...)
	if !s.nodes["D"].m.Votes() {
		return fmt.Errorf("D does not vote after it caught up: %v", s.nodes["D"].m.Config())
	}
	return s.err()
}

// D and E join one after the other; C, D and E are then a majority of five.
func twoJoins(broken rule) error {
	s := formed(broken, 3, letters(5)...)
	r := s.acknowledged("A", "B")
	s.start("D")
	s.start("E")
	s.pass(3000)
	s.wants("A", Add, "D")
	s.pass(3000)
	s.wants("A", Add, "E")
	s.pass(5000)
	return s.active(r, "C", "C", "D", "E")
}

// A and B acknowledge; A is removed, then B; C alone is the majority of the list that is left.
func twoRemovals(broken rule) error {
	s := formed(broken, 3, letters(3)...)
	r := s.acknowledged("A", "B")
	s.wants("C", Remove, "A")
	s.pass(3000)
	if _, there := s.nodes["C"].m.Config().find("A"); there {
		return errors.New("A was not removed")
	}
	s.wants("C", Remove, "B")
	s.pass(5000)
	if err := s.active(r, "C", "C"); err != nil {
		return err
	}
	s.level(s.names...)
	if c := s.nodes["C"].m.Config(); len(c.Voters) != 1 {
		return fmt.Errorf("B was not removed after C caught up: %v", c)
	}
	return s.active(r, "C", "C")
}

// B has adopted the list without A and crashes; what it says afterwards under the list with A must count nowhere.
func acksUnderOld(broken rule) error {
	s := formed(broken, 3, letters(3)...)
	old := s.nodes["B"].m.Hash()
	s.wants("B", Remove, "A")
	s.pass(5000)
	if s.nodes["B"].m.Hash() == old {
		return errors.New("A was not removed")
	}
	s.stop("B")
	s.split("B") // nobody tells it
	s.nodes["B"].last = Config{}
	s.start("B")
	if s.nodes["B"].m.Hash() == old {
		return errors.New("B is back under the old list")
	}
	if s.nodes["C"].m.Counts("B", s.nodes["B"].inc, old) {
		return errors.New("C counts what B said under the old list")
	}
	return s.err()
}

// B has accepted that A goes, crashes, and is asked by A, which knows nothing of it, to accept that C goes.
func promiseForgotten(broken rule) error {
	s := formed(broken, 3, letters(3)...)
	a, b, c := s.nodes["A"], s.nodes["B"], s.nodes["C"]
	base := b.m.Config()
	accept := func(n *node, round uint64, from *node, next Config) bool {
		msg := message{kind: kindAccept, inc: from.inc, cur: base, settled: true, ballot: ballot{round, from.name, from.inc}, value: next}
		for _, o := range n.m.Step(Received{from.name, msg.encode()}) {
			switch o := o.(type) {
			case Persist:
				n.disk = o.State
			case Send:
				if got, err := decodeMessage(o.Data); err == nil && got.kind == kindAccepted {
					return true
				}
			}
		}
		return false
	}
	if !accept(b, 9, c, base.without("A")) {
		return errors.New("B refuses the first")
	}
	s.stop("B")
	s.start("B")
	if accept(b, 8, a, base.without("C")) {
		return errors.New("B and C have decided that A goes, A and B that C goes")
	}
	return s.err()
}

// Operators on both sides of a partition accept the loss of the other side, with B on both lists.
func twoLists(broken rule) error {
	s := formed(broken, 3, letters(3)...)
	s.step(s.nodes["A"], AcceptLoss{ID: 1, Names: []string{"C"}})
	delete(s.decided, [2]uint64{1, 2}) // the simulation does not allow it
	s.step(s.nodes["C"], AcceptLoss{ID: 1, Names: []string{"A"}})
	clear(s.decided)
	s.pass(5000)
	s.errs = nil
	b := s.nodes["B"]
	if b.m.Votes() || !b.m.Status().Fenced {
		return errors.New("B votes in one of two lists of a number")
	}
	for _, n := range s.nodes {
		if n.m.Config().Quorum(func(v Voter) bool {
			return s.nodes[v.Name].m.Votes() && n.m.Counts(v.Name, v.Incarnation, s.nodes[v.Name].m.Hash())
		}) {
			return errors.New("a majority votes in one of two lists of a number")
		}
	}
	// The operator decides once more, and all follow.
	s.step(s.nodes["A"], AcceptLoss{ID: 2, Names: nil})
	s.pass(8000)
	if !b.m.Votes() || b.m.Config().Losses != 2 {
		return fmt.Errorf("B does not vote again: %+v", b.m.Status())
	}
	return s.err()
}

func wipedVotes(broken rule) error { return newIncarnation(broken, false) }

func salvagedVotes(broken rule) error { return newIncarnation(broken, true) }

// A and B acknowledge; A loses its directory and rejoins empty; {A, C} must not be fresh.
func newIncarnation(broken rule, salvage bool) error {
	s := formed(broken, 3, letters(3)...)
	r := s.acknowledged("A", "B")
	s.wipe("A", salvage)
	delete(s.nodes["A"].held, r)
	s.start("A")
	s.pass(1000)
	if err := s.active(r, "C", "A", "C"); err != nil {
		return err
	}
	s.pass(5000)
	if c := s.nodes["C"].m.Config(); !c.Contains("A", s.nodes["A"].inc) {
		return fmt.Errorf("the new incarnation was not recorded: %v", c)
	}
	s.catchUp("A", "C")
	s.pass(1700)
	s.catchUp("A", "C")
	s.pass(5000)
	if err := s.active(r, "C", "A", "C"); err != nil {
		return err
	}
	s.level(s.names...)
	if !s.nodes["A"].m.Votes() || !s.nodes["A"].held[r] {
		return fmt.Errorf("A does not vote after it caught up: %+v", s.nodes["A"].m.Status())
	}
	return s.active(r, "C", "A", "C")
}

// E writes, A acknowledges and is wiped, A catches up with B, C and D; only then D gets the record and acknowledges: with the A of before that is a
// majority, and A, B and C do not hold it. What A was given before it was recorded must not count.
func caughtUpBeforeRecorded(broken rule) error {
	s := formed(broken, 5, letters(5)...)
	e := s.nodes["E"]
	s.split("E", "A")
	r := s.write("E")
	s.pass(1700)
	s.wipe("A", false)
	clear(s.cut)
	a := s.nodes["A"]
	s.start("A")
	b := s.nodes["B"]
	s.step(a, Received{"B", message{kind: kindHello, inc: b.inc, cur: b.m.Config(), settled: true}.encode()})
	s.step(a, CaughtUp{"A", a.inc, b.m.Hash(), s.voters("B", "C", "D")})
	s.nodes["D"].held[r] = true
	s.ack(e, r, "D", s.nodes["D"].inc, s.nodes["D"].m.Hash())
	if !s.acked[r] {
		return errors.New("the record was not acknowledged")
	}
	s.pass(5000)
	if err := s.active(r, "B", "A", "B", "C"); err != nil {
		return err
	}
	s.level(s.names...)
	if !a.m.Votes() || !a.held[r] {
		return fmt.Errorf("A does not vote after it caught up: %+v", a.m.Status())
	}
	return s.err()
}

// A and B acknowledge; A is wiped; D catches up with C and with the empty A, which are a majority by name.
func caughtUpWithWiped(broken rule) error {
	s := formed(broken, 3, letters(4)...)
	r := s.acknowledged("A", "B")
	s.start("D")
	s.pass(3000)
	s.wants("C", Add, "D")
	s.wipe("A", false)
	d := s.nodes["D"]
	s.step(d, CaughtUp{"D", d.inc, s.nodes["C"].m.Hash(), s.voters("A", "C")})
	s.pass(5000)
	if d.m.Votes() && !d.held[r] {
		return errors.New("D votes after it caught up with an empty node")
	}
	return s.err()
}

func (s *simulation) voters(names ...string) (l []Voter) {
	for _, name := range names {
		l = append(l, Voter{Name: name, Incarnation: s.nodes[name].inc})
	}
	return l
}

// A and C acknowledge; A is wiped and silent; C is removed. Seed 2426 found that A and B then voted.
func lastHolderRemoved(broken rule) error {
	s := formed(broken, 3, letters(3)...)
	r := s.acknowledged("A", "C")
	s.wipe("A", false)
	s.start("A")
	s.pass(5000)
	s.wants("B", Remove, "C")
	s.pass(5000)
	s.catchUp("A", "B")
	s.pass(5000)
	if err := s.active(r, "B", "A", "B"); err != nil {
		return err
	}
	if st := s.nodes["B"].m.Status(); st.TooFew {
		return fmt.Errorf("too few are left that vote: %+v", st)
	}
	s.level(s.names...)
	if c := s.nodes["B"].m.Config(); len(c.Voters) != 2 || !s.nodes["A"].m.Votes() {
		return fmt.Errorf("C was not removed after A caught up: %v", c)
	}
	return s.active(r, "B", "A", "B")
}
