// Package app assembles a node from its parts and runs it: identity, issuers, node, front, listener.
//
// It knows the order in which they start and end and what a node refuses to start with. It promises that [Agent]
// returns only when everything that it started has ended, with nil if its context ended it. Only
// the command calls it, once per process; nothing here is for concurrent use. The zero AgentConfig is refused: it
// says neither Dev nor who issues the tokens.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/audit"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
	"github.com/revokd/revokd/ttlstore"
)

// DefaultAPIAddr is where a node listens unless told otherwise.
const DefaultAPIAddr = "127.0.0.1:7950"

// AgentConfig configures [Agent]. Zero fields mean the defaults.
type AgentConfig struct {
	Version string
	Command string // how the user calls this program, for the commands that are printed; default revokd

	Dev      bool   // one node with nothing to configure, which mints tokens
	APIAddr  string // default DefaultAPIAddr
	NodeName string // default dev with Dev, else the name of the host
	DataDir  string // required; the node's data lies under its name there

	Durability  string // disk, the default, or memory
	IssuersFile string // required without Dev
	KeyFile     string // required without Dev, refused with it
	MaxRecords  int    // 0: see ttlstore.Config
	MaxMemory   int64  // bytes; 0: see ttlstore.Config
	Rates       Rates
	// IssuerRecords is how many live records writers may have written on this node for one issuer; 0: no limit but those of the node.
	IssuerRecords int

	TLS TLSConfig
	// CredentialsFile says which tokens are taken besides certificates, and what writers are limited to; see package credentials. Empty: none.
	CredentialsFile string
	// Insecure lets the API listen beyond loopback without TLS. The log says so once an hour.
	Insecure bool
	Cluster  ClusterConfig
	Audit    AuditConfig

	Trace     TraceConfig
	PprofAddr string // a loopback address where profiles are served; empty: none

	ShutdownDelay time.Duration    // how long the front goes on, not ready, when the agent ends
	Reload        <-chan os.Signal // each makes the agent read its files anew; nil: never
	// Reread reads the settings anew at a reload; rates and what apply puts in force are taken with everything else. nil: there are none.
	Reread     func() (rates Rates, apply func(), err error)
	Supervisor Supervisor

	Logger hclog.Logger // nil: none
	Stdout io.Writer    // where the addresses and first commands go; nil: nowhere
}

// Rates are how many records may be written in a second; zero fields mean the defaults of [api.Limits].
type Rates struct{ Writer, Bulk, Issuer int }

// minRate lets one message of a stream through within the time that a call has.
const minRate = 50

func (r Rates) validate() error {
	for _, n := range []int{r.Writer, r.Bulk, r.Issuer} {
		if n != 0 && n < minRate {
			return fmt.Errorf("--writer-rate, --bulk-rate, --issuer-rate: out of range: at least %d records a second", minRate)
		}
	}
	return nil
}

// The durabilities.
const (
	durabilityDisk   = "disk"
	durabilityMemory = "memory"
)

// maxShutdownDelay is less than what supervisors wait for before they kill.
const maxShutdownDelay = time.Minute

// validName: a node's name is a directory.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

var errBadName = errors.New("--node-name: malformed: 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit")

