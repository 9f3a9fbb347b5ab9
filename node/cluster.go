package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
	"github.com/revokd/revokd/journal"
)

// ErrVoters: a change of the voters was refused, or is not in force yet; the text says why.
var ErrVoters = errors.New("the voters were not changed")

// ErrNoCluster: the node was not started as a member of a cluster.
var ErrNoCluster = errors.New("the node does not belong to a cluster")

// ClusterConfig makes a node a member of a cluster.
type ClusterConfig struct {
	// Gossip is how members find each other. The node fills in Name, Meta, OnChange, Clock and Logger. Without Bind there is no gossip: whoever
	// made the node begins its sessions.
	Gossip cluster.Config
	// APIAddr is where other nodes reach this one's API.
	APIAddr string
	// Certificate is the SHA-256 of the certificate shown there.
	Certificate [32]byte
	// Dial opens a stream to another node.
	Dial func(ctx context.Context, name, apiAddr string) (Stream, error)
	// BootstrapExpect is how many nodes form the first list of voters when all of them are there. 0: this node joins a list that exists.
	BootstrapExpect int
	// StartAlone: after a start the node does not wait until it is level with another one. It may then lack what others have acknowledged, so that
	// a check that asks for [FreshnessAny] can call a revoked token active; others stay Unknown until a majority is there.
	StartAlone bool
	// AutoVoters: nodes that have caught up are proposed as voters by themselves. For development.
	AutoVoters bool
}

const (
	sessionsEvery  = 250 * time.Millisecond
	dialTimeout    = 5 * time.Second
	dialBackoff    = 250 * time.Millisecond // first; it doubles up to
	maxBackoff     = 2 * time.Second
	missedAfter    = 3 * time.Second // without a session with a member: it is logged, and again
	missedEvery    = time.Minute
	crossDialWait  = 2 * time.Second // before the node with the greater name dials
	votersEvery    = 100 * time.Millisecond
	offsetsEvery   = time.Second
	refusedEvery   = 10 * time.Second
	maxVoterQueue  = 1024
	autoVoterEvery = 5 * time.Second

	// A clock that far from the median of its peers' is warned of, and may not make writes.
	warnOffset = 2 * time.Second
	stopOffset = 30 * time.Second
)

// membership is the node's part in a cluster. It is nil on a lone node.
type membership struct {
	n        *Node
	cfg      *ClusterConfig
	gossip   *cluster.Members // nil without gossip
	machine  *voters.Machine  // belongs to the goroutine of votersLoop, after begin
	changed  chan struct{}    // members have changed
	events   chan voters.Event
	results  map[uint64]chan error // of proposals; belongs to votersLoop
	asked    chan proposal
	nextID   uint64
	proposed time.Duration // when a voter was last proposed by itself
	status   atomic.Pointer[voters.Status]
	offset   atomic.Int64 // of the peers' median wall clock from this one's
	refuses  atomic.Bool  // because of it
	refused  uint64       // records of peers, as last reported; belongs to one goroutine
	alike    atomic.Bool  // it has been found to agree with somebody since the start
	jumped   atomic.Bool  // it has not since it jumped

	mu    sync.Mutex
	dials map[string]*dialing
}

type proposal struct {
	event  func(id uint64, now int64) voters.Event
	result chan error
}

func newMembership(n *Node) (*membership, error) {
	m := &membership{
		n: n, cfg: n.cfg.Cluster, changed: make(chan struct{}, 1), events: make(chan voters.Event, maxVoterQueue),
		results: make(map[uint64]chan error), dials: make(map[string]*dialing), asked: make(chan proposal, 16),
	}
	m.status.Store(&voters.Status{})
	if m.cfg.Gossip.Bind == "" {
		return m, nil
	}
	g := m.cfg.Gossip
	g.Name, g.Clock, g.Logger = n.cfg.Name, n.cfg.Clock, n.cfg.Logger
	g.Meta = n.meta
	g.OnChange = func([]cluster.Member) { m.signal() }
	var err error
	m.gossip, err = cluster.New(g)
	return m, err
}

