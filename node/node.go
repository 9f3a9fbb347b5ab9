package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

// Sentinels: one for each decision a caller can take.
var (
	// ErrNotReady: the node has not read its journal yet; retry later or ask another node.
	ErrNotReady = errors.New("node is not ready")
	// ErrClock: the wall clock cannot be believed and the request needs it. State issued_before and expires_at, or wait.
	ErrClock = errors.New("the wall clock of the node cannot be believed")
	// ErrTooMany: more than [MaxBatch] requests in one call, or none.
	ErrTooMany = errors.New("1 to 1000 requests in one call")
	// ErrBusy: a bounded queue is full; nothing was written, retry.
	ErrBusy = errors.New("too many writes are waiting")
	// ErrAck: the write is durable on this node, but the level of acknowledgement that was asked for was not reached in time. Nothing is rolled
	// back: the receipt says who has confirmed, and the others will.
	ErrAck = errors.New("not enough nodes have confirmed the write in time")
	// ErrSlack: the journal was written with another Config.Slack, which is fixed with the directory: records lie in files by when they expire.
	ErrSlack = errors.New("the journal was written with another slack")
	// ErrSuperseded: a block or unblock was written, and each time an opposite one of another caller had a later stamp: it is not in force. Ask what is, then decide.
	ErrSuperseded = errors.New("opposite calls for the same match keep winning")
	// ErrIdempotencyConflict: the idempotency key belongs to another request.
	ErrIdempotencyConflict = errors.New("the idempotency key was used for another request")
)

// Durability says what a write survives.
type Durability uint8

// The levels. The zero Durability is disk.
const (
	DurabilityDisk   Durability = iota // fsynced before it is acknowledged
	DurabilityMemory                   // gone with the process; only by name
)

func (d Durability) String() string {
	if d == DurabilityMemory {
		return "memory"
	}
	return "disk"
}

// Config of a [Node]. Zero fields mean the defaults.
type Config struct {
	Name    string // of this node, in receipts; required
	Version string // of the program, in status

	Durability Durability
	Dir        string     // of the journal; required unless Durability is memory
	FS         journal.FS // nil: the operating system

	Key revocation.Key // the first fingerprint key of the cluster; required
	// RingFile is where the node keeps the keys when there have been others: 0600, replaced whole. Required for that, unless Durability is memory.
	RingFile string
	Policy   revocation.Policy
	Slack    time.Duration   // see revocation.TableConfig; fixed with Dir: a start with another one fails with ErrSlack
	Store    ttlstore.Config // limits of memory

	Clock  clock.Clock  // nil: the operating system
	Logger hclog.Logger // nil: none

	SweepEvery time.Duration // default 10 s: how often expired records are freed

	// Cluster makes the node a member of a cluster: others hold the same records, and it is ready when it is level with one of
	// them. Nil: a lone node.
	Cluster      *ClusterConfig
	MaxStaleness time.Duration // of checks that do not say; default 30 s
	AckTimeout   time.Duration // of writes that do not say; default 5 s
	ProbeEvery   time.Duration // how often a peer is asked what it holds; default a fifteenth of MaxStaleness, 50 ms to 2 s
	// NodeRecords is how many live records one node may have written that are held here, NodeRate how many it may write in a second, over ten: what others
	// send beyond is refused, and so is what callers of this node write beyond NodeRecords. Defaults: what writers may write, and 250 000.
	NodeRecords, NodeRate int
	// IssuerRecords is how many live records writers may have written here for one issuer: see [Writer]. 0: no such limit.
	IssuerRecords int
	AuditEvery    time.Duration // how often sums are compared with a peer; default 60 s, negative: never
}

const (
	defaultStaleness  = 30 * time.Second
	defaultAckTimeout = 5 * time.Second
	maxProbeEvery     = 2 * time.Second // sessions that say nothing for longer are given up: see silent
)

// Intervals of the node's own work.
const (
	defaultSweep = 10 * time.Second
	tickEvery    = 100 * time.Millisecond // of guarded time
	markEvery    = 30 * time.Second       // how old the time on disk may be
	expireEvery  = time.Minute            // of the journal
	mendEvery    = time.Second            // whether the disk, having refused writes, takes them again
)

