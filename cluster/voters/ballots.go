package voters

import (
	"math/bits"
	"slices"
)

// lead is a ballot of this node: a proposer of single-decree Paxos among the voters of the adopted configuration about its successor, or,
// while there is none, among all nodes of a first list about that list.
type lead struct {
	ballot   ballot
	voters   []Voter // the acceptors
	need     int     // how many of them
	own      Config  // proposed unless an acceptor has accepted another
	value    Config  // set: the second phase
	promises map[int]message
	accepted uint64 // mask by index in voters
	retry    retry
}

func (l *lead) index(name string, inc Incarnation) int {
	return slices.IndexFunc(l.voters, func(v Voter) bool { return v.is(name, inc) })
}

// drive begins, repeats or gives up a ballot.
func (m *Machine) drive() {
	if m.lead != nil {
		if m.lead.retry.tries >= retryTries && m.now >= m.lead.retry.at {
			m.giveUp()
			m.bootList = nil
			return
		}
		m.ask()
		return
	}
	if m.now < m.startAt {
		return
	}
	l := &lead{promises: map[int]message{}}
	if m.cur.IsZero() {
		if l.voters = m.bootList; l.voters == nil {
			l.voters = m.bootSeen()
			if len(l.voters) != m.boot.Expect || m.boot.Expect == 0 || l.voters[0] != m.self {
				return
			}
		}
		l.need, l.own = len(l.voters), Config{}.successor(slices.Clone(l.voters))
	} else {
		l.own, _ = m.next()
		if l.own.IsZero() {
			// A list that was accepted here has been justified for exactly this base, so anybody may finish it.
			if m.value.IsZero() || m.now < m.acceptedAt+finishAfter {
				return
			}
			l.own = m.value
		}
		l.voters, l.need = m.cur.Voters, m.cur.Majority()
	}
	m.round = max(m.round, m.promised.round) + 1
	m.dirty = true
	l.ballot = ballot{m.round, m.self.Name, m.self.Incarnation}
	m.lead = l
	m.ask()
}

// ask sends the question of the phase to those who have not answered it.
func (m *Machine) ask() {
	l := m.lead
	if !l.retry.due(m.now) {
		return
	}
	for i, v := range l.voters {
		_, promised := l.promises[i]
		switch {
		case l.value.IsZero() && !promised:
			msg := message{kind: kindPrepare, ballot: l.ballot}
			if m.cur.IsZero() {
				msg.value = l.own
			}
			m.send(v.Name, msg)
		case !l.value.IsZero() && l.accepted&(1<<i) == 0:
			m.send(v.Name, message{kind: kindAccept, ballot: l.ballot, value: l.value})
		}
	}
}

// giveUp leaves a pause, longer each time and different on each node, so that two proposers do not outbid each other for ever.
func (m *Machine) giveUp() {
	m.lead = nil
	pause := backoff(m.failures)
	m.failures++
	m.startAt = m.now + pause/2 + int64(m.random()%uint64(pause))
}

// random is splitmix64.
func (m *Machine) random() uint64 {
	m.rand += 0x9e3779b97f4a7c15
	z := m.rand
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// acceptor reports whether this node has a say about the value.
func (m *Machine) acceptor(value Config) bool {
	if !m.cur.IsZero() {
		return m.cur.Contains(m.self.Name, m.self.Incarnation)
	}
	return len(value.Voters) == m.boot.Expect && value.Contains(m.self.Name, m.self.Incarnation)
}

func (m *Machine) prepared(from string, msg message) {
	if !m.acceptor(msg.value) {
		return
	}
	if msg.ballot.less(m.promised) {
		m.send(from, message{kind: kindNack, ballot: msg.ballot, other: m.promised})
		return
	}
	m.promised, m.dirty = msg.ballot, true
	m.send(from, message{kind: kindPromise, ballot: msg.ballot, other: m.accepted, value: m.value})
}

func (m *Machine) promise(from string, msg message) {
	l := m.lead
	if l == nil || !l.value.IsZero() || msg.ballot != l.ballot {
		return
	}
	i := l.index(from, msg.inc)
	if i < 0 {
		return
	}
	l.promises[i] = msg
	if len(l.promises) < l.need {
		return
	}
	var highest message
	for _, p := range l.promises {
		if highest.other.less(p.other) {
			highest = p
		}
	}
	switch {
	case highest.value.IsZero():
		l.value = l.own
	case !m.cur.IsZero():
		l.value = highest.value
	default:
		list, free := l.first()
		if !free {
			m.bootList = list
			m.giveUp()
			return
		}
		l.value = l.own
	}
	l.retry = retry{}
	m.ask()
}

// first reports whether the own first list may be proposed. All of its nodes have promised; each list that one of them has accepted
// may have been decided by all of *its* nodes, unless it is the own one or one of its nodes is here and has accepted something else.
// Otherwise that list has to be proposed instead.
func (l *lead) first() (list []Voter, free bool) {
	own := l.own.Hash()
	for i := range l.voters {
		p := l.promises[i]
		if p.value.IsZero() || p.value.Hash() == own {
			continue
		}
		refuted := false
		for j, v := range l.voters {
			q := l.promises[j].value
			if p.value.Contains(v.Name, v.Incarnation) && (q.IsZero() || q.Hash() != p.value.Hash()) {
				refuted = true
			}
		}
		if !refuted {
			return p.value.Voters, false
		}
	}
	return nil, true
}

func (m *Machine) asked(from string, msg message) {
	if _, err := m.cur.changeTo(msg.value); (err != nil && !m.taken(ruleOneChange)) || !m.acceptor(msg.value) {
		return
	}
	if msg.ballot.less(m.promised) {
		m.send(from, message{kind: kindNack, ballot: msg.ballot, other: m.promised})
		return
	}
	m.promised, m.accepted, m.value, m.dirty = msg.ballot, msg.ballot, msg.value, true
	m.acceptedAt = m.now + int64(m.random()%finishAfter)
	m.send(from, message{kind: kindAccepted, ballot: msg.ballot})
}

func (m *Machine) voted(from string, msg message) {
	l := m.lead
	if l == nil || l.value.IsZero() || msg.ballot != l.ballot {
		return
	}
	i := l.index(from, msg.inc)
	if i < 0 {
		return
	}
	l.accepted |= 1 << i
	if bits.OnesCount64(l.accepted) < l.need {
		return
	}
	kind, err := m.cur.changeTo(l.value)
	// A first list has nothing before it, and a change of an incarnation leaves as many holders as its majority needs; a name more
	// or less may not: that list has to settle.
	m.adopt(l.value, err == nil && kind != changeAdd && kind != changeRemove)
}

func (m *Machine) nack(msg message) {
	if m.lead == nil || msg.ballot != m.lead.ballot || !m.lead.ballot.less(msg.other) {
		return
	}
	m.round, m.dirty = max(m.round, msg.other.round), true
	m.giveUp()
}

// bootSeen is what was seen, and this node.
func (m *Machine) bootSeen() []Voter {
	seen := []Voter{m.self}
	for _, v := range m.boot.Seen {
		if v.Name != m.self.Name && checkName(v.Name) == nil {
			seen = append(seen, Voter{Name: v.Name, Incarnation: v.Incarnation})
		}
	}
	seen = Config{}.successor(seen).Voters
	return slices.CompactFunc(seen, func(a, b Voter) bool { return a.Name == b.Name })
}
