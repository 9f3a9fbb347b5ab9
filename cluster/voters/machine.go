package voters

import (
	"errors"
	"slices"
)

// Times in milliseconds of the caller's monotonic clock, and limits of what is remembered.
const (
	helloEvery  = 1000 // one peer in turn is shown what is adopted
	retryFirst  = 100  // doubled at each try
	retryMost   = 2000
	retryTries  = 6    // then a ballot is given up for a higher one
	finishAfter = 1000 // what another proposer left undecided is finished

	maxPeers     = 1024
	maxProposals = 16
	maxEvidence  = 128
)

var (
	ErrNoConfig = errors.New("voters: no configuration yet")
	ErrPresent  = errors.New("voters: name is in the list with another incarnation")
	ErrFull     = errors.New("voters: list is full")
	ErrLast     = errors.New("voters: the last voter cannot be removed")
	ErrUnknown  = errors.New("voters: name is not in the list")
	ErrNotVoter = errors.New("voters: this node would not be in the list")
	ErrBusy     = errors.New("voters: too many proposals are pending")
	ErrTimeout  = errors.New("voters: not decided in time")
)

// WaitError is an [ErrTimeout] that says what the change was still waiting for. It names no node, and the change may still come into force.
type WaitError struct{ For string }

func (e *WaitError) Error() string { return ErrTimeout.Error() + ": it waits for " + e.For }

// Unwrap makes it match [ErrTimeout].
func (e *WaitError) Unwrap() error { return ErrTimeout }

// Event is what [Machine.Step] takes: one of the types below.
type Event interface{ event() }

// Tick passes the time: milliseconds of a clock that never goes back. Without ticks nothing is retried.
type Tick struct{ Now int64 }

// Received is a message of a peer, whose name the transport has authenticated.
type Received struct {
	From string
	Data []byte
}

// PeerSeen says that a node is there with this incarnation.
type PeerSeen struct {
	Name        string
	Incarnation Incarnation
}

// Bootstrap forms the first list when exactly Expect nodes that were told to form it, this one included, are seen: the one with the
// lowest name proposes it. It is ignored as soon as any list is known. Give it again when what is seen changes.
type Bootstrap struct {
	Expect int
	Seen   []Voter
}

// CaughtUp says that a node holds, durably, all that each node in With held durably at a moment when that one, in the incarnation that it
// answered with, had already adopted the configuration of this hash. Reports add up until the configuration changes; those of another hash are ignored.
//
// Each node reports itself, best whenever a view of a voter becomes fresh; the machine asks the others for what they were told.
type CaughtUp struct {
	Name        string
	Incarnation Incarnation
	Hash        uint64
	With        []Voter
}

// Op is what a [Propose] wants.
type Op int

const (
	Add    Op = iota + 1 // a name, with the incarnation given or seen; it waits until that node has caught up
	Remove               // a name, whatever its incarnation
)

// Propose asks for a change of one name. It is answered by one [Result] with its ID: nil once a configuration that shows the
// change is adopted here, [ErrTimeout] at Until; then it may still be decided later.
type Propose struct {
	ID          uint64
	Op          Op
	Name        string
	Incarnation Incarnation // zero: as seen
	Until       int64       // on the clock of Tick
}

// AcceptLoss goes on without a quorum: the operator states that these voters are gone and that what only they acknowledged may be lost.
// All others that hold the list must be asked first, and it is given on one node only. The caller audits it.
type AcceptLoss struct {
	ID    uint64
	Names []string
}

func (Tick) event()       {}
func (Received) event()   {}
func (PeerSeen) event()   {}
func (Bootstrap) event()  {}
func (CaughtUp) event()   {}
func (Propose) event()    {}
func (AcceptLoss) event() {}

// Output is what [Machine.Step] returns: one of the types below, to be carried out in order.
type Output interface{ output() }

// Persist is durable before the outputs behind it are carried out, and before the next Step. When that fails, the node stops:
// what the machine believes is then more than what is on disk.
type Persist struct{ State []byte }

// Adopted is the configuration that holds here from now on: nothing is acknowledged under an older one any more.
type Adopted struct{ Config Config }

// Send is a message to a peer. It may be lost, repeated and reordered.
type Send struct {
	To   string
	Data []byte
}

// Result answers a [Propose] or an [AcceptLoss].
type Result struct {
	ID  uint64
	Err error
}

func (Persist) output() {}
func (Adopted) output() {}
func (Send) output()    {}
func (Result) output()  {}

// Status is what an operator sees.
type Status struct {
	Config  Config
	Hash    uint64
	Votes   bool     // acknowledgements and views of this node count
	Settled bool     // the next change may be made
	Fenced  bool     // another list of the same number names this node too: it does not vote
	Changed []string // voters that were seen with an incarnation that is not the recorded one
	TooFew  bool     // with those left out no quorum votes: only AcceptLoss goes on, unless they come back
	Waits   []string // what the changes that are wanted here wait for
	Refused uint64   // malformed messages
}

// rule names a rule that a test takes out. Outside tests none is.
type rule uint

// taken reports whether a rule is taken out.
func (m *Machine) taken(r rule) bool { return faulty && m.broken&r != 0 }

