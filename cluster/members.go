package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/faults"
)

// Config configures [Members]. Zero fields mean the defaults.
type Config struct {
	_ struct{}

	// Name of this node, unique in the cluster: up to 128 printable ASCII characters, no slash. Required.
	Name string
	// Bind is the address of gossip, ip:port, UDP and TCP. Port 0 means any that is free. Required.
	Bind string
	// Advertise is the address, ip:port, at which others reach Bind, if it is another.
	Advertise string
	// Seeds are asked to join until they are members: host:port, dns+name:port (all addresses of a name), dnssrv+name (an SRV record). Names
	// are resolved in each round.
	Seeds []string
	// Meta returns what this node says about itself; called at the start and after each [Members.UpdateMeta]. Required.
	Meta func() Meta
	// Keys seal gossip, the first one what is sent. Required beyond loopback.
	Keys [][]byte
	// KeyFile keeps the keys that were installed at run time, mode 0600. If it exists it wins over Keys.
	KeyFile string
	// Label separates clusters on one network; at most 255 bytes. It protects nothing without a key.
	Label string
	// PeersFile keeps names and addresses of members for the next start. Empty: they are not kept.
	PeersFile string
	// Resolver resolves Seeds; [net.DefaultResolver].
	Resolver Resolver
	// Transport is what carries gossip; nil is UDP and TCP at Bind. Run shuts it down.
	Transport memberlist.Transport
	// RejoinEvery is the mean time between two rounds of joining; 2 s.
	RejoinEvery time.Duration
	// OnChange, if set, is called with all members when one of them has changed, from one goroutine, never twice at
	// once; several changes may be one call. While it runs nothing but further calls waits.
	OnChange func([]Member)
	Clock    clock.Clock
	Logger   hclog.Logger

	maxStreams int                    // for tests
	mutant     func(name string) bool // bugs that tests switch on
}

// ErrConfig is matched by the errors of [New] about its configuration.
var ErrConfig = errors.New("cluster: invalid configuration")

func (c *Config) validate() (bind, advertise netip.AddrPort, err error) {
	refuse := func(format string, args ...any) (netip.AddrPort, netip.AddrPort, error) {
		return netip.AddrPort{}, netip.AddrPort{}, fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)
	}
	if !validName(c.Name) {
		return refuse("Name %q: want 1 to %d printable ASCII characters without a slash", c.Name, maxName)
	}
	if bind, err = netip.ParseAddrPort(c.Bind); err != nil {
		return refuse("Bind %q: want ip:port", c.Bind)
	}
	if c.Advertise != "" {
		advertise, err = netip.ParseAddrPort(c.Advertise)
		if err != nil || advertise.Addr().IsUnspecified() || advertise.Port() == 0 {
			return refuse("Advertise %q: want ip:port at which others reach this node", c.Advertise)
		}
	}
	if c.Meta == nil {
		return refuse("Meta is nil")
	}
	if len(c.Label) > memberlist.LabelMaxSize {
		return refuse("Label has %d bytes, at most %d", len(c.Label), memberlist.LabelMaxSize)
	}
	if c.RejoinEvery < 0 {
		return refuse("RejoinEvery is negative")
	}
	if c.RejoinEvery == 0 {
		c.RejoinEvery = 2 * time.Second
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.maxStreams == 0 {
		c.maxStreams = maxStreams
	}
	if c.mutant == nil {
		c.mutant = faults.Mutant
	}
	return bind, advertise, nil
}

// What [Members] refuses beyond its configuration.
var (
	ErrRan        = errors.New("cluster: Run was called before")
	ErrNotRunning = errors.New("cluster: not running")
	ErrPresent    = errors.New("cluster: the member is alive")
)