func (m *membership) signal() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// meta is what the node says about itself in gossip.
func (n *Node) meta() cluster.Meta {
	m := cluster.Meta{
		State: cluster.Starting, APIAddr: n.cfg.Cluster.APIAddr, Version: n.cfg.Version, Epoch: n.replica.epoch, Incarnation: n.replica.incarnation,
		Certificate: n.cfg.Cluster.Certificate, Voters: n.members.status.Load().Config.Number,
	}
	id := sha256.Sum256(append([]byte("revokd cluster\x00"), n.cfg.Key[:]...))
	copy(m.Cluster[:], id[:])
	switch {
	case n.complete.Load():
		m.State = cluster.Ready
	case n.replayed.Load():
		m.State = cluster.Syncing
	case n.journal != nil:
		m.State = cluster.Replaying
	}
	return m
}

// metaVoters is the key of the voters' state in the journal's metadata.
const metaVoters = "voters"

// begin continues from the persisted state of the voters.
func (m *membership) begin() error {
	var state []byte
	if m.n.journal != nil {
		state, _ = m.n.journal.Get(metaVoters)
	}
	self := voters.Voter{Name: m.n.cfg.Name, Incarnation: voters.Incarnation(m.n.replica.incarnation)}
	machine, err := voters.New(self, state, random())
	if err != nil {
		return fmt.Errorf("the voters in the journal: %w", err)
	}
	if c := machine.Config(); m.cfg.BootstrapExpect == 1 && len(c.Voters) == 1 && c.Voters[0].Name == self.Name && c.Voters[0].Incarnation != self.Incarnation {
		// Nobody else can say what was lost, and the user has said that this node is all there is.
		m.n.log.Warn("the only voter's data was restored or repaired: what is missing in it is lost, and it votes again")
		if machine, err = voters.New(self, nil, random()); err != nil {
			return err
		}
	}
	m.machine = machine
	m.apply()
	return nil
}

// lone reports whether there is nobody but this node.
func (m *membership) lone() bool {
	c := m.machine.Config()
	return m.cfg.BootstrapExpect == 1 && (c.IsZero() || len(c.Voters) == 1 && c.Voters[0].Name == m.n.cfg.Name)
}

// apply puts what the machine has adopted in force.
func (m *membership) apply() {
	st := m.machine.Status()
	old := m.status.Swap(&st)
	if st.Config.IsZero() || old.Hash == st.Hash && old.Votes == st.Votes {
		return
	}
	v := replication.Voters{Number: uint64(st.Config.Losses)<<40 + st.Config.Number, Hash: st.Hash}
	for _, voter := range st.Config.Voters {
		v.Names = append(v.Names, voter.Name)
	}
	m.n.setVoters(v, st.Votes)
	m.n.log.Info("voters", "number", st.Config.Number, "names", v.Names, "this_node_votes", st.Votes)
	if m.gossip != nil {
		m.gossip.UpdateMeta()
	}
}

// run keeps the node in the cluster until ctx ends.
func (m *membership) run(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return m.votersLoop(ctx) })
	g.Go(func() error { return m.n.every(ctx, offsetsEvery, m.compareClocks) })
	g.Go(func() error { return m.n.every(ctx, refusedEvery, m.reportRefused) })
	if m.gossip != nil {
		g.Go(func() error { return m.gossip.Run(ctx) })
		g.Go(func() error { return m.sessionsLoop(ctx) })
	}
}

// votersLoop feeds the machine. What it says is to be durable is so before anything behind it is done.
func (m *membership) votersLoop(ctx context.Context) error {
	t := time.NewTicker(votersEvery)
	defer t.Stop()
	now := func() int64 { return m.n.cfg.Clock.Mono().Milliseconds() }
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case e := <-m.events:
			err = m.step(ctx, e)
		case p := <-m.asked:
			m.nextID++
			m.results[m.nextID] = p.result
			err = m.step(ctx, p.event(m.nextID, now()))
		case <-t.C:
			err = m.look(ctx)
			if err == nil {
				err = m.step(ctx, voters.Tick{Now: now()})
			}
		}
		if err != nil {
			return nil // ctx has ended
		}
	}
}

