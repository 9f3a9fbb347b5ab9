package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/internal/transport"
	"github.com/revokd/revokd/internal/view"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

// Sentinels: one for each decision a caller can take.
var (
	// ErrConfig: the configuration cannot be used.
	ErrConfig = errors.New("client: invalid configuration")
	// ErrRevoked: the token is revoked: answer 401.
	ErrRevoked = errors.New("client: the token is revoked")
	// ErrUnknown: nobody can say whether the token is revoked: answer 503, not 401.
	ErrUnknown = errors.New("client: whether the token is revoked is unknown")
	// ErrUnavailable: no node answered.
	ErrUnavailable = errors.New("client: no node answered")
	// ErrNotConfirmed: a write is durable on the node that took it, but fewer voters than asked for confirmed it in time; the receipt says who.
	ErrNotConfirmed = errors.New("client: fewer nodes than asked for have confirmed the write in time")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client: closed")
	// ErrKeyChanged: the cluster has another fingerprint key than the one this replica was made with: open another one.
	ErrKeyChanged = errors.New("client: the cluster has another fingerprint key")
	// errKeys: a filter has records under a key that this replica has not been told yet.
	errKeys = errors.New("client: a filter has records under a fingerprint key that is not known here yet")
)

// Freshness says of which voters the view must be fresh.
type Freshness uint8

// The levels. The zero Freshness is Quorum.
const (
	Quorum Freshness = iota // a majority
	All
	Any // whatever the age
)

// Mode says what of the records a replica holds.
type Mode uint8

// The modes. The zero Mode is Full.
const (
	// Full holds every record: no check ever leaves the process. See the package comment for the memory of both.
	Full Mode = iota
	// Filter holds a Bloom filter of about 2 bytes a record, and those that have come since it was made. For what the filter cannot exclude, about one
	// check in a thousand of tokens that are not revoked, and every one of tokens that have been for a while, a node is asked.
	Filter
)

// Config of a [Client]. Zero fields mean the defaults.
type Config struct {
	// Addrs of the API of nodes: host:port, or dns+name:port for all addresses of a name, resolved anew each time. Required.
	Addrs []string
	// TLS is required beyond loopback: see LoadTLS. Nil: none.
	TLS *tls.Config
	// TokenFile holds a bearer token that says who this is, instead of a certificate. It is read again within seconds when it is replaced. It is not sent
	// without TLS but to a loopback address. Empty: none.
	TokenFile string
	// Dial connects to a node, as [net.Dialer.DialContext] does; for proxies and tests. Nil: a dialer that gives up after 3 s.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Name of this replica in the lists of nodes; default the host's name and a random part.
	Name string

	Mode Mode
	// AskTimeout bounds how long a check waits for nodes in Filter mode; default 500 ms.
	AskTimeout time.Duration

	Freshness    Freshness
	MaxStaleness time.Duration // default 30 s
	OnUnknown    Policy        // default Deny
	ProbeEvery   time.Duration // how often the node is asked what it holds; default 1 s, at most 2 s and MaxStaleness/3

	// Store limits the replica's memory.
	Store ttlstore.Config
	// Backoff bounds the pause before another node is tried; default 100 ms to 5 s, with jitter.
	MinBackoff, MaxBackoff time.Duration

	Logger hclog.Logger // nil: none

	// Of tests.
	clock      clock.Clock
	freshEvery time.Duration
	freshAbove int
}

// maxProbeEvery keeps a session from seeming dead to either side; see silent.
const maxProbeEvery = 2 * time.Second