func (c *AgentConfig) validate() error {
	if c.APIAddr == "" {
		c.APIAddr = DefaultAPIAddr
	}
	if c.Command == "" {
		c.Command = "revokd"
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	if c.Stdout == nil {
		c.Stdout = io.Discard
	}
	if c.NodeName == "" {
		c.NodeName = "dev"
		if !c.Dev {
			host, err := os.Hostname()
			if err != nil {
				return fmt.Errorf("--node-name: missing, and the host does not tell its name: %w", err)
			}
			c.NodeName = host
		}
	}
	switch {
	case !validName.MatchString(c.NodeName):
		return errBadName
	case c.DataDir == "":
		return errors.New("--data-dir: missing")
	case c.Durability != "" && c.Durability != durabilityDisk && c.Durability != durabilityMemory:
		return errors.New("--durability: malformed: disk or memory")
	case c.TLS.validate() != nil:
		return c.TLS.validate()
	case c.Cluster.validate(c.Dev) != nil:
		return c.Cluster.validate(c.Dev)
	case c.CredentialsFile != "" && !c.TLS.enabled() && c.Cluster.enabled() && (!c.Dev || len(c.Cluster.Join) > 0):
		return errors.New("--credentials: conflict: nodes of a cluster know each other by certificates, so give --tls-cert, --tls-key and --tls-ca too")
	case c.Insecure && (c.Dev || c.TLS.enabled()):
		return errors.New("--insecure: conflict: it is for a node without TLS that is not for development")
	case c.Trace.validate() != nil:
		return c.Trace.validate()
	case c.Rates.validate() != nil:
		return c.Rates.validate()
	case c.IssuerRecords < 0:
		return errors.New("--issuer-records: out of range: not negative")
	case c.ShutdownDelay < 0 || c.ShutdownDelay > maxShutdownDelay:
		return fmt.Errorf("--shutdown-delay: out of range: 0 to %s", maxShutdownDelay)
	case c.MaxRecords < 0:
		return errors.New("--max-records: out of range: not negative")
	case c.MaxMemory < 0:
		return errors.New("--max-memory: out of range: not negative")
	case c.Dev && c.KeyFile != "":
		return errors.New("--key-file: conflict: with --dev the node makes a fingerprint key of its own")
	case !c.Dev && c.KeyFile == "":
		return errors.New("--key-file: missing: a node needs the fingerprint key of its cluster, 16 random bytes in hex " +
			"(openssl rand -hex 16 >key; keep it: without it the journal is of no use); --dev tries things out with nothing to configure")
	case !c.Dev && c.IssuersFile == "":
		return errors.New("--issuers: missing: a node needs a file that says who issues the tokens; --dev tries things out with nothing to configure")
	}
	return nil
}

// agent is a node with everything it needs.
type agent struct {
	cfg      AgentConfig
	dir      string // of this node
	dev      *devissuer.Issuer
	node     *node.Node
	audit    *audit.Log
	verifier *token.Verifier
	server   *api.Server
	listener net.Listener
	profiles *profiles // nil: none
	tracing  *tracing  // nil: none

	seeds          []string                   // of gossip, that a dev node was told by who it joins
	identityAnswer *revokdv1.IdentityResponse // what this dev node tells who joins it
	left           chan struct{}              // the node was told to leave its cluster

	known *credentials.Set // when it started; nil: none

	tls     *pki.Source // nil: no TLS
	peersMu sync.Mutex
	peers   map[string]*http.Client // by the name of the node, see peerTransport
}

// Agent runs a node until ctx ends; then it stops accepting, lets what has been accepted finish, and returns nil. Errors are
// those of the configuration, of the data directory and of the address, and name the flag that they are about.
func Agent(ctx context.Context, cfg AgentConfig) (err error) {
	anyName := cfg.NodeName == "" && cfg.Dev && len(cfg.Cluster.Join) > 0
	if err := cfg.validate(); err != nil {
		return err
	}
	if anyName {
		var lock io.Closer
		if cfg.NodeName, lock, err = claimDevName(cfg.DataDir); err != nil {
			return err
		}
		defer lock.Close()
	}
	a := &agent{cfg: cfg, dir: filepath.Join(cfg.DataDir, cfg.NodeName), left: make(chan struct{})}
	// Before anything is written: what is refused here leaves nothing behind.
	if err := a.loadTLS(); err != nil {
		return err
	}
	if _, err := cfg.Audit.config(a.dir); err != nil {
		return err
	}
	if a.known, err = a.readCredentials(); err != nil {
		return err
	}
	if a.listener, err = listen(ctx, cfg.APIAddr, cfg.Dev, a.tls != nil || cfg.Insecure, net.DefaultResolver.LookupNetIP); err != nil {
		return err
	}
	defer a.listener.Close()
	if cfg.PprofAddr != "" {
		if a.profiles, err = listenProfiles(ctx, cfg.PprofAddr, net.DefaultResolver.LookupNetIP, cfg.Logger); err != nil {
			return err
		}
		defer a.profiles.listener.Close()
	}
	if a.tracing, err = startTracing(ctx, cfg.Trace, cfg.NodeName, cfg.Version, cfg.Logger.Named("trace")); err != nil {
		return err
	}
	defer a.tracing.end(ctx)
	if err := a.assemble(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.node.Close()) }()
	if cfg.Durability == durabilityMemory {
		cfg.Logger.Warn("revocations are gone when this process ends: it was started with --durability=memory")
	}
	a.banner(cfg.Stdout)
	return a.waysOut(a.run(ctx))
}