// Members is this node's part in the cluster. See the package comment.
type Members struct {
	cfg             Config
	bind, advertise netip.AddrPort
	log             hclog.Logger
	lines           *lineLog
	ring            *ring
	table           *table
	refused         refusals
	joins           joinCounts

	ran     atomic.Bool
	started chan struct{}
	ended   chan struct{}
	leave   chan struct{} // closed by Leave
	leaving sync.Once
	poke    chan struct{} // a round of joining is wanted now
	publish chan struct{} // our metadata may have changed
	going   atomic.Bool   // it is about to leave, whatever Config.Meta says

	list *memberlist.Memberlist // set before started is closed
	wire *wire                  // the same

	remembered []peer // the one that was alive last first; the rejoin loop's

	describing sync.Mutex // held over the question what we say, so that the last answer is the one that stays

	mu    sync.Mutex
	seeds []string
}

// New checks the configuration and reads the files of keys and peers. It starts nothing.
func New(cfg Config) (*Members, error) {
	bind, advertise, err := cfg.validate()
	if err != nil {
		return nil, err
	}
	keys, err := openRing(cfg.KeyFile, cfg.Keys)
	if err != nil {
		return nil, err
	}
	loopback := len(keys.all()) == 0
	if loopback && (!bind.Addr().IsLoopback() || cfg.Advertise != "" && !advertise.Addr().IsLoopback()) {
		return nil, fmt.Errorf("%w: gossip at %s would be in the clear; give every node the same 32 random bytes as its gossip key, or bind to 127.0.0.1", ErrNoKey, cfg.Bind)
	}
	m := &Members{
		cfg: cfg, bind: bind, advertise: advertise, log: cfg.Logger.Named("cluster"), ring: keys,
		table:   newTable(cfg.Name, loopback, cfg.Clock),
		started: make(chan struct{}), ended: make(chan struct{}), leave: make(chan struct{}),
		poke: make(chan struct{}, 1), publish: make(chan struct{}, 1),
	}
	m.lines = newLineLog(m.log, cfg.Clock.Mono)
	if err := m.addSeeds(cfg.Seeds); err != nil {
		return nil, err
	}
	if m.remembered, err = readPeers(cfg.PeersFile); err != nil {
		return nil, err
	}
	return m, nil
}

// Limits of what memberlist does when this node ends.
const (
	leavingTime   = 250 * time.Millisecond // a round of gossip, for some to hear that it is about to go
	leaveTimeout  = 3 * time.Second        // for the good-bye to be passed on
	streamTimeout = 3 * time.Second        // for a dial, and for each direction of a stream
	metaTimeout   = 2 * time.Second
)

// Run gossips until ctx is done or [Members.Leave] is called, says that it is [Leaving] and then good-bye, and returns when what it started has ended, some
// seconds later at most. It returns nil then, and an error if it could not begin.
func (m *Members) Run(ctx context.Context) error {
	if !m.ran.CompareAndSwap(false, true) {
		return ErrRan
	}
	defer close(m.ended)
	if err := m.start(); err != nil {
		return err
	}
	close(m.started)

	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	var g errgroup.Group
	g.Go(func() error { m.rejoin(inner); return nil })
	published := make(chan struct{})
	g.Go(func() error { defer close(published); m.publisher(inner); return nil })
	g.Go(func() error { m.notifier(inner); return nil })

	select {
	case <-ctx.Done():
	case <-m.leave:
	}
	cancel()
	<-published // which perhaps is just telling the others that this node is about to go; memberlist can announce only one thing at a time
	m.going.Store(true)
	if changed, err := m.describe(); err != nil {
		m.log.Error("metadata not announced", "error", err)
	} else if changed {
		_ = m.list.UpdateNode(leavingTime) // what is not passed on until then gives way to the good-bye
	}
	if err := m.list.Leave(leaveTimeout); err != nil {
		m.log.Warn("nobody took the good-bye; the others will find out", "error", err)
	}
	err := m.list.Shutdown()
	return errors.Join(err, g.Wait())
}