func (c *Config) validate() error {
	switch {
	case c.Name == "" || len(c.Name) > 128:
		return fmt.Errorf("name: %w: 1 to 128 bytes", revocation.ErrInvalid)
	case c.Key == revocation.Key{}:
		return fmt.Errorf("key: %w: a fingerprint key is required", revocation.ErrInvalid)
	case c.Durability == DurabilityDisk && c.Dir == "":
		return fmt.Errorf("dir: %w: required, or durability memory by name", revocation.ErrInvalid)
	case c.Durability > DurabilityMemory:
		return fmt.Errorf("durability: %w: disk or memory", revocation.ErrInvalid)
	case c.SweepEvery < 0 || c.MaxStaleness < 0 || c.AckTimeout < 0 || c.ProbeEvery < 0 || c.NodeRecords < 0 || c.NodeRate < 0 || c.IssuerRecords < 0:
		return fmt.Errorf("sweep interval, staleness, ack timeout, probe interval, limits of a node: %w: not negative", revocation.ErrInvalid)
	}
	if c.MaxStaleness == 0 {
		c.MaxStaleness = defaultStaleness
	}
	if c.AckTimeout == 0 {
		c.AckTimeout = defaultAckTimeout
	}
	if c.ProbeEvery == 0 {
		c.ProbeEvery = min(max(c.MaxStaleness/15, 50*time.Millisecond), maxProbeEvery)
	}
	if c.SweepEvery == 0 {
		c.SweepEvery = defaultSweep
	}
	if c.Slack == 0 {
		c.Slack = revocation.DefaultSlack
	}
	c.Slack = (c.Slack + time.Second - 1).Truncate(time.Second) // as the table does
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	return nil
}

// Node is one replica. See the package comment.
type Node struct {
	cfg     Config
	log     hclog.Logger
	table   *revocation.Table
	commits commits
	journal *journal.Journal // nil with DurabilityMemory
	calls   *calls
	keys    keys
	started time.Duration // on the monotonic clock

	maxRecords int   // for writers
	maxBytes   int64 // likewise

	now        atomic.Int64 // guarded time, Unix milliseconds; written by the ticker
	replayed   atomic.Bool  // the journal has been read
	complete   atomic.Bool  // and, in a cluster, compared with a peer: what is not in the table is not revoked
	clockOK    atomic.Bool  // the wall clock may be used to judge others
	policyKept atomic.Bool  // the policy in force is on disk
	fenced     atomic.Bool  // the numbers of this run are used by somebody else: other origins are due
	inflight   atomic.Int64 // records that are on their way through the journal and not in the table yet
	counts     writeCounts
	quotas     *quotas
	census     census

	rehearsals rehearsals

	filters filters
	replica *replica
	members *membership // nil on a lone node
	fresh   atomic.Pointer[view.Freshness]
	elapsed *clock.Elapsed // by it the ages of views are measured, and all that replication times

	// These belong to the goroutine that commits; Run fills onDisk before there is one.
	own    [2]origin // by lane
	onDisk onDisk

	mu      sync.Mutex // guards what follows
	guard   *clock.Guard
	reading clock.Reading
	// replay is how far the journal has been read, reported when the log last told it.
	replay   journal.Progress
	reported time.Duration
}

// New checks the configuration, opens the journal and takes the lock of its directory. It starts nothing and
// reads no records yet: see [Node.Run]. Errors are those of the configuration, of
// [revocation.NewTable] and of [journal.Open].
func New(cfg Config) (*Node, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	table, err := revocation.NewTable(revocation.TableConfig{Key: cfg.Key, Slack: cfg.Slack, Store: cfg.Store, Policy: cfg.Policy})
	if err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger.Named("node"), table: table, started: cfg.Clock.Mono(), elapsed: clock.NewElapsed(cfg.Clock)}
	limits := table.Stats(0)
	n.maxRecords, n.maxBytes = limits.Limit-cfg.Store.Reserve, limits.BytesLimit/10*9
	if n.cfg.NodeRecords == 0 {
		n.cfg.NodeRecords = n.maxRecords
	}
	n.calls = newCalls()
	n.quotas = newQuotas()
	n.keys = newKeys()
	n.rehearsals.recent = revocation.NewSample(sampledChecks)
	n.rehearsals.due.Store(sampledAtOnce)
	n.replica = newReplica(n)
	n.setGuard(time.Time{})
	if cfg.Durability == DurabilityMemory {
		n.commits = &memory{node: n}
		rand.Read(n.replica.incarnation[:])
	} else {
		if err := n.openJournal(); err != nil {
			return nil, errors.Join(err, table.Close())
		}
		n.replica.incarnation = replication.Incarnation(n.journal.Incarnation())
	}
	if err := n.loadRing(); err != nil { // behind the lock of the directory
		return nil, errors.Join(err, n.Close())
	}
	if cfg.Cluster != nil {
		if n.members, err = newMembership(n); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// setGuard starts guarded time; highWater is the last time that an earlier run has left on disk.
func (n *Node) setGuard(highWater time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.guard = clock.NewGuard(n.cfg.Clock, clock.GuardConfig{HighWater: highWater})
	n.reading = n.guard.Read()
	n.now.Store(n.reading.Guarded.UnixMilli())
}

// tick reads the clocks.
func (n *Node) tick() clock.Reading {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := n.reading
	n.reading = n.guard.Read()
	n.now.Store(n.reading.Guarded.UnixMilli())
	if n.members != nil && !n.reading.Trusted {
		n.members.jumped.Store(true)
	}
	n.clockOK.Store(believable(n.reading) && (n.members == nil || !n.members.refuses.Load()))
	if before.String() != n.reading.String() && (before.String() == "ok") != (n.reading.String() == "ok") {
		n.log.Warn("clock", "state", n.reading.String())
	}
	return n.reading
}

// clockWords says what is wrong with the wall clock, by a reading and by the other nodes, ok if nothing is.
func (n *Node) clockWords(r clock.Reading) string {
	apart := n.members != nil && n.members.apart()
	if s := r.String(); s != "ok" || r.Trusted && !apart {
		return s
	}
	return "has jumped, and looks right again, which nobody has confirmed"
}

// clockState says what is wrong with the wall clock, ok if nothing is.
func (n *Node) clockState() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reading.String()
}