func (a *agent) assemble(ctx context.Context) error {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	issuers, key, err := a.identity(ctx)
	if err != nil {
		return err
	}
	a.verifier, err = token.NewVerifier(token.Config{Issuers: issuers, Logger: a.cfg.Logger})
	if err != nil {
		return fmt.Errorf("--issuers: %w", err)
	}
	durability := node.DurabilityDisk
	if a.cfg.Durability == durabilityMemory {
		durability = node.DurabilityMemory
	}
	members, err := a.clusterConfig()
	if err != nil {
		return err
	}
	a.node, err = node.New(node.Config{
		Name: a.cfg.NodeName, Version: a.cfg.Version,
		Durability: durability, Dir: filepath.Join(a.dir, journalDir),
		Key: key, RingFile: filepath.Join(a.dir, ringFile), Policy: a.verifier.Policy(),
		Store:  ttlstore.Config{MaxItems: a.cfg.MaxRecords, MaxBytes: a.cfg.MaxMemory},
		Logger: a.cfg.Logger, Cluster: members, MaxStaleness: a.cfg.Cluster.MaxStaleness, AckTimeout: a.cfg.Cluster.AckTimeout,
		NodeRecords: a.cfg.Cluster.NodeRecords, NodeRate: a.cfg.Cluster.NodeRate, IssuerRecords: a.cfg.IssuerRecords,
	})
	if err != nil {
		return fmt.Errorf("node %s: %w", a.cfg.NodeName, a.waysOut(err))
	}
	if err := a.openAudit(); err != nil {
		return errors.Join(err, a.node.Close())
	}
	var serverTLS *tls.Config
	if a.tls != nil {
		serverTLS = a.tls.ServerConfig()
	}
	var hosts []string
	if a.cfg.Insecure {
		hosts = []string{"*"} // nobody knows under which names it is reached
	}
	a.server, err = api.New(api.Config{
		Audit: a.audit, AuditValues: a.cfg.Audit.Values, AuditGoOn: a.cfg.Audit.OnFailure == auditContinue,
		Limits: api.Limits{WriterRate: a.cfg.Rates.Writer, BulkRate: a.cfg.Rates.Bulk, IssuerRate: a.cfg.Rates.Issuer},
		Hosts:  hosts, Insecure: a.cfg.Insecure, TLS: serverTLS, Credentials: a.known, Linger: a.cfg.ShutdownDelay, Node: a.node, Verifier: a.verifier, Dev: a.dev, Version: a.cfg.Version, Logger: a.cfg.Logger, Tracer: a.tracing.tracer(),
		Identity: a.tellIdentity, Peer: a.peer, Leave: sync.OnceFunc(func() { close(a.left) }),
	})
	if err != nil {
		return errors.Join(err, a.audit.Close(), a.node.Close())
	}
	return nil
}

// identity returns who issues the tokens and the fingerprint key.
func (a *agent) identity(ctx context.Context) (issuers []token.Issuer, key revocation.Key, err error) {
	if a.cfg.IssuersFile != "" {
		if issuers, err = readIssuers(a.cfg.IssuersFile); err != nil {
			return nil, key, fmt.Errorf("--issuers: %w", err)
		}
	}
	if !a.cfg.Dev {
		if key, err = readKey(a.cfg.KeyFile); err != nil {
			return nil, key, fmt.Errorf("--key-file: %w", err)
		}
		a.identityAnswer = &revokdv1.IdentityResponse{KeyId: key.ID().String(), FingerprintKey: key[:]}
		return issuers, key, nil
	}
	var join func() (*identity, error)
	if addrs := a.cfg.Cluster.Join; len(addrs) > 0 {
		told, err := a.devJoin(ctx, addrs)
		if err != nil {
			return nil, key, err
		}
		a.seeds = []string{told.GetGossipAddr()}
		join = func() (*identity, error) { return joinedIdentity(told) }
	}
	id, err := devIdentity(a.dir, join)
	if err != nil {
		return nil, key, fmt.Errorf("--data-dir: %w", err)
	}
	if join != nil {
		theirs, err := join()
		if err != nil {
			return nil, key, fmt.Errorf("--join: %w", err)
		}
		if theirs.key != id.key {
			return nil, key, fmt.Errorf("--join: conflict: %s has belonged to another cluster: give another --node-name or --data-dir, or remove it", a.dir)
		}
	}
	a.dev = id.issuer
	a.identityAnswer = &revokdv1.IdentityResponse{KeyId: id.key.ID().String(), FingerprintKey: id.key[:], DevIssuer: id.issuer.Marshal()}
	return append(issuers, id.issuer.TokenIssuer()), id.key, nil
}

