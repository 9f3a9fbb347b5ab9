package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/history"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// fault is something that goes wrong for a while. It returns whether it has really taken effect, when it is over.
type fault func(f *faults, rng *rand.Rand, hold time.Duration) (effective bool)

// deck is what the faults of the rounds are drawn from, as often as they stand in it. The part of a name behind a slash tells kinds of one fault apart.
var deck = []struct {
	name  string
	fault fault
	times int
}{
	{"kill", (*faults).kill, 3},
	{"kill/all", (*faults).killAll, 1},
	{"pause", (*faults).pause, 5},
	{"partition/halves", (*faults).halves, 1},
	{"partition/isolate", (*faults).isolate, 2},
	{"partition/oneway", (*faults).oneWay, 2},
	{"partition/bridge", (*faults).bridge, 1},
	{"loss", (*faults).loss, 1},
	{"weather", (*faults).badWeather, 2},
	{"slow-link", (*faults).slowLink, 1},
	{"clock", (*faults).clock, 3},
	{"disk", (*faults).disk, 3},
	{"wipe", (*faults).wipe, 1},
	{"damage", (*faults).damage, 1},
	{"restart/rolling", (*faults).rolling, 1},
	{"upgrade/rolling", (*faults).upgrade, 1},
	{"reload", (*faults).reload, 1},
	{"gossip-key", (*faults).gossipKey, 1},
	{"subscriber/slow", (*faults).slowSubscriber, 1},
	{"flood/connections", (*faults).flood, 1},
	{"flood/logouts", (*faults).logouts, 1},
	{"reconnects", (*faults).reconnects, 1},
}

// faults is what goes wrong in a trial. Its methods run at the same time.
type faults struct {
	tr   *trial
	next string // the program of a later version

	mu    sync.Mutex // guards what follows
	busy  map[*member]bool
	links map[*host]bool // with a relay
	cuts  map[int]map[*host][]string
	cut   int
	drops int  // packets, of rules that were replaced
	lossy bool // a directory was lost, and not everything has settled since
	wrong int  // clocks
}

func (f *faults) init(tr *trial) {
	*f = faults{tr: tr, busy: map[*member]bool{}, links: map[*host]bool{}, cuts: map[int]map[*host][]string{}}
	for _, h := range tr.lab.hosts {
		h.drop()
	}
}

// take picks a node whose process nothing else is done to, or nil. Give it back.
func (f *faults) take(rng *rand.Rand) *member { return f.takeOf(rng, f.tr.nodes) }

// takeOf is take among some of the nodes.
func (f *faults) takeOf(rng *rand.Rand, nodes []*member) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	free := slices.DeleteFunc(slices.Clone(nodes), func(m *member) bool { return f.busy[m] })
	if len(free) == 0 {
		return nil
	}
	m := free[rng.IntN(len(free))]
	f.busy[m] = true
	return m
}

func (f *faults) give(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.busy, m)
}

// killed ends a process as kill -9 does.
func (f *faults) killed(m *member) {
	f.tr.starts[m].Add(1)
	m.proc.Kill()
	f.tr.starts[m].Add(1)
}

// stopped ends a process in an orderly way.
func (f *faults) stopped(m *member) {
	f.tr.starts[m].Add(1)
	err := m.proc.Signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), patience)
	code, waited := m.proc.Wait(ctx)
	cancel()
	if err := errors.Join(err, waited); err != nil || code != 0 {
		f.tr.t.Errorf("%s: SIGTERM: exit code %d, %v\n%s", m.name, code, err, tail(m.proc.Stderr()))
		m.proc.Kill()
	}
	f.tr.starts[m].Add(1)
}

// started starts a node that has ended, and fails the test if it does not listen again.
func (f *faults) started(m *member) { f.tr.begin(m, true) }

func (f *faults) kill(rng *rand.Rand, hold time.Duration) bool {
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	f.killed(m)
	dead := m.proc.ExitCode() == -1
	time.Sleep(rand.N(hold)) // for which it is down
	f.started(m)
	return dead
}

