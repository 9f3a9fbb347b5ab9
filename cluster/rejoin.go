package cluster

import (
	"bytes"
	"cmp"
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
	MaxSeeds       = 64 // configured and added
	maxRemembered  = MaxMembers
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
		for waits := true; waits; {
			select {
			case <-wait.C:
				waits = false
			case <-m.poke:
				waits = false
			case <-m.table.arrived: // who is killed before the next round must find those again that have just moved
				m.remember()
			case <-ctx.Done():
				wait.Stop()
				return
			}
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
	var targets []netip.AddrPort
	absent := func(addrs []netip.AddrPort) []netip.AddrPort {
		return slices.DeleteFunc(addrs, func(a netip.AddrPort) bool {
			return slices.Contains(targets, a) || slices.ContainsFunc(live, func(p peer) bool { return p.addr == a })
		})
	}
	// some returns as many as have their turn: the first few, and any of the others.
	some := func(addrs []netip.AddrPort, first int) []netip.AddrPort {
		others := addrs[min(first, len(addrs)):]
		rand.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		return addrs[:min(len(addrs), joinsAtOnce)]
	}
	targets = append(targets, some(absent(seeds), 0)...)
	// Half of the turns are for who was alive last: what a partition has cut off is among them, however many others are gone for good.
	targets = append(targets, some(absent(addresses(recall(nil, m.remembered, left))), joinsAtOnce/2)...)
	// Who is suspected and can be reached learns of it at once, instead of at the next probe.
	targets = append(targets, some(absent(addresses(suspect)), 0)...)
	// While members come and go one of them is asked for all it knows: announcements get lost, and memberlist's own exchanges are rare.
	if others := slices.DeleteFunc(live, func(p peer) bool { return p.name == m.cfg.Name }); len(others) > 0 && m.table.unsettled(settleFor) {
		targets = append(targets, others[rand.N(len(others))].addr)
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

// peer is a member and where it is or was last alive.
type peer struct {
	name string // empty: of a line of the file that has none
	addr netip.AddrPort
}

func addresses(peers []peer) []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(peers))
	for i, p := range peers {
		addrs[i] = p.addr
	}
	return addrs
}

// recall returns the peers that are here, and behind them those remembered that are not: of each the latest address, of each address the latest peer. Who
// left on purpose is forgotten; who died is not.
func recall(here, remembered, left []peer) []peer {
	names, addrs := map[string]bool{}, map[netip.AddrPort]bool{}
	next := slices.Clone(here)
	for _, p := range here {
		names[p.name], addrs[p.addr] = true, true
	}
	gone := map[string]bool{}
	for _, p := range left {
		gone[p.name] = true
	}
	for _, p := range remembered {
		if names[p.name] || addrs[p.addr] || gone[p.name] {
			continue
		}
		names[p.name], addrs[p.addr] = p.name != "", true
		next = append(next, p)
	}
	return next[:min(len(next), maxRemembered)]
}

// remember keeps live members in front of earlier ones, and writes them down when they have changed.
func (m *Members) remember() {
	live, suspect, left := m.known()
	self := m.table.local()
	here := slices.DeleteFunc(append(live, suspect...), func(p peer) bool { return p.name == self.Name })
	slices.SortFunc(here, func(a, b peer) int { return cmp.Compare(a.name, b.name) }) // else the file would be written in each round
	next := recall(here, m.remembered, append(left, peer{name: self.Name}))
	if slices.Equal(next, m.remembered) {
		return
	}
	m.remembered = next
	if m.cfg.PeersFile == "" {
		return
	}
	var b bytes.Buffer
	for _, p := range next {
		fmt.Fprintln(&b, strings.TrimSpace(p.addr.String()+" "+p.name))
	}
	if err := atomicfile.Write(m.cfg.PeersFile, b.Bytes()); err != nil {
		m.log.Warn("peers not written down; a restart will need its seeds", "error", err)
	}
}

// maxPeerLine is more than an address with a zone and a name take.
const maxPeerLine = 128 + maxName

// readPeers returns the peers of a file, none if there is none: an address a line, behind it the name if it is known. A line that is nothing of the kind is passed
// over: what it said was only a hint.
func readPeers(path string) ([]peer, error) {
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
	content, err := io.ReadAll(io.LimitReader(f, maxPeerLine*maxRemembered))
	if err != nil {
		return nil, err
	}
	var peers []peer
	for line := range bytes.Lines(content) {
		addr, name, named := strings.Cut(string(bytes.TrimSpace(line)), " ")
		a, err := netip.ParseAddrPort(addr)
		if err == nil && a.Port() != 0 && (!named || validName(name)) {
			peers = append(peers, peer{name, a})
		}
	}
	return recall(nil, peers, nil), nil
}