// look tells the machine who is there, and with whom this node has caught up.
func (m *membership) look(ctx context.Context) error {
	for _, c := range m.n.replica.takeCaughtUp() {
		e := voters.CaughtUp{
			Name: m.n.cfg.Name, Incarnation: voters.Incarnation(m.n.replica.incarnation), Hash: c.Hash,
			With: []voters.Voter{{Name: c.Name, Incarnation: voters.Incarnation(c.Incarnation)}},
		}
		if err := m.step(ctx, e); err != nil {
			return err
		}
	}
	// Who is at the other end of a session has proved it. Who only gossips would keep the others from forming the first list.
	seen := []voters.Voter{{Name: m.n.cfg.Name, Incarnation: voters.Incarnation(m.n.replica.incarnation)}}
	for _, p := range m.n.Peers() {
		if p.Client || p.Incarnation == (replication.Incarnation{}) {
			continue
		}
		v := voters.Voter{Name: p.Name, Incarnation: voters.Incarnation(p.Incarnation)}
		seen = append(seen, v)
		if err := m.step(ctx, voters.PeerSeen{Name: v.Name, Incarnation: v.Incarnation}); err != nil {
			return err
		}
	}
	if m.gossip == nil {
		return nil
	}
	st := m.status.Load()
	if st.Config.IsZero() && m.cfg.BootstrapExpect > 0 && len(seen) == m.cfg.BootstrapExpect {
		return m.step(ctx, voters.Bootstrap{Expect: m.cfg.BootstrapExpect, Seen: seen})
	}
	if now := m.n.cfg.Clock.Mono(); m.cfg.AutoVoters && st.Votes && st.Settled && now >= m.proposed+autoVoterEvery {
		for _, p := range m.gossip.Members() {
			inList := slices.ContainsFunc(st.Config.Voters, func(v voters.Voter) bool { return v.Name == p.Name })
			if !inList && p.Status == cluster.Alive && p.Meta.State == cluster.Ready && len(st.Config.Voters) < voters.MaxVoters {
				m.nextID++
				m.proposed = now
				return m.step(ctx, voters.Propose{ID: m.nextID, Op: voters.Add, Name: p.Name, Until: (now + autoVoterEvery).Milliseconds()})
			}
		}
	}
	return nil
}

// step passes an event to the machine and carries out what it says; the error is that of ctx.
func (m *membership) step(ctx context.Context, e voters.Event) error {
	for _, out := range m.machine.Step(e) {
		switch out := out.(type) {
		case voters.Persist:
			if err := m.persist(ctx, out.State); err != nil {
				return err
			}
		case voters.Send:
			m.n.sendControl(out.To, out.Data)
		case voters.Adopted:
			m.apply()
		case voters.Result:
			if result := m.results[out.ID]; result != nil {
				delete(m.results, out.ID)
				result <- out.Err
			}
		}
	}
	m.apply()
	return nil
}

// persist makes the machine's state durable. While the disk refuses it nothing else happens to the voters.
func (m *membership) persist(ctx context.Context, state []byte) error {
	for m.n.journal != nil {
		err := m.n.journal.Append(ctx, &journal.Batch{Meta: []journal.Meta{{Key: metaVoters, Value: state}}})
		if err == nil {
			return nil
		}
		m.n.log.Warn("the state of the voters is not on disk yet", "error", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(mendEvery):
		}
	}
	return nil
}

// receive takes a message of another node's voters. What does not fit is lost; it is sent again.
func (m *membership) receive(from string, data []byte) {
	select {
	case m.events <- voters.Received{From: from, Data: data}:
	default:
	}
}

// VoterChange is one change of the voters: exactly one of its fields is set.
type VoterChange struct{ Add, Remove, AcceptLoss string }

// ChangeVoters proposes a change and returns when it is in force here. Errors match [ErrVoters] or [ErrNoCluster]; after a
// timeout the change may still come into force.
func (n *Node) ChangeVoters(ctx context.Context, c VoterChange, limit time.Duration) error {
	if n.members == nil {
		return ErrNoCluster
	}
	if limit <= 0 {
		limit = 30 * time.Second
	}
	p := proposal{result: make(chan error, 1), event: func(id uint64, now int64) voters.Event {
		until := now + limit.Milliseconds()
		switch {
		case c.Add != "":
			return voters.Propose{ID: id, Op: voters.Add, Name: c.Add, Until: until}
		case c.Remove != "":
			return voters.Propose{ID: id, Op: voters.Remove, Name: c.Remove, Until: until}
		}
		return voters.AcceptLoss{ID: id, Names: []string{c.AcceptLoss}}
	}}
	if c.AcceptLoss != "" {
		n.log.Warn("the loss of a voter is accepted: what only it had acknowledged may be gone", "voter", c.AcceptLoss)
	}
	select {
	case n.members.asked <- p:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrVoters, ctx.Err())
	}
	select {
	case err := <-p.result:
		if err != nil {
			return fmt.Errorf("%w: %w", ErrVoters, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrVoters, ctx.Err())
	}
}