// killAll is a power cut of the whole cluster.
func (f *faults) killAll(rng *rand.Rand, hold time.Duration) bool {
	var all []*member
	for m := f.take(rng); m != nil; m = f.take(rng) {
		all = append(all, m)
	}
	if len(all) < len(f.tr.nodes) {
		for _, m := range all {
			f.give(m)
		}
		return false
	}
	for _, m := range all {
		f.killed(m)
	}
	dead := !slices.ContainsFunc(all, func(m *member) bool { return m.proc.ExitCode() != -1 })
	time.Sleep(rand.N(min(hold, time.Second))) // for which the power is off
	var starting sync.WaitGroup
	for _, m := range all {
		starting.Go(func() {
			f.started(m)
			f.give(m)
		})
	}
	starting.Wait()
	return dead
}

func (f *faults) pause(rng *rand.Rand, hold time.Duration) bool {
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	if m.proc.Signal(syscall.SIGSTOP) != nil {
		return false
	}
	time.Sleep(hold) // for which it stands still
	stopped := isStopped(m.proc.Pid())
	return m.proc.Signal(syscall.SIGCONT) == nil && stopped
}

// cutOff makes hosts drop packets from others for a while, beside what other faults have them drop.
func (f *faults) cutOff(rules map[*host][]string, hold time.Duration) bool {
	f.mu.Lock()
	f.cut++
	id := f.cut
	f.cuts[id] = rules
	before := f.apply(rules)
	f.mu.Unlock()
	time.Sleep(hold) // for which the link is broken
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.cuts, id)
	return f.apply(rules) > before
}

// apply makes the hosts drop what all faults together want, and returns how many packets were dropped so far.
func (f *faults) apply(changed map[*host][]string) int {
	for h := range changed {
		f.drops += h.heal()
		var all []string
		for _, rules := range f.cuts {
			all = append(all, rules[h]...)
		}
		h.drop(all...)
	}
	return f.drops
}

// apart makes two groups of hosts not hear each other.
func apart(a, b []*host) map[*host][]string {
	rules := map[*host][]string{}
	for h, more := range deaf(a, b) {
		rules[h] = more
	}
	for h, more := range deaf(b, a) {
		rules[h] = more
	}
	return rules
}

// deaf makes hosts not hear others, who hear them.
func deaf(to, others []*host) map[*host][]string {
	var addrs []string
	for _, o := range others {
		addrs = append(addrs, o.addr.String())
	}
	rules := map[*host][]string{}
	for _, h := range to {
		rules[h] = []string{"ip saddr { " + strings.Join(addrs, ", ") + " }"}
	}
	return rules
}

// shuffled returns the hosts of the nodes and those of the clients, each in a new order.
func (f *faults) shuffled(rng *rand.Rand) (nodes, clients []*host) {
	for _, m := range f.tr.nodes {
		nodes = append(nodes, f.tr.hosts[m])
	}
	for _, e := range f.tr.clients {
		clients = append(clients, e.host)
	}
	rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	rng.Shuffle(len(clients), func(i, j int) { clients[i], clients[j] = clients[j], clients[i] })
	return nodes, clients
}

// halves: a majority and a minority, each with clients.
func (f *faults) halves(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	n, c := len(nodes)/2, len(clients)/2
	return f.cutOff(apart(slices.Concat(nodes[:n], clients[:c]), slices.Concat(nodes[n:], clients[c:])), hold)
}

// isolate: one node and a client have only each other.
func (f *faults) isolate(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	return f.cutOff(apart([]*host{nodes[0], clients[0]}, slices.Concat(nodes[1:], clients[1:])), hold)
}

// oneWay: a node hears nobody and is heard by everybody, or the other way round.
func (f *faults) oneWay(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	others := slices.Concat(nodes[1:], clients)
	if rng.IntN(2) == 0 {
		return f.cutOff(deaf(nodes[:1], others), hold)
	}
	return f.cutOff(deaf(others, nodes[:1]), hold)
}

// bridge: two groups that see only one node in common.
func (f *faults) bridge(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	n := (len(nodes) - 1) / 2
	return f.cutOff(apart(slices.Concat(nodes[:n], clients[:1]), slices.Concat(nodes[n:len(nodes)-1], clients[1:])), hold)
}

func (f *faults) loss(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	rules := map[*host][]string{}
	for _, h := range slices.Concat(nodes, clients) {
		rules[h] = []string{fmt.Sprintf("numgen random mod 100 < %d", []int{5, 20}[rng.IntN(2)])}
	}
	return f.cutOff(rules, hold)
}

