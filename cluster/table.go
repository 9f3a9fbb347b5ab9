package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/revokd/revokd/internal/clock"
)

// MaxMembers is how many nodes a cluster may have; further ones are not admitted.
const MaxMembers = 1024

const (
	maxGone = 256 // members that are dead or have left and are still listed
	// maxSuspicion is longer than memberlist suspects anybody: who has not been declared dead by then has been cleared unseen.
	maxSuspicion = 2 * time.Minute
)

// Status is what this node thinks of a member. It is an opinion; nothing is closed because of it.
type Status uint8

// The statuses of a member. The zero Status is invalid.
const (
	Alive Status = iota + 1
	Suspect
	Dead
	Left // on purpose
)

// String is the status in one word.
func (s Status) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return fmt.Sprintf("status(%d)", uint8(s))
}

// Member is a node of the cluster as this node knows it.
type Member struct {
	Name   string
	Addr   netip.AddrPort // of its gossip
	Meta   Meta           // the last that was heard
	Status Status
	Since  time.Time // when Status became what it is, by the wall clock of this node
}

// entry is a member and what passed about it. Its status is Alive, Dead or Left; suspicion lies beside it.
type entry struct {
	Member
	alive     uint32 // highest incarnation in which it was announced
	left      uint32 // incarnation in which it said good-bye
	saidLeft  bool
	suspect   uint32 // incarnation that is suspected
	suspected bool
	suspectAt time.Duration
	suspectOn time.Time
}

// table holds the members. memberlist calls its delegate methods under a lock of its own, so they only take mu and never wait;
// nobody calls memberlist while holding mu.
type table struct {
	self     string
	loopback bool // gossip is in the clear: nobody beyond loopback is admitted
	clock    clock.Clock
	own      atomic.Pointer[Meta]
	ownBytes atomic.Pointer[[]byte]
	changed  chan struct{} // holds one notice
	arrived  chan struct{} // the same, for who remembers where members are

	conflicts, refused atomic.Uint64

	mu      sync.Mutex
	members map[string]*entry
	moved   time.Duration // when a member last came or went, by the monotonic clock
}

var (
	_ memberlist.Delegate         = (*table)(nil)
	_ memberlist.EventDelegate    = (*table)(nil)
	_ memberlist.AliveDelegate    = (*table)(nil)
	_ memberlist.ConflictDelegate = (*table)(nil)
	_ sightings                   = (*table)(nil)
)

func newTable(self string, loopback bool, c clock.Clock) *table {
	return &table{self: self, loopback: loopback, clock: c, changed: make(chan struct{}, 1), arrived: make(chan struct{}, 1), members: map[string]*entry{}}
}

// setOwn makes meta what this node says about itself from its next announcement on.
func (t *table) setOwn(meta Meta) (changed bool, err error) {
	b, err := meta.encode()
	if err != nil {
		return false, err
	}
	if old := t.ownBytes.Load(); old != nil && string(*old) == string(b) {
		return false, nil
	}
	t.own.Store(&meta)
	t.ownBytes.Store(&b)
	return true, nil
}

func (t *table) notice() {
	for _, notice := range []chan struct{}{t.changed, t.arrived} {
		select {
		case notice <- struct{}{}:
		default:
		}
	}
}

// NodeMeta is what memberlist announces.
func (t *table) NodeMeta(int) []byte { return *t.ownBytes.Load() }

// Nothing of ours rides on memberlist's messages or states.

func (t *table) NotifyMsg([]byte)                {}
func (t *table) GetBroadcasts(int, int) [][]byte { return nil }
func (t *table) LocalState(bool) []byte          { return nil }
func (t *table) MergeRemoteState([]byte, bool)   {}

// Why a node is not admitted. memberlist logs it.
var (
	errName    = errors.New("its name is empty, too long or not printable")
	errAddress = errors.New("its address cannot be reached")
	errClear   = errors.New("it lies beyond loopback, and gossip is in the clear")
	errCluster = errors.New("it belongs to another cluster: its fingerprint key is another one")
	errFull    = fmt.Errorf("there are %d members already", MaxMembers)
)

// NotifyAlive admits a node, or does not, whoever announced it. Here and not in memberlist's merge delegate, which
// sees only joins, and sees them after our state has been handed out.
func (t *table) NotifyAlive(n *memberlist.Node) error {
	err := t.admit(n)
	if err != nil {
		t.refused.Add(1)
	}
	return err
}

