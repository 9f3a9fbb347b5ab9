package voters

import (
	"fmt"
	"math/bits"
	"slices"
)

func (m *Machine) caughtUp(e CaughtUp) {
	if m.cur.IsZero() || (e.Hash != m.hash && !m.taken(ruleRecorded)) || checkName(e.Name) != nil {
		return
	}
	var mask uint64
	for _, v := range e.With {
		i, ok := m.cur.find(v.Name)
		if ok && (m.cur.Voters[i].Incarnation == v.Incarnation || m.taken(ruleIncarnation)) {
			mask |= 1 << i
		}
	}
	m.note(key{e.Name, e.Incarnation}, mask)
}

func (m *Machine) note(k key, mask uint64) {
	old, known := m.evidence[k]
	if m.cur.IsZero() || (!known && len(m.evidence) >= maxEvidence) {
		return
	}
	m.evidence[k] = old | mask
	m.settle()
}

// caught is the number of voters whose records this incarnation holds, itself included if it votes.
func (m *Machine) caught(name string, inc Incarnation) int {
	mask := m.evidence[key{name, inc}]
	if i := m.cur.index(name, inc); i >= 0 {
		mask |= 1 << i
	}
	return bits.OnesCount64(mask & m.voting)
}

// settle notes when a majority of the voters has each caught up with a majority: from then on W voters hold whatever was acknowledged before
// this configuration, as they do for what is acknowledged under it, and the next change may take one away.
func (m *Machine) settle() {
	if m.settled || m.cur.IsZero() {
		return
	}
	n := 0
	for _, v := range m.cur.Voters {
		if !v.Silent && m.caught(v.Name, v.Incarnation) >= m.cur.Majority() {
			n++
		}
	}
	if n < m.cur.Majority() {
		return
	}
	m.settled, m.dirty = true, true
	for _, v := range m.cur.Voters {
		if v.Name != m.self.Name {
			m.send(v.Name, message{kind: kindHello})
		}
	}
}

// askAround asks those whose evidence is needed here.
func (m *Machine) askAround() {
	var ask []string
	if !m.settled {
		for i, v := range m.cur.Voters {
			if m.voting&(1<<i) != 0 && m.caught(v.Name, v.Incarnation) < m.cur.Majority() {
				ask = append(ask, v.Name)
			}
		}
	}
	for _, w := range m.wishes {
		if w.Op == Add {
			ask = append(ask, w.Name)
		}
	}
	ask = slices.DeleteFunc(ask, func(n string) bool { return n == m.self.Name })
	if len(ask) == 0 || !m.want.due(m.now) {
		return
	}
	slices.Sort(ask)
	for _, name := range slices.Compact(ask) {
		m.send(name, message{kind: kindWant})
	}
}

func (m *Machine) propose(p Propose) {
	switch {
	case checkName(p.Name) != nil:
		m.result(p.ID, checkName(p.Name))
	case m.cur.IsZero():
		m.result(p.ID, ErrNoConfig)
	case len(m.wishes) >= maxProposals:
		m.result(p.ID, fmt.Errorf("%w: %d", ErrBusy, maxProposals))
	default:
		m.wishes = append(m.wishes, p)
		m.want = retry{}
	}
}

func (m *Machine) expireWishes() {
	m.wishes = slices.DeleteFunc(m.wishes, func(w Propose) bool {
		if m.now < w.Until {
			return false
		}
		_, why, _ := m.plan(w)
		if why == "" {
			why = "a majority of the voters"
		}
		m.result(w.ID, &WaitError{For: why})
		return true
	})
}

// answerWishes answers those that have come true, and those that cannot.
func (m *Machine) answerWishes() {
	m.wishes = slices.DeleteFunc(m.wishes, func(w Propose) bool {
		i, present := m.cur.find(w.Name)
		if done := w.Op == Remove && !present || w.Op == Add && present && (w.Incarnation == Incarnation{} || m.cur.Voters[i].Incarnation == w.Incarnation); done {
			m.result(w.ID, nil)
			return true
		}
		_, _, err := m.plan(w)
		if err != nil {
			m.result(w.ID, err)
		}
		return err != nil
	})
}

