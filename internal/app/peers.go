package app

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// DefaultGossipAddr is where a member of a cluster gossips unless told otherwise.
const DefaultGossipAddr = "127.0.0.1:7956"

// Names in a node's directory that belong to its membership.
const (
	gossipKeysFile = "gossip.keys"
	peersFile      = "peers"
)

// ClusterConfig says which cluster an agent belongs to. The zero ClusterConfig is a lone node, but with --dev, where others may join.
type ClusterConfig struct {
	GossipAddr      string   // ip:port
	GossipAdvertise string   // if others reach it elsewhere
	APIAdvertise    string   // host:port at which other nodes reach the API; default: where it listens
	Join            []string // of gossip; with --dev of the API of a node
	BootstrapExpect int
	StartAlone      bool
	GossipKeyFile   string
	MaxStaleness    time.Duration
	AckTimeout      time.Duration
	NodeRecords     int
	NodeRate        int
}

func (c *ClusterConfig) enabled() bool {
	return c.GossipAddr != "" || len(c.Join) > 0 || c.BootstrapExpect > 0
}

func (c *ClusterConfig) validate(dev bool) error {
	switch {
	case c.BootstrapExpect < 0 || c.BootstrapExpect > 64:
		return errors.New("--bootstrap-expect: out of range: 1 to 64")
	case c.NodeRecords < 0 || c.NodeRate < 0:
		return errors.New("--max-node-records, --max-node-rate: out of range: not negative")
	case c.MaxStaleness < 0 || c.AckTimeout < 0:
		return errors.New("--max-staleness, --ack-timeout: out of range: not negative")
	case dev && c.BootstrapExpect > 1:
		return errors.New("--bootstrap-expect: conflict: nodes with --dev become voters by themselves")
	}
	return nil
}

// clusterConfig makes what the node needs of what the user said.
func (a *agent) clusterConfig() (*node.ClusterConfig, error) {
	c := &a.cfg.Cluster
	if !c.enabled() && !a.cfg.Dev {
		return nil, nil
	}
	bind := c.GossipAddr
	if bind == "" {
		bind = DefaultGossipAddr
		if a.cfg.Dev { // who joins asks the API where it is
			bind = "127.0.0.1:0"
		}
	}
	g := cluster.Config{
		Bind: bind, Advertise: c.GossipAdvertise, Seeds: c.Join,
		KeyFile: filepath.Join(a.dir, gossipKeysFile), PeersFile: filepath.Join(a.dir, peersFile),
	}
	if a.cfg.Dev {
		g.Seeds = a.seeds
	}
	if c.GossipKeyFile != "" {
		var err error
		if g.Keys, err = readGossipKeys(c.GossipKeyFile); err != nil {
			return nil, fmt.Errorf("--gossip-key-file: %w", err)
		}
	}
	advertise := c.APIAdvertise
	if advertise == "" {
		advertise = a.listener.Addr().String()
		if at, err := netip.ParseAddrPort(advertise); err == nil && at.Addr().IsUnspecified() {
			return nil, errors.New("--api-advertise: missing: the API listens on all interfaces, and other nodes have to be told one address")
		}
	}
	n := &node.ClusterConfig{
		Gossip: g, APIAddr: advertise, Dial: a.dial, BootstrapExpect: c.BootstrapExpect, StartAlone: c.StartAlone, AutoVoters: a.cfg.Dev,
	}
	if a.cfg.Dev && len(a.seeds) == 0 {
		n.BootstrapExpect = 1
	}
	return n, nil
}

// devLockFile says that a process uses the name of its directory.
const devLockFile = "dev.lock"

// claimDevName takes the first name of a dev node that no running process has, until lock is closed: a second one started with --join and nothing
// else is dev-2, and again after a restart.
func claimDevName(dataDir string) (name string, lock io.Closer, err error) {
	for i := 2; i < 1000; i++ {
		name = fmt.Sprintf("dev-%d", i)
		if err = os.MkdirAll(filepath.Join(dataDir, name), 0o700); err != nil {
			break
		}
		if lock, err = journal.LockFile(filepath.Join(dataDir, name, devLockFile)); !errors.Is(err, journal.ErrLocked) {
			break
		}
	}
	if err != nil {
		return "", nil, fmt.Errorf("--data-dir: %w", err)
	}
	return name, lock, nil
}