func (t *table) admit(n *memberlist.Node) error {
	if !validName(n.Name) {
		return errName
	}
	addr, ok := addrPort(n.Addr, n.Port)
	if !ok {
		return errAddress
	}
	if t.loopback && !addr.Addr().IsLoopback() {
		return errClear
	}
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		return err
	}
	own := t.own.Load().Cluster
	if meta.Cluster != own && meta.Cluster != ([16]byte{}) && own != ([16]byte{}) {
		return errCluster
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.members[n.Name] == nil && len(t.members) >= MaxMembers+maxGone {
		return errFull
	}
	return nil
}

const maxName = 128

func validName(name string) bool {
	return name != "" && len(name) <= maxName && printable(name) && !strings.Contains(name, "/")
}

// NotifyConflict: two nodes use one name. The one that was there first keeps it until it is dead.
func (t *table) NotifyConflict(_, _ *memberlist.Node) { t.conflicts.Add(1) }

// NotifyJoin is called for new members and for those that come back.
func (t *table) NotifyJoin(n *memberlist.Node) { t.update(n) }

// NotifyUpdate is called for new metadata.
func (t *table) NotifyUpdate(n *memberlist.Node) { t.update(n) }

func (t *table) update(n *memberlist.Node) {
	addr, ok := addrPort(n.Addr, n.Port)
	meta, err := decodeMeta(n.Meta)
	if !ok || err != nil {
		return // was not admitted
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[n.Name]
	if e == nil {
		e = &entry{Member: Member{Name: n.Name}}
		t.members[n.Name] = e
	}
	if e.Status != Alive {
		e.Status, e.Since, e.saidLeft, e.suspected = Alive, t.clock.Now(), false, false
		t.moved = t.clock.Mono()
	}
	e.Addr, e.Meta = addr, meta
	t.notice()
}

// NotifyLeave is called when a member is dead or has left.
func (t *table) NotifyLeave(n *memberlist.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[n.Name]
	if e == nil {
		return
	}
	e.Status, e.Since, e.suspected = Dead, t.clock.Now(), false
	t.moved = t.clock.Mono()
	if e.saidLeft && e.left >= e.alive {
		e.Status = Left
	}
	t.trim()
	t.notice()
}

// forget makes a member that is dead one that has left.
func (t *table) forget(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	switch {
	case e == nil || e.Status == Left:
		return nil
	case e.Status == Alive:
		return ErrPresent
	}
	e.Status, e.Since = Left, t.clock.Now()
	t.notice()
	return nil
}

// unsettled says whether a member came or went less than d ago.
func (t *table) unsettled(d time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.clock.Mono()-t.moved < d
}

// trim drops those longest gone. Called with mu held.
func (t *table) trim() {
	var gone []*entry
	for _, e := range t.members {
		if e.Status != Alive {
			gone = append(gone, e)
		}
	}
	if len(gone) <= maxGone {
		return
	}
	oldest := slices.MinFunc(gone, func(a, b *entry) int { return a.Since.Compare(b.Since) })
	delete(t.members, oldest.Name)
}

func (t *table) sawAlive(name string, incarnation uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil {
		return
	}
	if e.Status != Alive { // a new life may begin at a lower number
		e.alive = incarnation
	}
	e.alive = max(e.alive, incarnation)
	if e.suspected && incarnation > e.suspect {
		e.suspected = false
		t.notice()
	}
}

func (t *table) sawSuspect(name string, incarnation uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.members[name]
	if e == nil || name == t.self || e.Status != Alive || incarnation < e.alive {
		return
	}
	if !e.isSuspect(t.clock.Mono()) {
		e.suspected, e.suspectAt, e.suspectOn = true, t.clock.Mono(), t.clock.Now()
		t.notice()
	}
	e.suspect = incarnation
}

func (e *entry) isSuspect(mono time.Duration) bool {
	return e.suspected && mono-e.suspectAt < maxSuspicion
}

func (t *table) sawLeft(name string, incarnation uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.members[name]; e != nil {
		e.saidLeft, e.left = true, incarnation
	}
}

// list returns the members by name.
func (t *table) list() []Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	mono := t.clock.Mono()
	list := make([]Member, 0, len(t.members))
	for _, e := range t.members {
		m := e.Member
		if e.Status == Alive && e.isSuspect(mono) {
			m.Status, m.Since = Suspect, e.suspectOn
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// local is this node, as it would be announced now.
func (t *table) local() Member {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := Member{Name: t.self, Status: Alive}
	if e := t.members[t.self]; e != nil {
		m = e.Member
	}
	if own := t.own.Load(); own != nil {
		m.Meta = *own
	}
	return m
}