// over has packets of one host go through a relay.
func (f *faults) over(rng *rand.Rand, w weather, hold time.Duration) *storminess {
	nodes, _ := f.shuffled(rng)
	h := nodes[0]
	f.mu.Lock()
	taken := f.links[h]
	f.links[h] = true
	var did *storminess
	var end func()
	if !taken {
		did, end = f.tr.lab.relayed(h, w)
	}
	f.mu.Unlock()
	if taken {
		return nil
	}
	time.Sleep(hold) // for which the weather lasts
	f.mu.Lock()
	defer f.mu.Unlock()
	end()
	delete(f.links, h)
	return did
}

// badWeather delays packets so that they overtake each other, repeats some and loses some.
func (f *faults) badWeather(rng *rand.Rand, hold time.Duration) bool {
	did := f.over(rng, weather{delay: time.Duration(rng.IntN(20)) * time.Millisecond, jitter: 30 * time.Millisecond, duplicate: 0.05, loss: 0.02}, hold)
	return did != nil && did.overtaken.Load() > 0 && did.duplicated.Load() > 0 && did.lost.Load() > 0
}

// slowLink has a megabit a second.
func (f *faults) slowLink(rng *rand.Rand, hold time.Duration) bool {
	did := f.over(rng, weather{rate: 125_000}, hold)
	return did != nil && did.delayed.Load() > 100
}

// afterStart is how far a node's time may be behind when it has just started: it goes on from the last one on disk until others confirm the clock.
const afterStart = 2 * time.Minute

// shifts of a clock, as the control file takes them.
var shifts = []time.Duration{-30 * time.Second, 30 * time.Second, time.Hour, -time.Hour, 2 * time.Hour, 30 * 24 * time.Hour, -30 * 24 * time.Hour, 3 * time.Second}

// clock steps the wall clock of a node and, later, back; sometimes the node is started in between.
func (f *faults) clock(rng *rand.Rand, hold time.Duration) bool {
	// Most clocks are right, or nobody can know the time: docs/promises.md.
	f.mu.Lock()
	few := f.wrong < (len(f.tr.nodes)-1)/2
	if few {
		f.wrong++
	}
	f.mu.Unlock()
	if !few {
		return false
	}
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.wrong--
	}()
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	shift := shifts[rng.IntN(len(shifts))]
	f.tr.fault(m, "clock="+shift.String())
	time.Sleep(hold / 2) // with a wrong clock
	stepped := f.shows(m, shift)
	if rng.IntN(3) == 0 && shift > -30*time.Minute { // before that its certificate is not valid yet, and it does not start
		f.killed(m)
		f.started(m)
	}
	time.Sleep(hold / 2) // still with a wrong clock, perhaps after a start with it
	f.tr.fault(m, "")
	return stepped
}

// shows reports whether the wall clock of a node is off by that much.
func (f *faults) shows(m *member, shift time.Duration) bool {
	st, err := f.status(m)
	return err == nil && (time.Until(st.GetNow().AsTime())-shift).Abs() < time.Second
}

func (f *faults) status(m *member) (*revokdv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), 3*time.Second)
	defer cancel()
	st, err := m.api.Status(ctx, connect.NewRequest(&revokdv1.StatusRequest{}))
	if err != nil {
		return nil, err
	}
	return st.Msg, nil
}

// disk makes the files of a node fail, until it is started again on a good disk.
func (f *faults) disk(rng *rand.Rand, hold time.Duration) bool {
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	f.tr.fault(m, "disk="+[]string{"ENOSPC", "EIO-write", "EIO-fsync"}[rng.IntN(3)])
	failed := false
	for end := time.Now().Add(hold); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // its writers have to notice
		if st, err := f.status(m); err == nil && st.GetJournal().GetError() != "" {
			failed = true
		}
	}
	f.killed(m)
	f.tr.fault(m, "")
	f.started(m)
	return failed
}

// lose takes a node whose directory may be lost: only one between two times that all is whole, or more is lost than can be.
func (f *faults) lose(rng *rand.Rand) *member {
	f.mu.Lock()
	lossy := f.lossy
	f.lossy = true
	f.mu.Unlock()
	if lossy {
		return nil
	}
	return f.take(rng)
}