// Voters describes the configuration in force.
func (n *Node) Voters() voters.Status {
	if n.members == nil {
		return voters.Status{}
	}
	return *n.members.status.Load()
}

// Gossip returns the node's part in membership, nil if there is none.
func (n *Node) Gossip() *cluster.Members {
	if n.members == nil {
		return nil
	}
	return n.members.gossip
}

// dialing is what is known of getting through to a peer; under membership.mu.
type dialing struct {
	busy    bool
	missing time.Duration // since when there has been no session
	next    time.Duration // not before
	backoff time.Duration
	warned  time.Duration // when it was last logged that there is none; 0: it has not been
}

// sessionsLoop holds a session with every member that this node should have one with, until ctx ends.
func (m *membership) sessionsLoop(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	t := time.NewTicker(sessionsEvery)
	defer t.Stop()
	for {
		m.dialMissing(ctx, g)
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-m.changed:
		case <-t.C:
		}
	}
}

// dialMissing dials who is missing. Of two nodes the one with the lesser name dials; the other one only if it does not get through.
func (m *membership) dialMissing(ctx context.Context, g *errgroup.Group) {
	now := m.n.cfg.Clock.Mono()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, addr := range m.wanted() {
		d := m.dials[name]
		if d == nil {
			d = &dialing{missing: now}
			m.dials[name] = d
		}
		switch {
		case m.n.replica.connected(name):
			if d.missing = now; d.warned != 0 {
				d.warned = 0
				m.n.log.Info("there is a session again", "node", name)
			}
		case d.busy || now < d.next:
		case m.n.cfg.Name > name && now-d.missing < crossDialWait:
		default:
			d.busy = true
			g.Go(func() error {
				m.session(ctx, name, addr, d)
				return nil
			})
		}
	}
}

// wanted returns the members that this node should have a session with, and their addresses.
func (m *membership) wanted() map[string]string {
	list := neighbours(m.gossip.Members(), m.status.Load().Config, m.n.cfg.Name)
	for name := range m.dials {
		if list[name] == "" && !m.dials[name].busy {
			delete(m.dials, name)
		}
	}
	return list
}

// neighbours are the members that are near on the ring of names, all of them in a small cluster, and between voters and everybody: who acknowledges is asked directly. A voter is wanted whatever gossip says of
// it: gossip may be cut where sessions are not, and whoever has its key can have anybody declared dead.
func neighbours(members []cluster.Member, config voters.Config, name string) map[string]string {
	votes := func(name string) bool {
		return slices.ContainsFunc(config.Voters, func(v voters.Voter) bool { return v.Name == name })
	}
	members = slices.DeleteFunc(slices.Clone(members), func(p cluster.Member) bool {
		return p.Meta.APIAddr == "" || p.Status == cluster.Left || p.Name != name && p.Status == cluster.Dead && !votes(p.Name)
	})
	list := make(map[string]string)
	self := slices.IndexFunc(members, func(p cluster.Member) bool { return p.Name == name })
	if self < 0 {
		return list
	}
	for i, p := range members {
		if i != self && (replication.Near(i, self, len(members)) || votes(name) || votes(p.Name)) {
			list[p.Name] = p.Meta.APIAddr
		}
	}
	return list
}

// session holds one session with a peer, if it can be reached.
func (m *membership) session(ctx context.Context, name, addr string, d *dialing) {
	began := m.n.cfg.Clock.Mono()
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	stream, err := m.cfg.Dial(dialCtx, name, addr)
	if err == nil {
		err = m.n.Session(ctx, stream, SessionPeer{Name: name, Dialed: true})
	}
	cancel()
	now := m.n.cfg.Clock.Mono()
	m.mu.Lock()
	defer m.mu.Unlock()
	if d.backoff = min(max(2*d.backoff, dialBackoff), maxBackoff); now-began > silent {
		d.backoff = dialBackoff
	}
	d.busy, d.next = false, now+d.backoff/2+time.Duration(random()%uint64(d.backoff/2))
	switch {
	case ctx.Err() != nil:
	case now-d.missing < missedAfter || d.warned != 0 && now-d.warned < missedEvery || m.n.replica.connected(name):
		m.n.log.Debug("no session", "node", name, "error", err)
	default:
		d.warned = now
		m.n.log.Warn("no session with a member: nothing is exchanged with it", "node", name, "address", addr, "for", (now - d.missing).Round(time.Second).String(), "error", err)
	}
}