// start binds and makes this node the first member.
func (m *Members) start() error {
	below := m.cfg.Transport
	if _, err := m.describe(); err != nil {
		if below != nil {
			err = errors.Join(err, below.Shutdown())
		}
		return err
	}
	// hclog makes the line out of memberlist's, lineLog decides what becomes of it. Only so is its format known.
	lines := hclog.New(&hclog.LoggerOptions{Output: m.lines, Level: hclog.Trace, DisableTime: true}).
		StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true})
	for attempt := 1; below == nil; attempt++ {
		t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
			BindAddrs: []string{m.bind.Addr().String()}, BindPort: int(m.bind.Port()), Logger: lines,
		})
		switch {
		case err == nil:
			below = t
		case m.bind.Port() != 0 || attempt == 10: // a port that is free for TCP may be taken for UDP
			return fmt.Errorf("cluster: %w", err)
		}
	}
	m.wire = newWire(below, &m.cfg, m.ring, m.table, &m.refused)

	c := memberlist.DefaultLANConfig()
	c.Name = m.cfg.Name
	c.Transport = m.wire
	if m.cfg.Advertise != "" {
		c.AdvertiseAddr, c.AdvertisePort = m.advertise.Addr().String(), int(m.advertise.Port())
	}
	c.Logger = lines
	c.Delegate, c.Events, c.Alive, c.Conflict = m.table, m.table, m.table, m.table
	c.EnableCompression = false
	c.UDPBufferSize = 1400 - m.wire.overhead() // an MTU; more would also let too many messages onto a ping (memberlist PR 239)
	c.TCPTimeout = streamTimeout
	c.PushPullInterval = 15 * time.Second
	c.DeadNodeReclaimTime = time.Nanosecond // a dead node's name may come back at another address at once; zero would mean never
	list, err := memberlist.Create(c)
	if err != nil {
		return errors.Join(fmt.Errorf("cluster: %w", err), m.wire.Shutdown())
	}
	m.list = list
	return nil
}

// describe asks what this node says about itself.
func (m *Members) describe() (changed bool, err error) {
	m.describing.Lock()
	defer m.describing.Unlock()
	meta := m.cfg.Meta()
	if m.going.Load() {
		meta.State = Leaving
	}
	return m.table.setOwn(meta)
}

// publisher announces our metadata when it has changed. It waits for each announcement to be passed on before the next, so a
// state that flutters does not fill the queue.
func (m *Members) publisher(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.publish:
		}
		changed, err := m.describe()
		if err != nil {
			m.log.Error("metadata not announced", "error", err)
		}
		if changed {
			limit := metaTimeout
			if m.going.Load() {
				limit = leavingTime
			}
			_ = m.list.UpdateNode(limit) // the only error is that nobody has passed it on yet
		}
	}
}

func (m *Members) notifier(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.table.changed:
			if m.cfg.OnChange != nil {
				m.cfg.OnChange(m.table.list())
			}
		}
	}
}

// Started is closed when this node can be reached.
func (m *Members) Started() <-chan struct{} { return m.started }

// Members returns the members by name, this node among them, with those dead or gone that are still remembered.
func (m *Members) Members() []Member { return m.table.list() }

// Local is this node. It has an address once it has started.
func (m *Members) Local() Member { return m.table.local() }

// UpdateMeta makes this node ask for its metadata and announce it. It does not wait.
func (m *Members) UpdateMeta() {
	select {
	case m.publish <- struct{}{}:
	default:
	}
}

// AnnounceLeaving makes this node say that it is [Leaving], from now on. It stays a member until Run ends, which says so too. It does not wait.
func (m *Members) AnnounceLeaving() {
	m.going.Store(true)
	m.UpdateMeta()
}

// Join adds seeds and starts a round of joining. It does not wait for it; see [Members.Members] for who has been found.
func (m *Members) Join(seeds []string) error {
	if err := m.addSeeds(seeds); err != nil {
		return err
	}
	select {
	case m.poke <- struct{}{}:
	default:
	}
	return nil
}

