package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/internal/atomicfile"
)

// Bounds of a round.
const (
	MaxSeeds       = 64  // configured and added
	maxRemembered  = 256 // addresses
	maxAddresses   = 256 // that one seed resolves to
	joinsAtOnce    = 16  // of seeds, and as many of remembered peers; others have their turn in later rounds
	resolveTimeout = 2 * time.Second
	aloneEvery     = time.Minute // a warning
	settleFor      = 20 * time.Second
)

// Resolver resolves the names of seeds. [net.Resolver] is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
}

// ErrSeed is matched by errors about seeds.
var ErrSeed = errors.New("cluster: invalid seed")

type joinCounts struct {
	rounds, tried, failed, unresolved atomic.Uint64

	warned time.Duration // when, by the monotonic clock; the rejoin loop's
}

// seedName takes a seed apart: a name with a port, or one that an SRV record gives the port of.
func seedName(seed string) (host string, port uint16, srv bool, err error) {
	if name, ok := strings.CutPrefix(seed, "dnssrv+"); ok {
		if name == "" || strings.Contains(name, ":") {
			return "", 0, false, fmt.Errorf("%w %q: want dnssrv+name, without a port", ErrSeed, seed)
		}
		return name, 0, true, nil
	}
	host, service, err := net.SplitHostPort(strings.TrimPrefix(seed, "dns+"))
	if err == nil {
		var n uint64
		n, err = strconv.ParseUint(service, 10, 16)
		port = uint16(n)
	}
	if err != nil || host == "" || port == 0 {
		return "", 0, false, fmt.Errorf("%w %q: want host:port, dns+name:port or dnssrv+name", ErrSeed, seed)
	}
	return host, port, false, nil
}

func (m *Members) addSeeds(seeds []string) error {
	for _, seed := range seeds {
		if _, _, _, err := seedName(seed); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Clone(m.seeds)
	for _, seed := range seeds {
		if !slices.Contains(all, seed) {
			all = append(all, seed)
		}
	}
	if len(all) > MaxSeeds {
		return fmt.Errorf("%w: %d of them, at most %d", ErrSeed, len(all), MaxSeeds)
	}
	m.seeds = all
	return nil
}

// rejoin is the loop that memberlist does not have. It ends with ctx only.
func (m *Members) rejoin(ctx context.Context) {
	for {
		m.round(ctx)
		m.remember()
		// Half to one and a half: nodes that were started together do not ask together.
		wait := time.NewTimer(m.cfg.RejoinEvery/2 + rand.N(m.cfg.RejoinEvery))
		select {
		case <-wait.C:
		case <-m.poke:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		wait.Stop()
	}
}

// round asks everybody who should be a member and well, and is not. Many at once: one that does not answer must not cost the others their turn.
func (m *Members) round(ctx context.Context) {
	m.joins.rounds.Add(1)
	if m.cfg.mutant("no-rejoin") && m.joins.tried.Load() > m.joins.failed.Load() {
		return
	}
	seeds := m.resolve(ctx)
	live, suspect, left := m.known()
	absent := func(addrs []netip.AddrPort, others ...netip.AddrPort) []netip.AddrPort {
		addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.AddrPort) bool {
			return slices.Contains(live, a) || slices.Contains(others, a)
		})
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		return addrs[:min(len(addrs), joinsAtOnce)]
	}
	targets := absent(seeds)
	targets = append(targets, absent(m.remembered, append(left, targets...)...)...)
	// Who is suspected and can be reached learns of it at once, instead of at the next probe.
	targets = append(targets, absent(suspect, targets...)...)
	// While members come and go one of them is asked for all it knows: announcements get lost, and memberlist's own exchanges are rare.
	if others := slices.DeleteFunc(live, func(a netip.AddrPort) bool { return a == m.table.local().Addr }); len(others) > 0 && m.table.unsettled(settleFor) {
		targets = append(targets, others[rand.N(len(others))])
	}
	failed := make(chan error, len(targets))
	var wg sync.WaitGroup
	for _, target := range targets {
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			m.joins.tried.Add(1)
			if _, err := m.list.Join([]string{target.String()}); err != nil {
				m.joins.failed.Add(1)
				if only := errors.Unwrap(err); only != nil {
					err = only // of a list with a line for each address
				}
				failed <- err
			}
		})
	}
	wg.Wait()
	// One peer that is away is reported as a member. To be alone is another matter: then the key may be wrong.
	if live, _, _ := m.known(); len(live) <= 1 && len(failed) > 0 && ctx.Err() == nil {
		now := m.cfg.Clock.Mono()
		if m.joins.warned == 0 || now-m.joins.warned >= aloneEvery {
			m.joins.warned = now
			m.log.Warn("alone: no other node has let this one join; gossip key, label and cluster must be the same", "tried", len(targets), "error", strings.TrimSpace((<-failed).Error()))
		}
	}
}