// wipe takes the directory of a node away.
func (f *faults) wipe(rng *rand.Rand, hold time.Duration) bool {
	m := f.lose(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	f.killed(m)
	if err := os.RemoveAll(f.tr.path(m.name + "/journal")); err != nil {
		f.tr.t.Error(err)
	}
	time.Sleep(rand.N(hold)) // for which it is down
	f.started(m)
	return true
}

// damage flips a bit in the journal of a node. It must notice: either nothing is lost or it does not start, and then the directory is taken away as the manual says.
func (f *faults) damage(rng *rand.Rand, hold time.Duration) bool {
	m := f.lose(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	f.killed(m)
	files, err := filepath.Glob(f.tr.path(m.name + "/journal/*"))
	if err != nil || len(files) == 0 {
		f.tr.t.Errorf("%s has no journal: %v", m.name, err)
	}
	largest, size := "", int64(0)
	for _, name := range files {
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() && st.Size() > size {
			largest, size = name, st.Size()
		}
	}
	b, err := os.ReadFile(largest)
	if err != nil {
		f.tr.t.Error(err)
		return false
	}
	b[rng.IntN(len(b)/2+1)] ^= 1 << rng.IntN(8)
	if err := os.WriteFile(largest, b, 0o600); err != nil {
		f.tr.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{Args: f.tr.flags(m), Env: append([]string{"HOME=" + f.tr.home, "PATH=" + os.Getenv("PATH")}, f.tr.env(m)...), Dir: f.tr.home, HTTP: m.http, Unready: true})
	if err == nil { // what was hit held nothing
		f.tr.t.Cleanup(p.Kill)
		m.proc = p
		return false
	}
	if !strings.Contains(err.Error(), "damage") && !strings.Contains(err.Error(), "corrupt") {
		f.tr.t.Errorf("%s: a flipped bit in %s: %v", m.name, filepath.Base(largest), err)
	}
	if err := os.RemoveAll(f.tr.path(m.name + "/journal")); err != nil {
		f.tr.t.Error(err)
	}
	f.started(m)
	return true
}

// rolling stops and starts all nodes in turn, as an upgrade does.
func (f *faults) rolling(rng *rand.Rand, _ time.Duration) bool {
	for left := slices.Clone(f.tr.nodes); len(left) > 0; {
		m := f.takeOf(rng, left)
		if m == nil {
			time.Sleep(50 * time.Millisecond) // other faults end, and give back what they have taken
			continue
		}
		f.stopped(m)
		f.started(m)
		f.give(m)
		left = slices.DeleteFunc(left, func(o *member) bool { return o == m })
	}
	return true
}

// reload has a node take a new certificate.
func (f *faults) reload(rng *rand.Rand, _ time.Duration) bool {
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	before := f.certificate(m)
	if err := f.tr.namespaced(f.tr.hosts[m], "ca", "issue", "node", m.name, "--host", f.tr.hosts[m].addr.String(), "--ca", f.tr.path("ca"), "--out", f.tr.path("tls"), "--force"); err != nil {
		f.tr.t.Error(err)
		return false
	}
	if err := m.proc.Signal(syscall.SIGHUP); err != nil {
		f.tr.t.Error(err)
	}
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) { // until it shows it
		if after := f.certificate(m); before != "" && after != "" && after != before {
			return true
		}
	}
	return false
}

// certificate is the number of the one that a node shows, empty if nobody can be reached there now.
func (f *faults) certificate(m *member) string {
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), time.Second)
	defer cancel()
	h := f.tr.hosts[m]
	conn, err := h.dial(ctx, "tcp", h.at(7950))
	if err != nil {
		return ""
	}
	defer conn.Close()
	session := tls.Client(conn, f.tr.config(h, "reload", replica.Full).TLS)
	if err := session.HandshakeContext(ctx); err != nil {
		return ""
	}
	return session.ConnectionState().PeerCertificates[0].SerialNumber.String()
}