func (c *Config) validate() error {
	if len(c.Addrs) == 0 || len(c.Addrs) > 64 {
		return fmt.Errorf("%w: Addrs: 1 to 64 addresses", ErrConfig)
	}
	for _, a := range c.Addrs {
		if _, _, err := net.SplitHostPort(strings.TrimPrefix(a, "dns+")); err != nil {
			return fmt.Errorf("%w: Addrs: want host:port or dns+name:port", ErrConfig)
		}
	}
	if c.ProbeEvery > maxProbeEvery {
		return fmt.Errorf("%w: ProbeEvery: at most %s: nodes end sessions that are silent", ErrConfig, maxProbeEvery)
	}
	if c.MaxStaleness < 0 || c.ProbeEvery < 0 || c.MinBackoff < 0 || c.MaxBackoff < 0 || c.AskTimeout < 0 || c.Freshness > Any || c.Mode > Filter {
		return fmt.Errorf("%w: a limit is out of range", ErrConfig)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.MaxStaleness, 30*time.Second)
	def(&c.AskTimeout, 500*time.Millisecond)
	def(&c.freshEvery, freshEvery)
	if c.freshAbove == 0 {
		c.freshAbove = freshAbove
	}
	def(&c.ProbeEvery, time.Second)
	c.ProbeEvery = min(c.ProbeEvery, max(c.MaxStaleness/3, time.Millisecond))
	def(&c.MinBackoff, 100*time.Millisecond)
	def(&c.MaxBackoff, 5*time.Second)
	c.MaxBackoff = max(c.MaxBackoff, c.MinBackoff)
	if c.Name == "" {
		var b [4]byte
		rand.Read(b[:])
		host, _ := os.Hostname()
		c.Name = fmt.Sprintf("%.48s-%s", host, hex.EncodeToString(b[:]))
	}
	if len(c.Name) > 64 {
		return fmt.Errorf("%w: Name: 1 to 64 bytes", ErrConfig)
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.clock == nil {
		c.clock = clock.System()
	}
	if c.TokenFile != "" {
		if _, err := bearer.ReadFile(c.TokenFile); err != nil {
			return fmt.Errorf("%w: TokenFile: %w", ErrConfig, err)
		}
	}
	return nil
}

// Client is a replica. See the package comment.
type Client struct {
	cfg  Config
	log  hclog.Logger
	http *http.Client         // calls nodes over
	conn *transport.Transport // which ends with the client

	tableConfig revocation.TableConfig
	held        atomic.Pointer[held] // replaced under mu
	store       *store               // used by core; what it points to is replaced under mu

	elapsed *clock.Elapsed // by it the ages of views are measured, and all that replication times

	ring  revocation.KeyID // the name of the cluster's ring of fingerprint keys
	fresh atomic.Pointer[view.Freshness]
	now   atomic.Int64 // guarded time, Unix milliseconds
	ready atomic.Bool  // level with a node once

	// In Filter mode.
	asking   chan struct{} // a place for each call to a node
	askAfter atomic.Int64  // on the monotonic clock: until then no node is asked
	doubts   atomic.Uint64 // checks that the filter could not answer
	asks     atomic.Uint64 // calls
	filters  atomic.Uint64 // that took the place of another one

	watch watch

	stop  context.CancelFunc
	ended sync.WaitGroup

	mu          sync.Mutex // guards what follows, and tableConfig.Ring
	core        *replication.Replica
	offered     revocation.Ring // the largest that a node has told
	stream      *stream         // nil: not connected
	lastPeer    replication.PeerID
	node        string // address of the node in use, or of the one that is asked first
	connected   time.Time
	sessions    uint64
	bytesIn     uint64
	lastError   error
	guarded     int64         // of the node, and when it said so
	guardedAt   time.Duration // by the clock
	guardedSeen time.Duration // by elapsed
	reached     *sync.Cond    // what is held, or the state of the session, has changed
	closed      bool
}

// Open connects to a node, takes the key and the policy from it and begins to copy. It returns when ctx ends or the
// replica exists; see [Client.Ready] for when it can answer Active. Errors match [ErrConfig] or [ErrUnavailable].
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := newClient(cfg)
	if err := c.introduce(ctx); err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop = stop
	c.ended.Go(func() { c.follow(run) })
	c.ended.Go(func() { c.tick(run) })
	c.ended.Go(func() { c.look(run) })
	if cfg.Mode == Filter {
		c.ended.Go(func() { c.refresh(run) })
	}
	return c, nil
}

// newClient returns a client that holds nothing and has not started.
func newClient(cfg Config) *Client {
	conn := transport.New(cfg.TLS, cfg.Dial)
	c := &Client{
		cfg: cfg, elapsed: clock.NewElapsed(cfg.clock), log: cfg.Logger.Named("revokd"), http: &http.Client{Transport: conn}, conn: conn, asking: make(chan struct{}, maxAsking),
	}
	if cfg.TokenFile != "" {
		c.http.Transport = &bearer.Transport{Base: conn, File: cfg.TokenFile, Mono: cfg.clock.Mono}
	}
	c.reached = sync.NewCond(&c.mu)
	c.watch.init()
	c.fresh.Store(&view.Freshness{})
	return c
}

// Close ends the replica and returns when everything that Open has started has ended. Checks must not be under way or begin.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.reached.Broadcast()
	c.mu.Unlock()
	c.stop()
	c.ended.Wait()
	return errors.Join(c.conn.Close(), c.held.Load().table.Close())
}

// introduce takes the key and the policy from a node and makes what is held.
func (c *Client) introduce(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		identity, err := c.identify(ctx)
		if err != nil {
			return err
		}
		if err = c.begin(ctx, identity); !errors.Is(err, errKeys) { // else the keys have changed between the two, or one node is ahead of another
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-time.After(c.backoff(attempt)):
		}
	}
}

// identify asks nodes in turn for what a replica needs, until one answers or ctx ends.
func (c *Client) identify(ctx context.Context) (*revokdv1.IdentityResponse, error) {
	var errs error // of the last attempt that was not cut short
	for attempt := 0; ; attempt++ {
		var failed error
		for _, addr := range c.addresses(ctx) {
			callCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			res, err := c.clusterService(addr).Identity(callCtx, connect.NewRequest(&revokdv1.IdentityRequest{}))
			cancel()
			if err == nil {
				c.mu.Lock()
				c.node = addr // what follows goes over the same connection
				c.mu.Unlock()
				return res.Msg, nil
			}
			if !connect.IsWireError(err) && !pki.IsRefusal(err) {
				err = cmp.Or(c.conn.Refused(ctx, addr, err), err)
			}
			failed = errors.Join(failed, fmt.Errorf("%s: %w", addr, err))
		}
		if errs == nil || ctx.Err() == nil {
			errs = failed
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(ctx.Err(), errs))
		case <-time.After(c.backoff(attempt)):
		}
	}
}