// compareClocks compares the wall clock with the median of the peers' and its own.
func (m *membership) compareClocks() {
	if !m.n.complete.Load() {
		m.n.replica.look()
	}
	offsets := []time.Duration{0}
	for _, p := range m.n.Peers() {
		if p.Timed && !p.Client {
			offsets = append(offsets, p.Offset)
		}
	}
	v := judgeClock(offsets)
	if !v.known { // nobody is there to compare with: it is as wrong as it was
		return
	}
	before := time.Duration(m.offset.Swap(int64(v.offset)))
	if far := v.offset.Abs() > warnOffset; far != (before.Abs() > warnOffset) {
		switch {
		case !far:
			m.n.log.Info("the wall clock agrees with the other nodes'")
		case v.judged:
			m.n.log.Warn("the wall clock is off from the other nodes'", "offset", v.offset.String(), "writes_refused_beyond", stopOffset.String())
		default:
			m.n.log.Warn("the wall clocks of this node and of another are apart; of two nobody knows which one is right", "offset", v.offset.String())
		}
	}
	// One other clock convicts nobody. It can acquit: two that agree are more than one that does not.
	if v.judged || v.most {
		m.refuses.Store(v.offset.Abs() > stopOffset)
		m.n.mu.Lock()
		m.n.guard.Ahead(-v.offset)
		m.n.mu.Unlock()
	}
	if v.judged && v.most {
		m.n.mu.Lock()
		m.n.guard.Confirm()
		m.n.mu.Unlock()
	}
}

// clockVerdict is what the offsets of other wall clocks from this node's say of it.
type clockVerdict struct {
	known  bool          // there is another
	judged bool          // there are three with this one: the median of them is the time
	offset time.Duration // of the median from this node's, or of the only other one
	most   bool          // more than half of them, this one included, agree with this one
}

// judgeClock compares offsets, this node's own 0 among them. A median of 0 alone does not say that most agree: between a clock that is ahead and one that is behind every wrong
// one is in the middle.
func judgeClock(offsets []time.Duration) (v clockVerdict) {
	slices.Sort(offsets)
	near := 0
	for _, o := range offsets {
		if o.Abs() <= warnOffset {
			near++
		}
	}
	v.known, v.judged, v.most = len(offsets) > 1, len(offsets) > 2, 2*near > len(offsets)
	switch {
	case v.judged:
		v.offset = offsets[(len(offsets)-1)/2]
	case v.known:
		v.offset = offsets[0] + offsets[1] // one of them is 0
	}
	return v
}

// agreed reports whether the wall clock has agreed with that of another node since the start. Until then a machine that has started with a wrong clock would write
// what the others refuse because it was made hours ahead, and cutoffs too early to catch anything. A cluster of one, and a node that was told to start alone, have nobody to ask.
func (m *membership) agreed() bool {
	return m.alike.Load() || m.cfg.StartAlone || m.n.replica.single()
}

// apart reports whether the wall clock has jumped and not agreed with anybody's since: a node that is cut off learns from nobody that it is wrong.
func (m *membership) apart() bool {
	return m.jumped.Load() && !m.cfg.StartAlone && !m.n.replica.single()
}

// compare notes whether the wall clock agrees with that of a peer.
func (m *membership) compare(p replication.PeerStats) {
	if p.Timed && !p.Client && p.Offset.Abs() <= stopOffset {
		m.alike.Store(true)
		m.jumped.Store(false)
	}
}

// reportRefused says why records of peers were refused since it was last called: while they are, this view grows old.
func (m *membership) reportRefused() {
	s := m.n.Status().Replication
	if s.Refused != m.refused {
		m.n.log.Warn("records of other nodes are refused", "records", s.Refused-m.refused, "the_last", s.LastRefused)
	}
	m.refused = s.Refused
}

// ClockOffset is how far the median of the peers' wall clocks is ahead of this node's.
func (n *Node) ClockOffset() time.Duration {
	if n.members == nil {
		return 0
	}
	return time.Duration(n.members.offset.Load())
}