// readGossipKeys reads keys in base64, one on each line; the first is used.
func readGossipKeys(path string) ([][]byte, error) {
	b, err := readLimited(path, 4096)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != 32 && len(key) != 24 && len(key) != 16 {
			return nil, errors.New("malformed: want 16, 24 or 32 random bytes in base64 on each line (openssl rand -base64 32)")
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("missing: it holds no key")
	}
	return keys, nil
}

// dial opens a session with another node.
func (a *agent) dial(ctx context.Context, name, addr string) (node.Stream, error) {
	client, scheme := a.peerTransport(name)
	service := revokdv1connect.NewReplicationServiceClient(client, scheme+"://"+addr, connect.WithGRPC(), connect.WithReadMaxBytes(replication.MaxMessage+1024))
	// The session outlives ctx, which is for dialing.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	stream := service.Exchange(life)
	stream.RequestHeader().Set(api.HeaderNode, a.cfg.NodeName)
	err := stream.Send(nil) // the headers
	if err == nil {
		_, err = stream.Receive() // the first message is empty: the other side has accepted
	}
	if err != nil || !stop() {
		cancel()
		return nil, fmt.Errorf("dial node %s: %w", name, errors.Join(err, ctx.Err()))
	}
	return &dialed{stream: stream, cancel: cancel}, nil
}

// dialed is a stream of messages on the side of who dialed.
type dialed struct {
	stream *connect.BidiStreamForClient[revokdv1.ExchangeMessage, revokdv1.ExchangeMessage]
	cancel context.CancelFunc
}

func (d *dialed) Send(message []byte) error {
	return d.stream.Send(&revokdv1.ExchangeMessage{Frames: message})
}

func (d *dialed) Receive() ([]byte, error) {
	m, err := d.stream.Receive()
	if err != nil {
		return nil, err
	}
	return m.GetFrames(), nil
}

// Close wakes both directions, and does not wait.
func (d *dialed) Close() { d.cancel() }

// peer returns the API of another member.
func (a *agent) peer(m cluster.Member) revokdv1connect.ClusterServiceClient {
	client, scheme := a.peerTransport(m.Name)
	return revokdv1connect.NewClusterServiceClient(client, scheme+"://"+m.Meta.APIAddr)
}

var errNoGossip = errors.New("it does not gossip yet")

// awaitIdentity asks until the other node knows where it gossips, which it does a moment after it listens.
func awaitIdentity(ctx context.Context, service revokdv1connect.ClusterServiceClient) (*revokdv1.IdentityResponse, error) {
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		res, err := service.Identity(ctx, connect.NewRequest(&revokdv1.IdentityRequest{}))
		if err != nil {
			return nil, err
		}
		if res.Msg.GetGossipAddr() != "" {
			return res.Msg, nil
		}
		select {
		case <-ctx.Done():
			return nil, errNoGossip
		case <-t.C:
		}
	}
}

// devJoin asks a running dev node for the secrets of its cluster and for where it gossips.
func (a *agent) devJoin(ctx context.Context, addrs []string) (*revokdv1.IdentityResponse, error) {
	var errs error
	for _, addr := range addrs {
		addr = strings.TrimPrefix(strings.TrimPrefix(addr, "http://"), "https://")
		if _, err := loopback(ctx, addr, net.DefaultResolver.LookupNetIP); err != nil {
			return nil, fmt.Errorf("--join %s: %w", addr, err)
		}
		client, scheme := a.peerTransport("")
		service := revokdv1connect.NewClusterServiceClient(client, scheme+"://"+addr)
		callCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
		told, err := awaitIdentity(callCtx, service)
		cancel()
		if err == nil {
			return told, nil
		}
		errs = errors.Join(errs, fmt.Errorf("--join %s: with --dev this is the API address of a running node, such as %s: %w", addr, DefaultAPIAddr, err))
	}
	return nil, errs
}