// begin makes what is held and the state machine.
func (c *Client) begin(ctx context.Context, identity *revokdv1.IdentityResponse) error {
	var first revocation.Key
	if copy(first[:], identity.GetFingerprintKey()) != len(first) || len(identity.GetFingerprintKey()) != len(first) {
		return fmt.Errorf("%w: the node has told no fingerprint key", ErrUnavailable)
	}
	ring := revocation.NewRing(first)
	if b := identity.GetRing(); len(b) > 0 {
		var err error
		if ring, err = revocation.ParseRing(b); err != nil || ring.Name() != first.ID() {
			return fmt.Errorf("%w: the node's fingerprint keys: %w", ErrUnavailable, errors.Join(err, ErrKeyChanged))
		}
	}
	c.ring = ring.Name()
	policy, err := revocation.ParsePolicy(identity.GetPolicy())
	if err != nil {
		return fmt.Errorf("%w: the node's policy: %w", ErrUnavailable, err)
	}
	c.tableConfig = revocation.TableConfig{Ring: ring, Slack: identity.GetSlack().AsDuration(), Store: c.cfg.Store, Policy: policy}
	var origins []replication.Origin
	var vector []replication.VectorEntry
	var h *held
	if c.cfg.Mode == Filter {
		f, err := c.firstFilter(ctx)
		if err != nil {
			return err
		}
		if h, err = c.newHeld(f); err != nil {
			return err
		}
		for _, o := range f.Origins {
			origins = append(origins, o.Origin)
			if o.Number > 0 {
				vector = append(vector, replication.VectorEntry{Index: o.Index, Number: o.Number})
			}
		}
		c.guarded, c.guardedAt = f.Guarded, c.cfg.clock.Mono()
		c.now.Store(f.Guarded)
	} else {
		table, err := revocation.NewTable(c.tableConfig)
		if err != nil {
			return err
		}
		h = &held{table: table}
	}
	c.held.Store(h)
	c.store = &store{Store: view.Store{Table: h.table}}
	if c.core, err = c.newCore(c.tableConfig.Slack, origins, vector); err != nil {
		return errors.Join(err, h.table.Close())
	}
	return nil
}

func (c *Client) newCore(slack time.Duration, origins []replication.Origin, vector []replication.VectorEntry) (*replication.Replica, error) {
	return replication.New(replication.Config{
		Name: c.cfg.Name, Boot: random(), KeyID: uint64(c.ring), Client: true,
		Deadline: func(rec *replication.Record) uint32 {
			until := view.RetainUntil(rec)
			if d := until + uint32(slack/time.Second); d > until {
				return d
			}
			return ^uint32(0)
		},
		DefinitionID: func(rec *replication.Record) uint64 { return binary.BigEndian.Uint64(rec[24:32]) },
		Random:       random,
		ProbeEvery:   c.cfg.ProbeEvery,
	}, c.store, origins, vector)
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

func (c *Client) url(addr string) string {
	if c.cfg.TLS != nil {
		return "https://" + addr
	}
	return "http://" + addr
}

func (c *Client) clusterService(addr string) revokdv1connect.ClusterServiceClient {
	return revokdv1connect.NewClusterServiceClient(c.http, c.url(addr))
}

func (c *Client) service(addr string) revokdv1connect.RevocationServiceClient {
	return revokdv1connect.NewRevocationServiceClient(c.http, c.url(addr), connect.WithReadMaxBytes(16<<20))
}

// addresses lists where nodes may be, in random order but for the one in use, which is first.
func (c *Client) addresses(ctx context.Context) []string {
	var list []string
	for _, a := range c.cfg.Addrs {
		name, dns := strings.CutPrefix(a, "dns+")
		if !dns {
			list = append(list, a)
			continue
		}
		host, port, _ := net.SplitHostPort(name) // validated
		lookup, cancel := context.WithTimeout(ctx, 3*time.Second)
		ips, err := net.DefaultResolver.LookupHost(lookup, host)
		cancel()
		if err != nil {
			c.log.Debug("a name does not resolve", "name", host, "error", err)
		}
		for _, ip := range ips[:min(len(ips), 64)] {
			list = append(list, net.JoinHostPort(ip, port))
		}
	}
	for i := len(list) - 1; i > 0; i-- {
		j := int(random() % uint64(i+1))
		list[i], list[j] = list[j], list[i]
	}
	c.mu.Lock()
	used := c.node
	c.mu.Unlock()
	for i, a := range list {
		if a == used {
			list[0], list[i] = list[i], list[0]
		}
	}
	return list
}

// backoff grows from MinBackoff to MaxBackoff, half of it random, so that a thousand replicas that lose a node at once do not come back at once.
func (c *Client) backoff(attempt int) time.Duration {
	d := min(c.cfg.MinBackoff<<min(attempt, 16), c.cfg.MaxBackoff)
	return d/2 + time.Duration(random()%uint64(d/2+1))
}