// gossipKey puts another key into use on all nodes; the old one stays. What does not reach all nodes because they are away is taken back.
func (f *faults) gossipKey(rng *rand.Rand, hold time.Duration) bool {
	m := f.take(rng)
	if m == nil {
		return false
	}
	defer f.give(m)
	change := func(req *revokdv1.GossipKeysRequest) (ids []string, all bool) {
		ctx, cancel := context.WithTimeout(f.tr.t.Context(), 5*time.Second)
		defer cancel()
		res, err := m.adm.GossipKeys(ctx, connect.NewRequest(req))
		if err != nil {
			return nil, false
		}
		all = true
		for _, n := range res.Msg.GetNodes() {
			if n.GetError() != "" {
				all = false
			}
			if n.GetNode() == m.name {
				ids = n.GetIds()
			}
		}
		return ids, all && len(res.Msg.GetNodes()) == len(f.tr.nodes)
	}
	before, all := change(&revokdv1.GossipKeysRequest{})
	if !all || len(before) != 1 {
		return false
	}
	now, all := change(&revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Install{Install: base64.StdEncoding.EncodeToString(random(32))}})
	added := slices.DeleteFunc(slices.Clone(now), func(id string) bool { return id == before[0] })
	if len(added) != 1 {
		return false
	}
	if !all {
		for _, n := range f.tr.nodes { // each by itself: while one is away it is refused for all
			ctx, cancel := context.WithTimeout(f.tr.t.Context(), 5*time.Second)
			_, _ = n.adm.GossipKeys(ctx, connect.NewRequest(&revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Remove{Remove: added[0]}, Local: true})) // it may be away, or not have it
			cancel()
		}
		return false
	}
	_, used := change(&revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Use{Use: added[0]}})
	if !used {
		change(&revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Use{Use: before[0]}})
		return false
	}
	return true // both stay: the old one is in the files that the nodes are started with
}

// stalled is a connection that reads nothing any more once it is told to.
type stalled struct {
	net.Conn
	stop *atomic.Bool
}

func (s stalled) Read(b []byte) (int, error) {
	for s.stop.Load() {
		time.Sleep(10 * time.Millisecond) // it does not read
	}
	return s.Conn.Read(b)
}

// slowSubscriber is a replica that takes nothing any more while there is much to send.
func (f *faults) slowSubscriber(rng *rand.Rand, hold time.Duration) bool {
	e := f.tr.clients[rng.IntN(len(f.tr.clients))]
	cfg := f.tr.config(e.host, "slow", replica.Full)
	var stop atomic.Bool
	dial := cfg.Dial
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		return stalled{c, &stop}, err
	}
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), hold)
	defer cancel()
	c, err := replica.Open(ctx, cfg)
	if err != nil {
		return false
	}
	ready := c.Ready(ctx)
	stop.Store(true)
	<-ctx.Done()
	stop.Store(false)
	return errors.Join(ready, c.Close()) == nil
}

// flood opens connections to all ports of a node and sends noise or nothing.
func (f *faults) flood(rng *rand.Rand, hold time.Duration) bool {
	nodes, clients := f.shuffled(rng)
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), hold)
	defer cancel()
	var opened atomic.Int64
	var running sync.WaitGroup
	for i := range 20 {
		running.Go(func() {
			for ctx.Err() == nil {
				conn, err := clients[0].dial(ctx, "tcp", nodes[0].at([]uint16{7950, 7956}[i%2]))
				if err != nil {
					continue
				}
				opened.Add(1)
				if i < 10 {
					noise(conn)
				} else {
					<-ctx.Done() // it says nothing
					_ = conn.Close()
				}
			}
		})
	}
	running.Wait()
	return opened.Load() > 100
}

// logouts revokes twenty thousand tokens of one account.
func (f *faults) logouts(rng *rand.Rand, hold time.Duration) bool {
	m := f.tr.nodes[rng.IntN(len(f.tr.nodes))]
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), max(hold, 5*time.Second))
	defer cancel()
	s := m.api.RevokeStream(ctx)
	run := rng.Uint64()
	go func() {
		defer func() { _ = s.CloseRequest() }() // Receive says what was wrong
		for i := range 20 {
			req := &revokdv1.RevokeStreamRequest{}
			if i == 0 {
				req.Options = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL}
			}
			for k := range 1000 {
				req.Items = append(req.Items, &revokdv1.RevokeRequest{ExpiresAt: inAnHour(), Target: &revokdv1.RevokeRequest_Match{
					Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "sub": "victim", "jti": fmt.Sprint("logout-", run, "-", i*1000+k)}},
				}})
			}
			if s.Send(req) != nil {
				return
			}
		}
	}()
	for acked := int64(0); ; {
		res, err := s.Receive()
		if err != nil {
			_ = s.CloseResponse() // it has ended
			return acked > 1000
		}
		acked = res.GetAcknowledged()
	}
}