// Leave makes Run say good-bye and end, and waits for that as long as ctx allows.
func (m *Members) Leave(ctx context.Context) error {
	if !m.ran.Load() {
		return ErrNotRunning
	}
	m.leaving.Do(func() { close(m.leave) })
	select {
	case <-m.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Forget makes a member that is dead count as [Left]: it is gone for good, and nobody asks it to join any more. If it comes back all the same it is a member again, like
// everybody who returns. One that is not listed is no error; one that is alive or suspected is [ErrPresent]. It concerns this node only.
func (m *Members) Forget(name string) error { return m.table.forget(name) }

// InstallKey adds a key to the ring of this node, which from then on opens what is sealed with it. It returns the key's id.
func (m *Members) InstallKey(key []byte) (string, error) { return m.ring.install(key) }

// UseKey makes this node seal with a key of its ring. Every other node must have it by then.
func (m *Members) UseKey(id string) error { return m.ring.use(id) }

// RemoveKey takes a key out of the ring of this node. No other node may use it any more.
func (m *Members) RemoveKey(id string) error { return m.ring.remove(id) }

// ListKeys returns the ids of the keys of this node, the one it uses first.
func (m *Members) ListKeys() []Key { return m.ring.list() }

// Stats counts what this node has seen of the cluster since it started.
type Stats struct {
	Alive, Suspect, Dead, Left int // members, this node included
	Health                     int // 0 is well; higher: this node does not keep up, and is slower to suspect others

	Rounds      uint64 // of joining
	Joins       uint64 // exchanges of states that began here to join
	JoinsFailed uint64
	Unresolved  uint64 // seeds whose name could not be resolved, counted in each round

	PacketsIn, PacketsOut uint64
	BytesIn, BytesOut     uint64

	RefusedKey         uint64 // packets and streams with no key of the ring, or another label
	RefusedKind        uint64 // messages that are malformed or no business of membership
	RefusedIncarnation uint64 // messages that would have used up somebody's incarnations
	RefusedStreams     uint64 // streams beyond what is served at once
	RefusedMembers     uint64 // announcements of nodes that are not admitted
	Conflicts          uint64 // announcements of a name at a second address

	Sealed       uint64 // messages sealed with the key in use; 2^32 is the most for all nodes together
	LinesLeftOut uint64 // of memberlist's log
}

// Stats returns the counts.
func (m *Members) Stats() Stats {
	s := Stats{
		Rounds: m.joins.rounds.Load(), Joins: m.joins.tried.Load(), JoinsFailed: m.joins.failed.Load(), Unresolved: m.joins.unresolved.Load(),
		RefusedKey: m.refused.key.Load(), RefusedKind: m.refused.kind.Load(), RefusedIncarnation: m.refused.incarnation.Load(),
		RefusedStreams: m.refused.streams.Load(), RefusedMembers: m.table.refused.Load(), Conflicts: m.table.conflicts.Load(),
		LinesLeftOut: m.lines.leftOut(),
	}
	for _, member := range m.table.list() {
		switch member.Status {
		case Alive:
			s.Alive++
		case Suspect:
			s.Suspect++
		case Dead:
			s.Dead++
		case Left:
			s.Left++
		}
	}
	if keys := m.ring.all(); len(keys) > 0 {
		s.Sealed = keys[0].sealed.Load()
	}
	select {
	case <-m.started:
		s.Health = m.list.GetHealthScore()
		s.PacketsIn, s.PacketsOut = m.wire.packetsIn.Load(), m.wire.packetsOut.Load()
		s.BytesIn, s.BytesOut = m.wire.bytesIn.Load(), m.wire.bytesOut.Load()
	default:
	}
	return s
}

// known returns the members that are well, this node among them, those that are not, and those that left.
func (m *Members) known() (live, suspect, left []peer) {
	for _, member := range m.table.list() {
		p := peer{member.Name, member.Addr}
		switch member.Status {
		case Alive:
			live = append(live, p)
		case Suspect:
			suspect = append(suspect, p)
		case Left:
			left = append(left, p)
		}
	}
	return live, suspect, left
}