// plan is the configuration that a wish leads to, or what it waits for, or why it cannot be.
func (m *Machine) plan(w Propose) (next Config, waits string, err error) {
	_, present := m.cur.find(w.Name)
	switch {
	case w.Op == Remove && len(m.cur.Voters) == 1:
		return Config{}, "", ErrLast
	case w.Op == Add && present:
		return Config{}, "", ErrPresent
	case w.Op == Add && len(m.cur.Voters) == MaxVoters:
		return Config{}, "", fmt.Errorf("%w: %d voters", ErrFull, MaxVoters)
	case !m.settled && !m.taken(ruleSettle):
		return Config{}, "a majority that has caught up with a majority since the last change", nil
	case w.Op == Remove:
		next := m.cur.without(w.Name)
		if next.count(func(Voter) bool { return true }) < next.Majority() && !m.taken(ruleLeft) {
			return Config{}, "silent voters to vote again: those that would be left could make no quorum", nil
		}
		return next, "", nil
	case w.Op != Add:
		return Config{}, "", fmt.Errorf("%w: operation %d", ErrUnknown, w.Op)
	}
	inc := w.Incarnation
	if inc == (Incarnation{}) {
		var seen bool
		if inc, seen = m.peers[w.Name]; !seen && w.Name != m.self.Name {
			return Config{}, "the node to be seen", nil
		}
		if w.Name == m.self.Name {
			inc = m.self.Incarnation
		}
	}
	if n := m.caught(w.Name, inc); n < m.cur.Majority() && !m.taken(ruleCatchUp) {
		return Config{}, fmt.Sprintf("the node to catch up with %d voters, it has with %d", m.cur.Majority(), n), nil
	}
	return m.cur.with(Voter{Name: w.Name, Incarnation: inc}), "", nil
}

// next is the configuration that this node would propose now, and what the changes that it wants wait for. A node
// looks after its own incarnation; the names are the operator's.
func (m *Machine) next() (Config, []string) {
	var waits []string
	if m.cur.IsZero() && m.boot.Expect > 0 {
		if n := len(m.bootSeen()); n != m.boot.Expect {
			return Config{}, []string{fmt.Sprintf("first list: %d nodes are seen, %d are expected", n, m.boot.Expect)}
		}
		return Config{}, []string{"first list: all of its nodes to accept it"}
	}
	if i, ok := m.cur.find(m.self.Name); ok {
		switch v := m.cur.Voters[i]; {
		case (v.Silent || v.Incarnation != m.self.Incarnation) && !m.settled && !m.taken(ruleSettle):
			waits = append(waits, "new incarnation: a majority that has caught up with a majority since the last change")
		case v.Incarnation != m.self.Incarnation:
			return m.cur.with(Voter{Name: v.Name, Incarnation: m.self.Incarnation, Silent: !m.taken(ruleSilent)}), nil
		case v.Silent:
			need := len(m.cur.Voters) - m.cur.Majority() + 1
			if m.taken(ruleOthers) {
				need = 1
			}
			n := m.caught(v.Name, v.Incarnation)
			if n >= need {
				return m.cur.with(m.self), nil
			}
			waits = append(waits, fmt.Sprintf("new incarnation: to catch up with %d other voters, it has with %d", need, n))
		}
	}
	for _, w := range m.wishes {
		next, why, err := m.plan(w)
		if why == "" && err == nil {
			return next, waits
		}
		waits = append(waits, w.Name+": "+why)
	}
	return Config{}, waits
}

func (m *Machine) acceptLoss(names []string) error {
	if m.cur.IsZero() {
		return ErrNoConfig
	}
	list := slices.Clone(m.cur.Voters)
	for _, name := range names {
		if _, ok := m.cur.find(name); !ok {
			return fmt.Errorf("%w: one of those accepted as lost", ErrUnknown)
		}
		list = slices.DeleteFunc(list, func(v Voter) bool { return v.Name == name })
	}
	switch {
	case len(list) == 0, len(list) == 1 && list[0].is(m.self.Name, m.self.Incarnation):
		list = []Voter{m.self} // whatever this node may lack is now what is lost
	case !slices.ContainsFunc(list, func(v Voter) bool { return v.is(m.self.Name, m.self.Incarnation) }):
		return ErrNotVoter
	}
	c := m.cur.successor(list)
	c.Losses++
	m.adopt(c, false)
	return nil
}