// reconnects has thirty replicas come and go at once.
func (f *faults) reconnects(rng *rand.Rand, hold time.Duration) bool {
	e := f.tr.clients[rng.IntN(len(f.tr.clients))]
	ctx, cancel := context.WithTimeout(f.tr.t.Context(), hold)
	defer cancel()
	var came atomic.Int64
	var running sync.WaitGroup
	for i := range 30 {
		running.Go(func() {
			c, err := replica.Open(ctx, f.tr.config(e.host, fmt.Sprint("crowd-", i), replica.Full))
			if err != nil {
				return
			}
			if c.Ready(ctx) == nil {
				came.Add(1)
			}
			if err := c.Close(); err != nil {
				f.tr.t.Error(err)
			}
		})
	}
	running.Wait()
	return came.Load() > 0
}

// round lets faults happen for so long, half of them at the same time as others.
func (f *faults) round(rng *rand.Rand, cards []int, lasts time.Duration) {
	var running sync.WaitGroup
	var mu sync.Mutex
	var words []string
	for _, c := range cards {
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		begins := time.Duration(rng.Int64N(int64(lasts / 2)))
		hold := time.Second + time.Duration(rng.Int64N(int64(lasts-begins-time.Second)))
		running.Go(func() {
			time.Sleep(begins) // its place in the round
			effective := deck[c].fault(f, own, hold)
			mu.Lock()
			defer mu.Unlock()
			word := deck[c].name
			if effective {
				f.tr.judge.Fault(word)
			} else {
				word = "(" + word + ")"
			}
			words = append(words, word)
		})
	}
	running.Wait()
	f.tr.t.Logf("%s: %s", f.tr.judge.Now().Round(time.Second), strings.Join(words, ", "))
}

// tail returns the end of a log.
func tail(log string) string { return log[max(0, len(log)-6000):] }