// resolve returns the addresses of all seeds as they are now, each once.
func (m *Members) resolve(ctx context.Context) []netip.AddrPort {
	m.mu.Lock()
	seeds := m.seeds
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found := make([][]netip.AddrPort, len(seeds))
	var wg sync.WaitGroup
	for i, seed := range seeds {
		wg.Go(func() {
			addrs, err := m.lookup(ctx, seed)
			if err != nil {
				m.joins.unresolved.Add(1)
				m.log.Debug("seed not resolved", "seed", seed, "error", err)
			}
			found[i] = addrs
		})
	}
	wg.Wait()
	all := slices.Concat(found...)
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}

func (m *Members) lookup(ctx context.Context, seed string) ([]netip.AddrPort, error) {
	host, port, srv, err := seedName(seed)
	if err != nil {
		return nil, err
	}
	if !srv {
		return m.addresses(ctx, host, port)
	}
	_, records, err := m.cfg.Resolver.LookupSRV(ctx, "", "", host)
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	for _, r := range records[:min(len(records), maxAddresses)] {
		addrs, lookupErr := m.addresses(ctx, r.Target, r.Port)
		err = errors.Join(err, lookupErr)
		all = append(all, addrs...)
	}
	return all[:min(len(all), maxAddresses)], err
}

func (m *Members) addresses(ctx context.Context, host string, port uint16) ([]netip.AddrPort, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), port)}, nil
	}
	ips, err := m.cfg.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var all []netip.AddrPort
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		all = append(all, netip.AddrPortFrom(ip.Unmap(), port))
	}
	return all, nil
}

// remember keeps the addresses of live members in front of those of earlier ones, and writes them down when they have changed.
// Who left on purpose is forgotten; who died is not.
func (m *Members) remember() {
	live, suspect, left := m.known()
	self := m.table.local().Addr
	next := slices.DeleteFunc(append(live, suspect...), func(a netip.AddrPort) bool { return a == self })
	slices.SortFunc(next, netip.AddrPort.Compare)
	for _, a := range m.remembered {
		if a != self && !slices.Contains(next, a) && !slices.Contains(left, a) {
			next = append(next, a)
		}
	}
	next = next[:min(len(next), maxRemembered)]
	if slices.Equal(next, m.remembered) {
		return
	}
	m.remembered = next
	if m.cfg.PeersFile == "" {
		return
	}
	var b bytes.Buffer
	for _, a := range next {
		fmt.Fprintln(&b, a)
	}
	if err := atomicfile.Write(m.cfg.PeersFile, b.Bytes()); err != nil {
		m.log.Warn("peers not written down; a restart will need its seeds", "error", err)
	}
}

// readPeers returns the addresses of a file, none if there is none. A line that is no address is passed over: what it said was only a hint.
func readPeers(path string) ([]netip.AddrPort, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 64*maxRemembered))
	if err != nil {
		return nil, err
	}
	var peers []netip.AddrPort
	for line := range bytes.Lines(content) {
		a, err := netip.ParseAddrPort(string(bytes.TrimSpace(line)))
		if err == nil && a.Port() != 0 && len(peers) < maxRemembered {
			peers = append(peers, a)
		}
	}
	return peers, nil
}