const (
	ruleHash        rule = 1 << iota // acknowledgements count under their own hash only
	ruleBootstrap                    // the first list needs every node in it
	ruleOneChange                    // acceptors check that a list differs by one change
	ruleCatchUp                      // a new voter has caught up before it counts
	ruleSettle                       // a list settles before the next change
	rulePersist                      // adopted lists and promises are durable
	ruleIncarnation                  // what other incarnations say does not count
	ruleSilent                       // a new incarnation does not vote at once
	ruleOthers                       // it catches up with n - W + 1 others
	ruleRecorded                     // and those have recorded it before
	ruleLeft                         // a removal leaves enough that vote
	ruleFence                        // two lists of one number stop the voters that are in both
)

// Machine is one node's part in the agreement. Use [New].
type Machine struct {
	self Voter
	durable
	dirty bool
	out   []Output // of this step, but Persist and Adopted
	local []message
	news  []Adopted
	rand  uint64

	now        int64
	acceptedAt int64
	helloAt    int64
	helloTurn  int
	want       retry
	startAt    int64 // no ballot of ours before this
	failures   int

	peers    map[string]Incarnation
	boot     Bootstrap
	bootList []Voter // a list that others may have decided already
	evidence map[key]uint64
	wishes   []Propose
	lead     *lead
	refused  uint64

	broken rule // rules that a test has taken out
	hash   uint64
	voting uint64 // mask of cur
}

type key struct {
	name string
	inc  Incarnation
}

// retry is a point in time that moves away.
type retry struct {
	at    int64
	tries int
}

func (r *retry) due(now int64) bool {
	if now < r.at {
		return false
	}
	r.at = now + backoff(r.tries)
	r.tries++
	return true
}

func backoff(tries int) int64 { return min(int64(retryFirst)<<min(tries, 8), retryMost) }

// New continues from the state that was persisted last; nil or empty is a directory that has none. A state that cannot be
// read is an error, and its directory needs a new incarnation: promises were forgotten. The seed spreads retries, nothing else.
func New(self Voter, state []byte, seed uint64) (*Machine, error) {
	if err := checkName(self.Name); err != nil {
		return nil, err
	}
	m := &Machine{
		self: Voter{Name: self.Name, Incarnation: self.Incarnation}, rand: seed,
		peers: map[string]Incarnation{}, evidence: map[key]uint64{},
	}
	if len(state) > 0 {
		d, err := decodeState(self.Name, state)
		if err != nil {
			return nil, err
		}
		m.durable = d
	}
	m.derive()
	return m, nil
}

// Step takes one event and returns what is to be done for it, in order.
func (m *Machine) Step(e Event) []Output {
	switch e := e.(type) {
	case Tick:
		m.tick(e.Now)
	case Received:
		m.received(e.From, e.Data)
	case PeerSeen:
		m.peerSeen(e)
	case Bootstrap:
		e.Seen = slices.Clone(e.Seen)
		m.boot = e
		if m.taken(ruleBootstrap) && m.cur.IsZero() && len(m.bootSeen()) == e.Expect {
			m.adopt(Config{}.successor(m.bootSeen()), true)
		}
	case CaughtUp:
		m.caughtUp(e)
	case Propose:
		m.propose(e)
	case AcceptLoss:
		m.result(e.ID, m.acceptLoss(e.Names))
	}
	for len(m.local) > 0 {
		msg := m.local[0]
		m.local = m.local[1:]
		m.handle(m.self.Name, msg)
	}
	m.answerWishes()

	var outs []Output
	if m.dirty && !m.taken(rulePersist) {
		outs = append(outs, Persist{m.durable.encode(m.self.Name)})
	}
	for _, a := range m.news {
		outs = append(outs, a)
	}
	outs = append(outs, m.out...)
	m.dirty, m.news, m.out = false, nil, nil
	return outs
}

// Config is what is adopted here.
func (m *Machine) Config() Config { return m.cur }

// Hash is that of Config, to be stamped on every acknowledgement and answer about freshness.
func (m *Machine) Hash() uint64 { return m.hash }

// Votes reports whether this node's own acknowledgements and views count.
func (m *Machine) Votes() bool {
	return m.Counts(m.self.Name, m.self.Incarnation, m.hash)
}

// Counts reports whether an acknowledgement or a view by this incarnation, given under the configuration of this hash, counts now. What
// counted under an older configuration counts no more: it has to be confirmed again. It does not allocate.
func (m *Machine) Counts(name string, inc Incarnation, hash uint64) bool {
	if m.fenced || (hash != m.hash && !m.taken(ruleHash)) {
		return false
	}
	if i, ok := m.cur.find(name); ok && m.taken(ruleIncarnation) {
		inc = m.cur.Voters[i].Incarnation
	}
	return m.cur.Votes(name, inc)
}