// tellIdentity is for dev nodes that join this one.
func (a *agent) tellIdentity() *revokdv1.IdentityResponse {
	answer := proto.Clone(a.identityAnswer).(*revokdv1.IdentityResponse)
	if g := a.node.Gossip(); g != nil {
		if at := g.Local().Addr; at.IsValid() { // not before it has begun
			answer.GossipAddr = at.String()
		}
	}
	return answer
}

// insecureEvery is how often a node that listens beyond loopback without TLS says so.
const insecureEvery = time.Hour

func (a *agent) warnInsecure(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		a.cfg.Logger.Warn("insecure: whoever reaches the API can read along and, without --credentials, revoke every token: give --tls-cert, --tls-key and --tls-ca",
			"address", a.listener.Addr().String())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// run runs the parts. The front ends first: what it has accepted still needs the node.
func (a *agent) run(ctx context.Context) error {
	below, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, below := errgroup.WithContext(below)
	g.Go(func() error { return a.node.Run(below) })
	g.Go(func() error { return a.verifier.Run(below) })
	g.Go(func() error { return a.audit.Run(below) })
	if a.tls != nil {
		g.Go(func() error { return a.tls.Run(below) })
	}
	if a.profiles != nil {
		g.Go(func() error { return a.profiles.serve(below) })
	}
	g.Go(func() error { a.reloads(below); return nil })
	if a.cfg.Insecure {
		g.Go(func() error { a.warnInsecure(below, insecureEvery); return nil })
	}
	g.Go(func() error {
		supervise(below, a.cfg.Supervisor.watchdog, a.node, a.tell)
		return nil
	})
	g.Go(func() error {
		select {
		case <-ctx.Done():
			a.tell("STOPPING=1")
			if g := a.node.Gossip(); g != nil {
				g.AnnounceLeaving() // while the front goes on
			}
		case <-below.Done():
		}
		return nil
	})
	front, stopFront := context.WithCancel(ctx)
	defer stopFront()
	defer context.AfterFunc(below, stopFront)() // a node that failed takes the front with it
	g.Go(func() error {
		defer stop()
		return a.server.Serve(front, a.listener)
	})
	g.Go(func() error {
		select {
		case <-a.left: // it has said good-bye to the others
			stopFront()
		case <-below.Done():
		}
		return nil
	})
	err := g.Wait()
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return nil
	}
	return err
}

// banner says where the node is and what to try.
func (a *agent) banner(w io.Writer) {
	url := "http://" + a.listener.Addr().String()
	if a.tls != nil {
		url = "https://" + a.listener.Addr().String()
	}
	durability := "kept in " + a.dir
	if a.cfg.Durability == durabilityMemory {
		durability = "in memory only: gone with this process"
	}
	fmt.Fprintf(w, "revokd %s, node %s\n  API          %s\n  revocations  %s\n", a.cfg.Version, a.cfg.NodeName, url, durability)
	flag := a.flags()
	if !a.cfg.Dev {
		fmt.Fprintf(w, "\n  %s status%s\n", a.cfg.Command, flag)
		return
	}
	fmt.Fprintf(w, `
A development node: whoever reaches it can mint and revoke tokens. In another terminal:

  T=$(%[1]s dev token%[2]s --sub alice)
  %[1]s revoke%[2]s --token "$T"
  %[1]s check%[2]s --token "$T"

`, a.cfg.Command, flag)
}