func readAll(res *http.Response) (string, error) {
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// TestNemesis: whatever goes wrong at once in a cluster under load, no promise is broken. Rounds of faults are followed by calm, in which everything must be whole again.
// REVOKD_NEMESIS_ROUNDS says how many (default 2), REVOKD_NEMESIS_NODES of how many nodes (3), REVOKD_NEMESIS_SEED which faults (random), REVOKD_NEMESIS_RATE how many records a second
// are written in bulk (2000), REVOKD_NEMESIS_ONLY which faults of the deck, separated by commas (all). From 8 rounds on, a run with too few of something is invalid.
func TestNemesis(t *testing.T) {
	seed := uint64(fromEnv(t, "REVOKD_NEMESIS_SEED", int(time.Now().UnixNano())))
	rounds, nodes, rate := fromEnv(t, "REVOKD_NEMESIS_ROUNDS", 2), fromEnv(t, "REVOKD_NEMESIS_NODES", 3), fromEnv(t, "REVOKD_NEMESIS_RATE", 2000)
	only := os.Getenv("REVOKD_NEMESIS_ONLY")
	t.Logf("REVOKD_NEMESIS_SEED=%d REVOKD_NEMESIS_ROUNDS=%d REVOKD_NEMESIS_NODES=%d REVOKD_NEMESIS_RATE=%d", seed, rounds, nodes, rate)
	noLeaks(t)
	behind := afterStart
	if only == "" || strings.Contains(only, "clock") {
		behind = -slices.Min(shifts)
	}
	tr := newTrial(t, nodes, "faults", seed, behind)
	tr.next = program(t, nextTags)
	rng := rand.New(rand.NewPCG(seed, 0))
	tr.start(rate)
	defer func() {
		if t.Failed() {
			for _, m := range tr.running() {
				t.Logf("%s:\n%s", m.name, tail(m.proc.Stderr()))
			}
		}
	}()
	defer tr.end()
	time.Sleep(2 * time.Second) // load before the first fault
	tr.settle("0", rng)
	base := tr.footprints()
	var cards []int
	for round := range rounds {
		n := 3 + rng.IntN(6)
		for len(cards) < n {
			for c := range deck {
				for range deck[c].times {
					if only == "" || slices.Contains(strings.Split(only, ","), deck[c].name) {
						cards = append(cards, c)
					}
				}
			}
			rng.Shuffle(len(cards), func(i, j int) { cards[i], cards[j] = cards[j], cards[i] })
		}
		tr.round(rng, cards[:n], 10*time.Second)
		cards = cards[n:]
		tr.settle(fmt.Sprint(round+1), rng)
		tr.faults.mu.Lock()
		tr.lossy = false
		tr.faults.mu.Unlock()
		for _, m := range tr.nodes {
			tr.within(m, tr.footprint(m))
		}
		tr.back(base)
		if violations := tr.judge.Violations(); len(violations) > 0 || t.Failed() {
			break
		}
	}
	tr.end()
	tr.settle("end", rng)
	tr.mu.RLock()
	all := slices.Clone(tr.marks)
	tr.mu.RUnlock()
	tr.final(all)
	tr.back(base)
	c := tr.judge.Counts()
	for _, v := range tr.judge.Violations() {
		t.Error(v)
	}
	if len(c.Broken) > 0 {
		t.Errorf("broken promises: %v", c.Broken)
	}
	t.Logf("%d revocations acknowledged by a majority, %d unsure, %d refused; %d checks, %d unknown, %d could have shown a loss; faults %v",
		c.Acknowledged, c.Unsure, c.Refused, c.Checks, c.Unknown, c.Judged, kinds(c.Faults))
	t.Logf("what a majority had acknowledged was still called active for p50 %s, p95 %s, p99 %s, p99.9 %s, at most %s, while nodes and links failed", c.Delay.P50, c.Delay.P95, c.Delay.P99, c.Delay.P999, c.Delay.Max)
	saved(t, history.Report{Seed: seed, Nodes: nodes, Rounds: rounds, Seconds: int(tr.judge.Now().Seconds()), Counts: c})
	tr.dumps(-1)
	gate := history.Gate{Acknowledged: 1000 * int64(rounds), Checks: 100_000 * int64(rounds), Judged: 10_000 * int64(rounds)}
	if rounds >= 8 && only == "" {
		gate.Faults = map[string]int{"kill": rounds / 4, "pause": rounds / 3, "partition/isolate": 1, "partition/oneway": 1, "clock": rounds / 6, "disk": rounds / 6}
	}
	if err := c.Valid(gate); err != nil {
		t.Error(err)
	}
}

// kinds lists counts in order.
func kinds(counts map[string]int) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(&b, "%s %d, ", name, counts[name])
	}
	return strings.TrimSuffix(b.String(), ", ")
}

// back waits until the nodes together have as many goroutines as at the beginning, and as many open files but for those that their journals have made since: clients and streams
// may be at other nodes than then.
func (tr *trial) back(base footprint) {
	tr.t.Helper()
	tr.until("the nodes use as much as at the beginning", func() error {
		if u := tr.footprints(); u.goroutines > base.goroutines*21/20+30 || u.files > base.files+150 {
			return fmt.Errorf("%d goroutines, %d at the beginning; %d open files, %d at the beginning", u.goroutines, base.goroutines, u.files, base.files)
		}
		return nil
	})
}

// within fails if a node uses more memory than the manual says.
func (tr *trial) within(m *member, u footprint) {
	tr.t.Helper()
	if limit := memoryLimit(u.records, 100*128<<10); u.rss > limit {
		tr.t.Errorf("%s uses %d bytes for %d records, limit %d", m.name, u.rss, u.records, limit)
	}
}

// memoryLimit is what a node may use (docs/operations.md): 60 bytes for each record, twice that for a part of the table while it grows, 64 MiB for requests, so much for
// connections, and the program; and half as much again, which the garbage collector may leave.
func memoryLimit(records, connections int64) int64 {
	const program = 64 << 20
	return 3 * (2*60*records + 64<<20 + connections + program) / 2
}