// Status is a picture of now.
func (m *Machine) Status() Status {
	s := Status{
		Config: m.cur, Hash: m.hash, Votes: m.Votes(), Settled: m.settled, Fenced: m.fenced, Refused: m.refused,
	}
	left := 0
	for _, v := range m.cur.Voters {
		if m.changed(v) {
			s.Changed = append(s.Changed, v.Name)
		} else if !v.Silent {
			left++
		}
	}
	s.TooFew = !m.cur.IsZero() && left < m.cur.Majority()
	_, s.Waits = m.next()
	return s
}

func (m *Machine) changed(v Voter) bool {
	if v.Name == m.self.Name {
		return v.Incarnation != m.self.Incarnation
	}
	inc, seen := m.peers[v.Name]
	return seen && inc != v.Incarnation
}

// derive keeps what is computed from cur.
func (m *Machine) derive() {
	m.hash, m.voting = m.cur.Hash(), 0
	for i, v := range m.cur.Voters {
		if !v.Silent {
			m.voting |= 1 << i
		}
	}
}

func (m *Machine) tick(now int64) {
	m.now = max(m.now, now)
	m.expireWishes()
	m.hello()
	if !m.fenced {
		m.askAround()
		m.drive()
	}
}

// hello shows one node in turn what is adopted here: whoever is behind learns, whoever is ahead answers.
func (m *Machine) hello() {
	if m.now < m.helloAt {
		return
	}
	m.helloAt = m.now + helloEvery
	if names := m.names(); len(names) > 0 {
		m.helloTurn %= len(names)
		m.send(names[m.helloTurn], message{kind: kindHello})
		m.helloTurn++
	}
}

// names are the other nodes that this one knows of, sorted.
func (m *Machine) names() []string {
	names := make([]string, 0, len(m.peers)+len(m.cur.Voters))
	for name := range m.peers {
		names = append(names, name)
	}
	for _, v := range m.cur.Voters {
		names = append(names, v.Name)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == m.self.Name })
}

func (m *Machine) peerSeen(e PeerSeen) {
	inc, known := m.peers[e.Name]
	if checkName(e.Name) != nil || e.Name == m.self.Name || (known && inc == e.Incarnation) || (!known && len(m.peers) >= maxPeers) {
		return
	}
	m.peers[e.Name] = e.Incarnation
	m.send(e.Name, message{kind: kindHello})
}

// send stamps what is adopted; a message to this node itself is handled at the end of the step.
func (m *Machine) send(to string, msg message) {
	msg.inc, msg.cur, msg.settled = m.self.Incarnation, m.cur, m.settled
	if to == m.self.Name {
		m.local = append(m.local, msg)
		return
	}
	m.out = append(m.out, Send{To: to, Data: msg.encode()})
}

func (m *Machine) result(id uint64, err error) { m.out = append(m.out, Result{id, err}) }

func (m *Machine) received(from string, data []byte) {
	msg, err := decodeMessage(data)
	if err != nil || checkName(from) != nil || from == m.self.Name {
		m.refused++
		return
	}
	switch c := msg.cur.Compare(m.cur); {
	case c > 0:
		m.adopt(msg.cur, msg.settled)
	case c < 0:
		m.send(from, message{kind: kindHello})
		return
	case msg.cur.Hash() != m.hash:
		m.conflict(msg.cur)
		return
	case msg.settled && !m.settled:
		m.settled, m.dirty = true, true
	}
	m.handle(from, msg)
}

// conflict is a second list of the same number: two clusters, or two operators who accepted the loss of each other. A node that is in
// both must not make a majority of either; the others go on, so that a stray node with a list of its own stops nobody.
func (m *Machine) conflict(other Config) {
	if _, ok := other.find(m.self.Name); ok && !m.fenced && !m.taken(ruleFence) {
		m.fenced, m.dirty = true, true
		m.lead = nil
	}
}

// handle takes a message whose sender has adopted what is adopted here.
func (m *Machine) handle(from string, msg message) {
	if m.fenced || msg.cur.Compare(m.cur) != 0 {
		return
	}
	switch msg.kind {
	case kindWant:
		m.send(from, message{kind: kindHave, mask: m.evidence[key{m.self.Name, m.self.Incarnation}]})
	case kindHave:
		m.note(key{from, msg.inc}, msg.mask)
	case kindPrepare:
		m.prepared(from, msg)
	case kindAccept:
		m.asked(from, msg)
	case kindPromise:
		m.promise(from, msg)
	case kindAccepted:
		m.voted(from, msg)
	case kindNack:
		m.nack(msg)
	}
}

// adopt makes c the configuration of this node. The acceptor begins anew: its ballots were about the successor of the old one.
func (m *Machine) adopt(c Config, settled bool) {
	old := m.names()
	m.cur, m.settled, m.fenced, m.dirty = c, settled, false, true
	m.promised, m.accepted, m.value = ballot{}, ballot{}, Config{}
	m.derive()
	m.lead, m.bootList, m.failures, m.startAt, m.want = nil, nil, 0, 0, retry{}
	if !m.taken(ruleRecorded) {
		m.evidence = map[key]uint64{}
	}
	m.news = append(m.news, Adopted{c})
	for _, name := range slices.Compact(slices.Sorted(slices.Values(append(old, m.names()...)))) {
		m.send(name, message{kind: kindHello})
	}
	m.settle()
}