// Run reads the journal, then keeps the node until ctx ends. It returns nil if ctx ended it, and an
// error if the journal could not be read: then the node never became ready. A
// disk that fails later does not end it: writes fail and checks go on.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return n.every(ctx, tickEvery, func() {
			n.tick()
			n.rehearsals.tick()
		})
	})
	g.Go(func() error {
		if err := n.start(ctx); err != nil {
			return err
		}
		n.replayed.Store(true)
		if err := n.runJournal(ctx, g); err != nil {
			return err
		}
		if n.members == nil {
			n.setVoters(replication.Voters{Number: 1, Hash: random() | 1, Names: []string{n.cfg.Name}}, true) // for client replicas
			n.completed()
		} else {
			n.replica.look()
			n.members.run(ctx, g)
		}
		g.Go(func() error { return n.replica.run(ctx) })
		g.Go(func() error { return n.replica.reissues(ctx) })
		g.Go(func() error { return n.keysLoop(ctx) })
		return n.every(ctx, n.cfg.SweepEvery, func() {
			n.table.Sweep(n.Now())
			n.count()
			n.calls.sweep(n.cfg.Clock.Mono())
			n.quotas.sweep(uint32(n.Now() / 1000))
			n.filters.sweep(n.cfg.Clock.Mono())
		})
	})
	err := g.Wait()
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// completed: from now on what is not in the table is not revoked, as far as this view goes.
func (n *Node) completed() {
	if n.complete.CompareAndSwap(false, true) {
		if n.members != nil && n.members.gossip != nil {
			n.members.gossip.UpdateMeta()
		}
		n.log.Info("ready", "records", n.table.Stats(n.Now()).Items, "durability", n.cfg.Durability.String())
	}
}

// Close releases the data directory and the memory. Run must have returned, or not been called, and nobody may use n any more.
func (n *Node) Close() error {
	err := n.table.Close()
	if n.journal != nil {
		err = errors.Join(n.journal.Close(), err)
	}
	return err
}

// every calls fn each interval until ctx ends.
func (n *Node) every(ctx context.Context, interval time.Duration, fn func()) error {
	t := time.NewTicker(interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			fn()
		}
	}
}

// Now returns guarded time in Unix milliseconds: the time by which records expire. It is at most a tenth of a second old.
func (n *Node) Now() int64 { return n.now.Load() }

// Slack is how long records are kept beyond their ExpiresAt.
func (n *Node) Slack() time.Duration { return n.cfg.Slack }

// Replayed says that the journal has been read: what may still keep the node from being ready is elsewhere.
func (n *Node) Replayed() bool { return n.replayed.Load() }

// Policy returns the policy in force; it is not to be changed.
func (n *Node) Policy() *revocation.Policy { return n.table.Policy() }

// Ready returns what the node waits for; nothing means that it is ready. A node that is not ready may still answer checks.
func (n *Node) Ready() []string {
	var waiting []string
	switch {
	case !n.replayed.Load():
		n.mu.Lock()
		waiting = append(waiting, "the journal is being read: "+n.replay.String())
		n.mu.Unlock()
	case !n.complete.Load():
		waiting = append(waiting, n.replica.waitingFor())
	}
	if err := n.diskError(); err != nil {
		waiting = append(waiting, "the disk refuses writes: "+err.Error())
	} else if n.journal != nil && n.replayed.Load() && !n.policyKept.Load() {
		waiting = append(waiting, "the policy in force is not on disk yet")
	}
	return waiting
}

// Freshness says for which voters the view that answers must be fresh. A lone node is the only voter.
type Freshness uint8

// The levels.
const (
	FreshnessDefault Freshness = iota
	FreshnessAny
	FreshnessQuorum
	FreshnessAll
)

// CheckOptions narrow a check.
type CheckOptions struct {
	Freshness    Freshness
	MaxStaleness time.Duration // 0: the default
}

// Check answers whether a token is revoked, by a view as fresh as the default asks for. c must hold verified claims. It does not block and allocates nothing.
func (n *Node) Check(c *revocation.Claims) revocation.Verdict { return n.CheckFresh(c, CheckOptions{}) }

// CheckFresh is Check with options.
func (n *Node) CheckFresh(c *revocation.Claims, o CheckOptions) revocation.Verdict {
	f := n.fresh.Load() // before the table is read: what the view is said to hold has been in it then
	v := n.judge(n.table.Check(c, n.now.Load()), f, o)
	n.sampled(c, v)
	return v
}

// Begin starts a check before the token's signature has been verified, and [Node.End] finishes it afterwards: most of its cost is waiting for
// memory. It finds what was in force when it began. p belongs to the caller's goroutine and may be used again.
func (n *Node) Begin(c *revocation.Claims, p *revocation.Pending) {
	p.Mark = n.fresh.Load()
	n.table.Begin(c, n.now.Load(), p)
}

// End finishes a check that Begin started.
func (n *Node) End(p *revocation.Pending) revocation.Verdict {
	f, _ := p.Mark.(*view.Freshness)
	return n.judge(p.End(), f, CheckOptions{})
}

// Explain answers like Check and tells every shape that was tried and what it found. It allocates.
func (n *Node) Explain(c *revocation.Claims) (revocation.Verdict, []revocation.Step) {
	f := n.fresh.Load()
	v, steps := n.table.Explain(c, n.now.Load())
	return n.judge(v, f, CheckOptions{}), steps
}

// judge withholds Active from a view that is not complete, or older than asked for. Revoked holds even then.
func (n *Node) judge(v revocation.Verdict, f *view.Freshness, o CheckOptions) revocation.Verdict {
	if !n.complete.Load() {
		if v.Status == revocation.Active {
			return revocation.Verdict{Cause: revocation.CauseNotReady}
		}
		return v
	}
	if f == nil { // a lone node: its view has no age
		return v
	}
	limit := o.MaxStaleness
	if limit == 0 {
		limit = n.cfg.MaxStaleness
	}
	return f.Judge(v, n.elapsed.Mono, o.Freshness == FreshnessAll, o.Freshness == FreshnessAny, limit)
}

// Status describes a node.
type Status struct {
	Name, Version string
	Epoch         uint64 // of this run: another one after each start
	Ready         bool
	WaitingFor    []string
	Durability    Durability
	Wall, Guarded time.Time
	Clock         string // ok, or what is wrong with it
	Table         revocation.TableStats
	Uptime        time.Duration
	KeyID         revocation.KeyID // of the first key, also when that has gone: the name of the ring
	Keys          []KeyStatus
	Writes        WriteStats
	Census        revocation.Census // when it was last taken: at most ten minutes ago
	Journal       *journal.Stats    // nil with DurabilityMemory
	JournalDir    string
	Replication   replication.Stats
	Nodes         []replication.NodeStats // of which something is held: those with most records, at most MaxNodeStats
	Voters        []string                // of the configuration in force
	VotersNumber  uint64                  // of the configuration
	Votes         bool                    // this node is one of them
	QuorumAge     time.Duration           // of the view; the largest Duration: there is none
	AllAge        time.Duration
}

// Status returns a description of the node and its counters.
func (n *Node) Status() Status {
	waiting := n.Ready()
	n.mu.Lock()
	r := n.reading
	n.mu.Unlock()
	s := Status{
		Name: n.cfg.Name, Version: n.cfg.Version, Epoch: n.replica.epoch, Ready: len(waiting) == 0, WaitingFor: waiting, Durability: n.cfg.Durability,
		Wall: n.cfg.Clock.Now(), Guarded: r.Guarded, Clock: n.clockWords(r),
		Table: n.table.Stats(n.Now()), Uptime: n.cfg.Clock.Mono() - n.started, KeyID: n.cfg.Key.ID(), Keys: n.Keys(), Writes: n.counts.stats(),
	}
	if c := n.census.last.Load(); c != nil {
		s.Census = *c
	}
	if n.journal != nil {
		j := n.journal.Stats()
		s.Journal, s.JournalDir = &j, n.cfg.Dir
	}
	n.replica.describe(&s)
	return s
}
