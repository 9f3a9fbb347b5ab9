package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// pipe is one end of a stream in memory.
type pipe struct {
	in     <-chan []byte
	out    chan<- []byte
	closed chan struct{}
	once   *sync.Once
}

func newPipe() (a, b *pipe) {
	ab, ba, closed, once := make(chan []byte, 16), make(chan []byte, 16), make(chan struct{}), new(sync.Once)
	return &pipe{ba, ab, closed, once}, &pipe{ab, ba, closed, once}
}

func (p *pipe) Send(b []byte) error {
	select {
	case p.out <- append([]byte{}, b...):
		return nil
	case <-p.closed:
		return io.ErrClosedPipe
	}
}

func (p *pipe) Receive() ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

func (p *pipe) Close() { p.once.Do(func() { close(p.closed) }) }

// mesh is a cluster in one process.
type mesh struct {
	t     testing.TB
	names []string
	wrap  func(node, peer string, s Stream) Stream // nil: none
	// voting: the nodes agree on the voters by themselves; else all are.
	voting bool
	nodes  map[string]*Node
	stops  map[string]func()
	mu     sync.Mutex
	links  map[string]func()
	wg     sync.WaitGroup
}

func newMesh(t testing.TB, cfg Config, names ...string) *mesh {
	return newWrapped(t, cfg, nil, names...)
}

// newWrapped is newMesh with something around each end of each stream.
func newWrapped(t testing.TB, cfg Config, wrap func(node, peer string, s Stream) Stream, names ...string) *mesh {
	m := &mesh{t: t, names: names, wrap: wrap, nodes: map[string]*Node{}, stops: map[string]func(){}, links: map[string]func(){}}
	for _, name := range names {
		c := cfg
		c.Name, c.Cluster = name, &ClusterConfig{}
		if c.Durability == DurabilityDisk {
			c.Dir = t.TempDir()
		}
		m.start(name, c)
	}
	for i, a := range names {
		for _, b := range names[i+1:] {
			m.link(a, b)
		}
	}
	t.Cleanup(func() {
		for _, name := range names {
			m.stops[name]()
		}
		m.wg.Wait()
	})
	return m
}

func (m *mesh) start(name string, c Config) {
	n, err := New(c)
	if err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(m.t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	m.nodes[name] = n
	m.stops[name] = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
		if err := n.Close(); err != nil {
			m.t.Error(err)
		}
	})
	if !m.voting {
		n.setVoters(replication.Voters{Number: 1, Hash: 7, Names: m.names}, true)
	}
	m.until("replayed", func() bool { return n.replayed.Load() })
}

func (m *mesh) link(a, b string) {
	p, q := newPipe()
	m.mu.Lock()
	m.links[a+b] = p.Close
	m.mu.Unlock()
	var x, y Stream = p, q
	if m.wrap != nil {
		x, y = m.wrap(a, b, x), m.wrap(b, a, y)
	}
	na, nb := m.nodes[a], m.nodes[b]
	m.wg.Go(func() { _ = na.Session(m.t.Context(), x, SessionPeer{Name: b, Dialed: true}) })
	m.wg.Go(func() { _ = nb.Session(m.t.Context(), y, SessionPeer{Name: a}) })
}

func (m *mesh) until(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			for name, n := range m.nodes {
				m.t.Logf("%s: ready %v, %+v, %+v", name, n.Ready(), n.Status().Replication, n.Peers())
			}
			m.t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond) // between polls
	}
}

func (m *mesh) ready() {
	m.t.Helper()
	for _, name := range m.names {
		m.until(name+" is ready", func() bool { return len(m.nodes[name].Ready()) == 0 })
	}
}

func claimsAt(t testing.TB, iat time.Time, jti string) *revocation.Claims {
	t.Helper()
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","jti":%q,"iat":%d,"exp":%d}`, jti, iat.Unix(), iat.Add(time.Hour).Unix()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReplication(t *testing.T) {
	for _, durability := range []Durability{DurabilityMemory, DurabilityDisk} {
		t.Run(durability.String(), func(t *testing.T) {
			m := newMesh(t, Config{Durability: durability, Key: revocation.Key{1}}, "a", "b", "c")
			m.ready()
			now := time.Now()
			for i := range 200 {
				name := m.names[i%3]
				r := revocation.Request{Match: match(t, fmt.Sprint("iss=i,jti=", i)), ExpiresAt: now.Add(time.Hour).UnixMilli()}
				_, receipt, err := m.nodes[name].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckAll})
				if err != nil || receipt.Ack != AckAll || len(receipt.Confirmed) != 3 {
					t.Fatalf("%d: %+v %v", i, receipt, err)
				}
				for _, other := range m.names {
					c := claimsAt(t, now, fmt.Sprint(i))
					if v := m.nodes[other].Check(c); v.Status != revocation.Revoked {
						t.Fatalf("%d is %v on %s", i, v, other)
					}
				}
			}
			for _, name := range m.names {
				if v := m.nodes[name].CheckFresh(claimsAt(t, now, "x"), CheckOptions{Freshness: FreshnessAll}); v.Status != revocation.Active {
					t.Fatalf("%s: %+v", name, v)
				}
			}
		})
	}
}

// A minority cannot acknowledge at quorum, says so, and its view grows old; what it wrote arrives when the link is back.
func TestMinority(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}, ProbeEvery: 20 * time.Millisecond}, "a", "b", "c")
	m.ready()
	now := time.Now()
	m.links["ab"]()
	m.links["ac"]()
	r := revocation.Request{Match: match(t, "iss=i,jti=lonely"), ExpiresAt: now.Add(time.Hour).UnixMilli()}
	results, receipt, err := m.nodes["a"].Write(t.Context(), []revocation.Request{r}, WriteOptions{AckTimeout: 50 * time.Millisecond})
	if !errors.Is(err, ErrAck) || results[0].Outcome != OutcomeRevoked || receipt.Ack != AckLocal || len(receipt.Unconfirmed) != 2 {
		t.Fatalf("%+v %+v %v", results, receipt, err)
	}
	fresh := CheckOptions{MaxStaleness: 100 * time.Millisecond}
	c := claimsAt(t, now, "other")
	m.until("a's view grows old", func() bool { return m.nodes["a"].CheckFresh(c, fresh).Cause == revocation.CauseStale })
	m.until("the majority's view is fresh", func() bool { return m.nodes["b"].CheckFresh(c, fresh).Status == revocation.Active })
	m.link("a", "b")
	c = claimsAt(t, now, "lonely")
	m.until("c learns it through b", func() bool { return m.nodes["c"].Check(c).Status == revocation.Revoked })
	m.until("a's view is fresh", func() bool { return m.nodes["a"].CheckFresh(claimsAt(t, now, "j1"), fresh).Status == revocation.Active })
}

// movedClock is a clock whose wall hand is moved by hand.
type movedClock struct {
	clock.Clock
	by atomic.Int64
}

func (c *movedClock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.by.Load())) }

// A machine that was stopped by its host, so that its monotonic clock stood still, does not take its view for fresh.
func TestStoppedMachine(t *testing.T) {
	clk := &movedClock{Clock: clock.System()}
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}, ProbeEvery: 20 * time.Millisecond, Clock: clk}, "a", "b", "c")
	m.ready()
	now := time.Now()
	c := claimsAt(t, now, "x")
	a := m.nodes["a"]
	m.until("a's view is fresh", func() bool { return a.Check(c).Status == revocation.Active })
	m.links["ab"]()
	m.links["ac"]()
	m.until("a is alone", func() bool { return !a.replica.connected("b") && !a.replica.connected("c") })
	if v := a.Check(c); v.Status != revocation.Active {
		t.Fatalf("within MaxStaleness: %+v", v)
	}
	guarded := a.Now()
	clk.by.Store(int64(31 * time.Second))
	m.until("a's view is old", func() bool { v := a.Check(c); return v.Cause == revocation.CauseStale && v.Age > 30*time.Second })
	if s := a.Status(); s.QuorumAge < 30*time.Second || a.Now()-guarded > 10_000 {
		t.Errorf("the view is %s old, and %d ms have passed for what expires", s.QuorumAge, a.Now()-guarded)
	}
	m.link("a", "b")
	m.until("a's view is fresh", func() bool { return a.Check(c).Status == revocation.Active })
}

// Cutoffs that were moved on several nodes at once join to content that nobody wrote; it gets a name and is the same everywhere.
func TestJoinedContent(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}}, "a", "b", "c")
	m.ready()
	now := time.Now()
	var wg sync.WaitGroup
	for i, name := range m.names {
		wg.Go(func() {
			for j := range 50 {
				r := revocation.Request{
					Match: match(t, fmt.Sprint("iss=i,sub=", j)), Cutoff: true,
					IssuedBefore: now.Add(-time.Duration(i*7+j%5) * time.Second).UnixMilli(), ExpiresAt: now.Add(25*time.Hour + time.Duration(i)*time.Minute).UnixMilli(),
				}
				if _, _, err := m.nodes[name].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckLocal}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	m.until("all have the same", func() bool {
		var all []map[revocation.Record]bool
		for _, name := range m.names {
			set := map[revocation.Record]bool{}
			n := m.nodes[name]
			unnamed := false
			n.table.Range(revocation.Fingerprint{}, n.Now(), func(r revocation.Record, dot uint64) bool {
				set[r] = true
				unnamed = unnamed || dot == 0
				return true
			})
			if len(set) != 50 || unnamed {
				return false
			}
			all = append(all, set)
		}
		for r := range all[0] {
			if !all[1][r] || !all[2][r] {
				return false
			}
		}
		return true
	})
}

// The sums of an audit are over all of a record: a cutoff that lies higher on one node, though both have it under one name, comes to the other one.
func TestAuditSumsCutoffs(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}, AuditEvery: 20 * time.Millisecond}, "a", "b")
	m.ready()
	a, b := m.nodes["a"], m.nodes["b"]
	r := revocation.Request{Match: match(t, "iss=i,sub=u"), Cutoff: true, IssuedBefore: time.Now().Add(-2 * time.Hour).UnixMilli()}
	if _, _, err := a.Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckAll}); err != nil {
		t.Fatal(err)
	}
	var rec revocation.Record
	var dot uint64
	a.table.Range(revocation.Fingerprint{}, a.Now(), func(r revocation.Record, d uint64) bool {
		rec, dot = r, d
		return false
	})
	rec.Value += time.Hour.Milliseconds()
	if d, err := a.table.Merge(rec, dot, a.Now(), false); err != nil || !d.Changed {
		t.Fatalf("%+v, %v", d, err)
	}
	m.until("b has the higher cutoff", func() bool { held, _, ok := b.table.Held(rec, b.Now()); return ok && held.Value == rec.Value })
}

// A journal that was repaired lacks records that its vector covers: they are fetched anew.
func TestRepairedNode(t *testing.T) {
	m := newMesh(t, Config{Key: revocation.Key{1}}, "a", "b")
	m.ready()
	now := time.Now()
	write := func(name, jti string) {
		t.Helper()
		r := revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: now.Add(time.Hour).UnixMilli()}
		if _, _, err := m.nodes[name].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckAll}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		write("a", fmt.Sprint("x", i))
		write("b", fmt.Sprint("y", i))
	}
	// And something that nobody can bring back now.
	lost := &journal.Batch{Meta: []journal.Meta{
		{Key: originKey(77), Value: appendOrigin(nil, replication.Origin{ID: 77, Node: "gone"})}, {Key: vectorKey(77), Value: []byte{0, 0, 0, 0, 0, 0, 0, 9}},
	}}
	if err := m.nodes["b"].journal.Append(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	m.stops["b"]()
	if report := damage(t, m.nodes["b"].cfg.Dir, 0.5); report.Kept >= 100 {
		t.Fatalf("%+v", report)
	}
	cfg := m.nodes["b"].cfg
	m.start("b", cfg)
	m.link("a", "b")
	m.ready()
	for i := range 50 {
		for _, jti := range []string{fmt.Sprint("x", i), fmt.Sprint("y", i)} {
			if v := m.nodes["b"].Check(claimsAt(t, now, jti)); v.Status != revocation.Revoked {
				t.Fatalf("%s: %+v", jti, v)
			}
		}
	}
	n := m.nodes["b"]
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.journal.Get(metaRepaired); ok {
		t.Error("the vector is never believed again")
	}
	if b, ok := n.journal.Get(vectorKey(77)); ok {
		t.Errorf("the vector on disk claims %x of what was lost", b)
	}
}

// The index of an origin that was dropped may be that of another one before a batch has said so, or after one has failed to.
func TestOriginIndexAgain(t *testing.T) {
	n, stop := runNode(t, Config{Dir: t.TempDir()})
	defer stop()
	d := &n.replica.disk
	d.add(nil, []uint32{5})
	d.add([]replication.Origin{{Index: 5, ID: 9, Node: "new"}}, nil)
	failed := d.take()
	d.add([]replication.Origin{{Index: 5, ID: 9, Node: "new", Sealed: 3}}, nil)
	d.again(failed)
	b := new(journal.Batch)
	n.bringOrigins(b)
	if len(b.Meta) != 3 || b.Meta[0].Value != nil || b.Meta[1].Key != vectorKey(5) || b.Meta[1].Value != nil {
		t.Fatalf("%q", b.Meta)
	}
	if o, err := parseOrigin(b.Meta[2].Value); err != nil || o.Sealed != 3 {
		t.Errorf("%+v %v", o, err)
	}
}

// What covers an item of a stream has to be held by as many as what it writes.
// A commit fails of which the first batch brought an origin that the second one dropped, with another one under its index.
func TestOriginIndexAgainInOneCommit(t *testing.T) {
	d := &newReplica(&Node{}).disk
	d.add([]replication.Origin{{Index: 5, ID: 50}}, nil)
	first := d.take()
	d.add(nil, []uint32{5})
	d.add([]replication.Origin{{Index: 5, ID: 52}}, nil)
	second := d.take()
	d.again(first)
	d.again(second)
	b := d.take()
	if len(b.dropped) != 1 || b.dropped[0] != 5 {
		t.Errorf("dropped %v, want 5", b.dropped)
	}
	if len(b.origins) != 1 || b.origins[0].ID != 52 {
		t.Errorf("origins %v, want only 52", b.origins)
	}
}

func TestConfirmCovered(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}}, "a", "b", "c")
	m.ready()
	m.links["ac"]()
	m.links["bc"]()
	c := claimsAt(t, time.Now(), "x")
	r := []revocation.Request{{Match: match(t, "iss=i,jti=x"), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}}
	if _, _, err := m.nodes["a"].Write(t.Context(), r, WriteOptions{Ack: AckLocal}); err != nil {
		t.Fatal(err)
	}
	b := m.nodes["b"]
	m.until("b has it", func() bool { return b.Check(c).Status == revocation.Revoked })
	results, receipt, err := b.Write(t.Context(), r, WriteOptions{Ack: AckLocal})
	if err != nil || results[0].Outcome != OutcomeCovered {
		t.Fatal(results, err)
	}
	if receipt, err = b.Confirm(t.Context(), receipt.Positions, AckQuorum, 0); err != nil || receipt.Ack != AckQuorum { // a has it
		t.Fatalf("%+v %v", receipt, err)
	}
	if receipt, err = b.Confirm(t.Context(), receipt.Positions, AckAll, 20*time.Millisecond); !errors.Is(err, ErrAck) || len(receipt.Unconfirmed) != 1 {
		t.Fatalf("%+v %v", receipt, err)
	}
	m.link("b", "c")
	if receipt, err = b.Confirm(t.Context(), receipt.Positions, AckAll, 0); err != nil || receipt.Ack != AckAll {
		t.Fatalf("%+v %v", receipt, err)
	}
}

// failingFS is a slow file system that refuses writes on demand, so many times, each when the gate is open. It is not durable.
type failingFS struct {
	fail atomic.Int32
	gate chan struct{}
}

var errInjected = errors.New("injected")

func (f *failingFS) open(name string, flag int) (journal.File, error) {
	file, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return failingFile{file, f}, nil
}

func (f *failingFS) Create(name string) (journal.File, error) {
	return f.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (f *failingFS) Open(name string, _ bool) (journal.File, error) { return f.open(name, os.O_RDWR) }

func (f *failingFS) ReadDir(name string) (names []string, err error) {
	list, err := os.ReadDir(name)
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}

func (f *failingFS) Mkdir(name string) error      { return os.Mkdir(name, 0o700) }
func (f *failingFS) Rename(from, to string) error { return os.Rename(from, to) }
func (f *failingFS) Remove(name string) error     { return os.Remove(name) }
func (f *failingFS) SyncDir(string) error         { return nil }

func (f *failingFS) Lock(name string, create bool) (journal.Lock, error) {
	if _, err := os.Stat(name); err != nil && !create {
		return nil, err
	}
	l, err := journal.LockFile(name)
	if err != nil {
		return nil, err
	}
	return l.(journal.Lock), nil
}

type failingFile struct {
	*os.File
	fs *failingFS
}

func (f failingFile) WriteAt(b []byte, at int64) (int, error) {
	if f.fs.fail.Load() > 0 && f.fs.fail.Add(-1) >= 0 {
		<-f.fs.gate
		return 0, errInjected
	}
	return f.File.WriteAt(b, at)
}

func (f failingFile) Sync() error {
	time.Sleep(5 * time.Millisecond) // so that there is always something new while it writes
	return nil
}

func (f failingFile) Linked() (bool, error) { return true, nil }
func (f failingFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// A write of the disk that fails in the midst of what a peer sends leaves no hole below the vector on disk, and is made up for while more comes.
func TestDiskRefusesPeers(t *testing.T) {
	fs := &failingFS{gate: make(chan struct{})}
	m := newMesh(t, Config{Key: revocation.Key{1}, FS: fs}, "b")
	m.names = []string{"a", "b"}
	m.start("a", Config{Name: "a", Durability: DurabilityMemory, Key: revocation.Key{1}, Cluster: &ClusterConfig{}})
	m.nodes["b"].setVoters(replication.Voters{Number: 1, Hash: 7, Names: m.names}, true)
	m.link("a", "b")
	m.ready()
	now := time.Now()
	written := 0
	put := func() {
		t.Helper()
		r := revocation.Request{Match: match(t, fmt.Sprint("iss=i,jti=", written)), ExpiresAt: now.Add(time.Hour).UnixMilli()}
		if _, _, err := m.nodes["a"].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckLocal}); err != nil {
			t.Fatal(err)
		}
		written++
		m.until("b has it in memory", func() bool {
			return m.nodes["b"].Check(claimsAt(t, now, fmt.Sprint(written-1))).Status == revocation.Revoked
		})
	}
	b := m.nodes["b"].replica
	missed := func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.missed
	}
	for range 10 {
		put()
	}
	fs.fail.Store(1)
	for range 20 { // most of them are behind the one that is refused
		put()
	}
	close(fs.gate)
	m.until("the disk refuses a batch", missed)
	m.until("it takes others", func() bool {
		s := m.nodes["b"].journal.Stats()
		return m.nodes["b"].diskError() == nil && s.QueueBatches == 0
	})
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(m.nodes["b"].cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	m.until("it is made up for", func() bool { put(); return !missed() })
	if _, _, err := m.nodes["a"].Write(t.Context(), []revocation.Request{{Match: match(t, "iss=i,jti=last"), ExpiresAt: now.Add(time.Hour).UnixMilli()}}, WriteOptions{Ack: AckAll}); err != nil {
		t.Fatal(err)
	}
	m.stops["b"]()
	for _, dir := range []string{copied, m.nodes["b"].cfg.Dir} {
		n, err := New(Config{Name: "b", Dir: dir, Key: revocation.Key{1}, Cluster: &ClusterConfig{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		claimed := uint64(0)
		for _, v := range n.replica.core.Vector() {
			claimed += v.Number
		}
		for i := range int(claimed) {
			if i < written && n.Check(claimsAt(t, now, fmt.Sprint(i))).Status != revocation.Revoked {
				t.Errorf("number %d is claimed, up to %d, but not on disk", i+1, claimed)
			}
		}
		if dir != copied && claimed != uint64(written)+1 {
			t.Errorf("%d on disk of %d", claimed, written+1)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What the journal's queue had no room for goes there even if no peer sends anything more.
func TestBacklogMovesByItself(t *testing.T) {
	n, stop := runNode(t, Config{Dir: t.TempDir()})
	defer stop()
	r := n.replica
	r.mu.Lock()
	b := newPeerBatch(&replication.JournalWrite{Token: 1, Vector: []replication.VectorEntry{{Index: 9, Number: 1}}})
	r.backlog, r.bytes = append(r.backlog, b), r.bytes+64
	r.mu.Unlock()
	deadline := time.Now().Add(20 * time.Second)
	for {
		r.mu.Lock()
		left := r.bytes
		r.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it stays")
		}
		time.Sleep(time.Millisecond) // between polls
	}
}

// While the disk is far behind, a session that ends does not wait for it, and one that goes on is not taken for silent afterwards.
func TestFarBehind(t *testing.T) {
	clk := clocktest.New(start)
	n, stop := runNode(t, Config{Clock: clk, Cluster: &ClusterConfig{StartAlone: true}})
	defer stop()
	r := n.replica
	begin := func(name string) (end func(), ended chan error) {
		a, b := newPipe()
		ctx, cancel := context.WithCancel(t.Context())
		ended = make(chan error, 1)
		go func() { ended <- n.Session(ctx, a, SessionPeer{Name: name}) }()
		if err := b.Send(nil); err != nil {
			t.Fatal(err)
		}
		return cancel, ended
	}
	r.mu.Lock()
	r.bytes = maxPeerBytes + 100
	r.mu.Unlock()
	end, ended := begin("x")
	endOther, otherEnded := begin("y")
	defer func() { endOther(); <-otherEnded }()
	for ok := false; !ok; time.Sleep(time.Millisecond) { // between polls
		ok = r.connected("x") && r.connected("y")
	}
	time.Sleep(10 * time.Millisecond) // most often the readers wait then
	end()
	<-ended
	clk.Advance(2 * silent)
	r.mu.Lock()
	r.done(&journal.Batch{Records: make([]byte, 100), User: new(peerWrite)}, nil)
	r.mu.Unlock()
	r.closeSilent()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.byName["y"]; s == nil || s.over() {
		t.Error("it was not listened to, and called silent")
	}
}

// Of a session whose peer is silent nothing is left, though its stream does not end: what is written to a cut link may wait for minutes.
func TestSilentStreamDoesNotEnd(t *testing.T) {
	clk := clocktest.New(start)
	n, stop := runNode(t, Config{Clock: clk, Cluster: &ClusterConfig{StartAlone: true}})
	defer stop()
	a, b := newPipe()
	ended := make(chan error, 1)
	go func() { ended <- n.Session(t.Context(), endless{a}, SessionPeer{Name: "x"}) }()
	if err := b.Send(nil); err != nil {
		t.Fatal(err)
	}
	for !n.replica.connected("x") {
		time.Sleep(time.Millisecond) // between polls
	}
	clk.Advance(2 * silent)
	n.replica.closeSilent()
	if n.replica.connected("x") || len(n.Peers()) > 0 {
		t.Errorf("connected to %v", n.Peers())
	}
	select {
	case err := <-ended:
		t.Error("the stream has ended:", err)
	default:
	}
	a.Close()
	if err := <-ended; !errors.Is(err, ErrSession) {
		t.Error(err)
	}
}

// endless is a stream that does not end when it is closed.
type endless struct{ Stream }

func (endless) Close() {}

// In a large cluster everybody has few sessions, all of them mutual, and one with each voter; everybody is reached in a few steps.
func TestNeighbours(t *testing.T) {
	var members []cluster.Member
	for i := range 200 {
		members = append(members, cluster.Member{Name: fmt.Sprintf("n%03d", i), Status: cluster.Alive, Meta: cluster.Meta{APIAddr: "a", State: cluster.Ready}})
	}
	members[7].Status = cluster.Dead
	members[100].Status = cluster.Dead
	config := voters.Config{Number: 1, Voters: []voters.Voter{{Name: "n003"}, {Name: "n100"}}}
	steps := map[string]int{"n000": 0}
	for queue := []string{"n000"}; len(queue) > 0; queue = queue[1:] {
		list := neighbours(members, config, queue[0])
		if len(list) > 20 && queue[0] != "n003" && queue[0] != "n100" {
			t.Fatalf("%s has %d sessions", queue[0], len(list))
		}
		if queue[0] != "n003" && list["n003"] == "" || queue[0] != "n100" && list["n100"] == "" {
			t.Fatalf("%s has no session with a voter", queue[0])
		}
		for name := range list {
			if neighbours(members, config, name)[queue[0]] == "" {
				t.Fatalf("%s wants %s and not the other way round", queue[0], name)
			}
			if _, seen := steps[name]; !seen {
				steps[name] = steps[queue[0]] + 1
				queue = append(queue, name)
			}
		}
	}
	for name, n := range steps {
		if n > 3 {
			t.Fatalf("%s is %d steps away", name, n)
		}
	}
	if len(steps) != 199 {
		t.Fatalf("%d members are reached, want all but the dead one that does not vote", len(steps))
	}
	if list := neighbours(members[:10], voters.Config{}, "n001"); len(list) != 8 {
		t.Fatalf("a small cluster: %d sessions", len(list))
	}
}

// What a peer sent and the disk does not have yet covers a write, and does not acknowledge it.
func TestCoveredByMemory(t *testing.T) {
	fs := &failingFS{gate: make(chan struct{})}
	m := newMesh(t, Config{Key: revocation.Key{1}, FS: fs}, "b")
	m.names = []string{"a", "b"}
	m.start("a", Config{Name: "a", Durability: DurabilityMemory, Key: revocation.Key{1}, Cluster: &ClusterConfig{}})
	m.link("a", "b")
	m.ready()
	fs.fail.Store(1)
	r := []revocation.Request{{Match: match(t, "iss=i,jti=x"), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}}
	if _, _, err := m.nodes["a"].Write(t.Context(), r, WriteOptions{Ack: AckLocal}); err != nil {
		t.Fatal(err)
	}
	c := claimsAt(t, time.Now(), "x")
	m.until("b has it in memory", func() bool { return m.nodes["b"].Check(c).Status == revocation.Revoked })
	results, _, err := m.nodes["b"].Write(t.Context(), r, WriteOptions{Ack: AckLocal, AckTimeout: 20 * time.Millisecond})
	close(fs.gate)
	if !errors.Is(err, ErrAck) || results[0].Outcome != OutcomeCovered {
		t.Fatalf("%+v %v", results, err)
	}
	if _, _, err := m.nodes["b"].Write(t.Context(), r, WriteOptions{Ack: AckLocal}); err != nil { // the disk has been brought up to memory
		t.Fatal(err)
	}
}

// aheadClock is a wall clock that is ahead.
type aheadClock struct{ clock.Clock }

func (c aheadClock) Now() time.Time { return c.Clock.Now().Add(20 * time.Second) }

// A block wins over an earlier unblock of a node whose clock is ahead: the later call gets the later stamp.
func TestBlockBehindSkew(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}}, "b")
	m.names = []string{"a", "b"}
	cfg := Config{Name: "a", Durability: DurabilityMemory, Key: revocation.Key{1}, Clock: aheadClock{clock.System()}, Cluster: &ClusterConfig{}}
	m.start("a", cfg)
	m.nodes["b"].setVoters(replication.Voters{Number: 1, Hash: 7, Names: m.names}, true)
	m.link("a", "b")
	m.ready()
	m.links["ab"]()
	m.until("they are apart", func() bool { return !m.nodes["a"].replica.connected("b") && !m.nodes["b"].replica.connected("a") })
	request := func(a revocation.Action) []revocation.Request {
		return []revocation.Request{{Match: match(t, "iss=i,sub=alice"), Action: a}}
	}
	if _, _, err := m.nodes["a"].Write(t.Context(), request(revocation.Unblock), WriteOptions{Ack: AckLocal}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, _, err := m.nodes["b"].Write(t.Context(), request(revocation.Block), WriteOptions{Ack: AckAll, AckTimeout: 20 * time.Second})
		done <- err
	}()
	m.until("it is blocked on b", func() bool { return m.nodes["b"].Check(token(t, time.Now(), "")).Status == revocation.Revoked })
	m.link("a", "b")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for _, name := range m.names {
		if v := m.nodes[name].Check(token(t, time.Now(), "")); v.Status != revocation.Revoked {
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// damage repairs a stopped node's journal of whose last file one frame was damaged, the one behind a part of its length.
func damage(t *testing.T, dir string, part float64) RepairReport {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[int(float64(len(b))*part)] ^= 0x10
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	report, err := RepairJournal(t.Context(), dir, time.Now())
	if err != nil || !report.Repaired {
		t.Fatalf("%+v %v", report, err)
	}
	return report
}

// What a repaired node wrote itself and nobody else has is not claimed as a whole, in that run and later ones, and what is left of it reaches the others.
func TestRepairedNodeWroteMore(t *testing.T) {
	m := newMesh(t, Config{Key: revocation.Key{1}}, "a", "b")
	m.ready()
	now := time.Now()
	write := func(jti string, level Ack) {
		t.Helper()
		r := revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: now.Add(time.Hour).UnixMilli()}
		if _, _, err := m.nodes["b"].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: level}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 20 {
		write(fmt.Sprint("y", i), AckAll)
	}
	m.links["ab"]()
	for i := range 60 {
		write(fmt.Sprint("z", i), AckLocal)
	}
	b := m.nodes["b"]
	id := b.replica.core.OriginOf(replication.Dot(b.replica.core.Own()[0]))
	m.stops["b"]()
	if report := damage(t, b.cfg.Dir, 0.7); report.Kept >= 80 || report.Kept < 60 {
		t.Fatalf("%+v", report)
	}
	left := map[string]int{}
	for run := range 3 {
		m.start("b", b.cfg)
		n := m.nodes["b"]
		m.link("a", "b")
		m.ready()
		if err := n.keepHouse(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok := n.journal.Get(metaRepaired); ok {
			t.Fatal("the journal is never believed again")
		}
		for i := range 60 {
			if n.Check(claimsAt(t, now, fmt.Sprint("z", i))).Status == revocation.Revoked {
				left["b"]++
			}
		}
		if run == 0 && (left["b"] == 60 || left["b"] < 40) {
			t.Fatalf("the repair has left %d", left["b"])
		}
		m.until("a has what was left", func() bool {
			left["a"] = 0
			for i := range 60 {
				if m.nodes["a"].Check(claimsAt(t, now, fmt.Sprint("z", i))).Status == revocation.Revoked {
					left["a"]++
				}
			}
			return left["a"] == left["b"]/(run+1)
		})
		n.replica.mu.Lock()
		d, ok := n.replica.core.DotOf(id, 21)
		if !ok || n.replica.core.Durable(d) {
			t.Errorf("run %d claims what was lost", run)
		}
		reissued := n.replica.core.Stats().Reissued
		n.replica.mu.Unlock()
		n.table.Range(revocation.Fingerprint{}, n.Now(), func(_ revocation.Record, dot uint64) bool {
			if replication.Dot(dot).Index() == d.Index() && replication.Dot(dot) >= d {
				t.Errorf("run %d: number %d is still a name", run, replication.Dot(dot).Number())
			}
			return true
		})
		if run > 0 && reissued > 0 {
			t.Errorf("run %d writes %d records again that have a name", run, reissued)
		}
		m.stops["b"]()
	}
}

// The names that somebody else has used say nothing after a restart either, and what this node wrote under them has others.
func TestFencedAcrossRestart(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	rec := n.table.Record(must(n.table.Plan(deny(t, "j1"), n.Now(), n.Now())).Main())
	write(t, n, deny(t, "j1"))
	n.replica.mu.Lock()
	own, origin := n.replica.core.Own()[0], n.replica.core.Origins()[0]
	n.replica.mu.Unlock()
	origin.Fenced = true
	n.replica.disk.add([]replication.Origin{origin}, nil)
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	for run := range 3 {
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		wantStatus(t, n, token(t, start, ""), revocation.Revoked)
		n.replica.mu.Lock()
		if d, ok := n.replica.core.DotOf(origin.ID, 1); !ok || n.replica.core.Durable(d) {
			t.Errorf("run %d claims the numbers of somebody else", run)
		}
		n.replica.mu.Unlock()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // until it has another name
			if _, dot, _ := n.table.Held(rec, n.Now()); dot != 0 {
				if replication.Dot(dot).Index() == own.Index() {
					t.Errorf("run %d: the name is still %d:%d", run, own.Index(), own.Number())
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it never gets a name")
			}
			clk.Advance(time.Millisecond)
			n.replica.step(replication.Tick{})
		}
		stop()
	}
}

// stepped is a wall clock that can be stepped.
type stepped struct {
	clock.Clock
	by, passed atomic.Int64 // what the wall clock was stepped by, and the time that has passed in no time
}

func (c *stepped) Now() time.Time {
	return c.Clock.Now().Add(time.Duration(c.by.Load() + c.passed.Load()))
}
func (c *stepped) Mono() time.Duration { return c.Clock.Mono() + time.Duration(c.passed.Load()) }

// withStepped is a mesh of three whose first node has that clock.
func withStepped(t *testing.T, c *stepped) *mesh {
	t.Helper()
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}}, "b", "c")
	m.names = []string{"a", "b", "c"}
	m.start("a", Config{Name: "a", Durability: DurabilityMemory, Key: revocation.Key{1}, Clock: c, Cluster: &ClusterConfig{}})
	for _, other := range []string{"b", "c"} {
		m.nodes[other].setVoters(replication.Voters{Number: 1, Hash: 7, Names: m.names}, true)
		m.link("a", other)
	}
	m.ready()
	return m
}

// A node whose wall clock has jumped takes revocations that state their own times, and the others take them from it; it takes records of others, whatever it
// thinks of their times, for as long as its clock is off from theirs.
func TestWriteAfterJump(t *testing.T) {
	for _, jump := range []time.Duration{2 * time.Hour, -2 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			c := &stepped{Clock: clock.System()}
			m := withStepped(t, c)
			write := func(node, jti string) {
				t.Helper()
				r := []revocation.Request{{Match: match(t, "iss=i,jti="+jti), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}}
				if results, receipt, err := m.nodes[node].Write(t.Context(), r, WriteOptions{Ack: AckAll, AckTimeout: 10 * time.Second}); err != nil || results[0].Err != nil {
					t.Fatalf("%s: %+v %+v %v", node, results, receipt, err)
				}
			}
			m.until("the others believe their clocks", func() bool { return m.nodes["b"].clockOK.Load() && m.nodes["c"].clockOK.Load() })
			c.by.Store(int64(jump))
			write("a", "1")
			m.until("a knows that its clock is off", m.nodes["a"].members.refuses.Load)
			write("b", "2")
		})
	}
}

// A node whose wall clock has jumped and that nobody tells so, because it is cut off, goes on dating what it takes as before, however long ago that was.
func TestWriteAfterJumpAlone(t *testing.T) {
	c := &stepped{Clock: clock.System()}
	m := withStepped(t, c)
	a := m.nodes["a"]
	m.until("a believes its clock", a.clockOK.Load)
	m.links["ab"]()
	m.links["ac"]()
	m.until("a is alone", func() bool { return !a.replica.connected("b") && !a.replica.connected("c") })
	c.by.Store(int64(2 * time.Hour))
	a.tick()
	c.passed.Store(int64(2 * time.Minute))
	r := revocation.Request{Match: match(t, "iss=i,jti=1"), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}
	plan, err := a.plan(r, a.tick())
	if err != nil {
		t.Fatal(err)
	}
	if ahead := time.Until(time.UnixMilli(plan.Main().Value)); ahead > revocation.MaxAheadAbsolute+2*time.Minute {
		t.Errorf("dated %s ahead", ahead)
	}
	refused := func() {
		t.Helper()
		_, err := a.plan(revocation.Request{Match: match(t, "iss=i,sub=alice")}, a.tick())
		if state := a.Status().Clock; !errors.Is(err, ErrClock) || !strings.Contains(state, "jumped") || !strings.Contains(err.Error(), state) {
			t.Errorf("a cutoff by a clock that nobody has confirmed: %v, and it says %q", err, state)
		}
	}
	refused()
	c.by.Store(0) // it looks right again, and may not be
	refused()
	c.passed.Store(int64(4 * time.Minute))
	refused()
}

// readyLog looks at a node at the moment at which it says that it is ready.
type readyLog struct {
	node  atomic.Pointer[Node]
	ready atomic.Bool
	alike atomic.Bool // then
}

func (l *readyLog) Write(b []byte) (int, error) {
	if n := l.node.Load(); n != nil && bytes.Contains(b, []byte(": ready: ")) {
		l.alike.Store(n.members.alike.Load())
		l.ready.Store(true)
	}
	return len(b), nil
}

// A node does not say that it is ready and then refuse writes because nobody has confirmed its clock, when somebody had.
func TestReadyWithClocks(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: testKey})
	m.names = []string{"a", "b"}
	logs := map[string]*readyLog{}
	for _, name := range m.names {
		logs[name] = &readyLog{}
		m.start(name, Config{Name: name, Durability: DurabilityMemory, Key: testKey, Cluster: &ClusterConfig{}, Logger: hclog.New(&hclog.LoggerOptions{Output: logs[name]})})
		t.Cleanup(m.stops[name])
		logs[name].node.Store(m.nodes[name])
	}
	m.link("a", "b")
	for name, l := range logs {
		m.until(name+" is ready", l.ready.Load)
		if !l.alike.Load() {
			t.Errorf("%s is ready and does not take writes", name)
		}
	}
}

// A node that has started with a wrong clock, without anything that shows it, writes nothing before it has seen the clocks of others.
func TestWriteBeforeClocksAgree(t *testing.T) {
	cutoff := []revocation.Request{{Match: match(t, "iss=i,sub=alice")}}
	c := &stepped{Clock: clock.System()}
	c.by.Store(int64(2 * time.Hour))
	m := withStepped(t, c)
	stated := revocation.Request{Match: match(t, "iss=i,jti=1"), ExpiresAt: time.Now().Add(3 * time.Hour).UnixMilli()}
	for range 20 {
		for _, r := range []revocation.Request{cutoff[0], stated} {
			results, _, err := m.nodes["a"].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckLocal})
			if !errors.Is(err, ErrClock) && !errors.Is(results[0].Err, ErrClock) {
				t.Fatalf("%+v %v", results, err)
			}
		}
	}
	if results, _, err := m.nodes["b"].Write(t.Context(), cutoff, WriteOptions{Ack: AckAll, AckTimeout: 10 * time.Second}); err != nil || results[0].Err != nil {
		t.Fatalf("a node with the right clock: %+v %v", results, err)
	}
}

// Between one clock that is ahead and one that is behind a wrong one is in the middle, and is not believed for it.
func TestJudgeClock(t *testing.T) {
	const s, h = time.Second, time.Hour
	for _, c := range []struct {
		offsets []time.Duration
		want    clockVerdict
	}{
		{[]time.Duration{0}, clockVerdict{most: true}},
		{[]time.Duration{0, 5 * h}, clockVerdict{known: true, offset: 5 * h}},
		{[]time.Duration{0, -5 * h}, clockVerdict{known: true, offset: -5 * h}},
		{[]time.Duration{0, s}, clockVerdict{known: true, offset: s, most: true}},
		{[]time.Duration{0, 0, s}, clockVerdict{true, true, 0, true}},
		{[]time.Duration{0, -2 * s, 2 * h}, clockVerdict{true, true, 0, true}},
		{[]time.Duration{0, -30 * s, 2 * h}, clockVerdict{true, true, 0, false}}, // this one is 30 s ahead, another one two hours
		{[]time.Duration{0, 2 * h, 2 * h}, clockVerdict{true, true, 2 * h, false}},
		{[]time.Duration{0, 0, 2 * h, 2 * h}, clockVerdict{true, true, 0, false}},
		{[]time.Duration{0, s, -s, 2 * h, -2 * h}, clockVerdict{true, true, 0, true}},
	} {
		if got := judgeClock(slices.Clone(c.offsets)); got != c.want {
			t.Errorf("%v: %+v, want %+v", c.offsets, got, c.want)
		}
	}
}

// A node whose clock the others have found to be wrong refuses writes until somebody agrees with it: not only for as long as two others are there to outvote it.
func TestWrongClockRefusesWrites(t *testing.T) {
	c := &stepped{Clock: clock.System()}
	m := withStepped(t, c)
	a := m.nodes["a"]
	write := func() error {
		_, _, err := a.Write(t.Context(), []revocation.Request{{Match: match(t, "iss=i,sub=alice")}}, WriteOptions{Ack: AckLocal})
		return err
	}
	c.by.Store(int64(-50 * time.Second)) // not a jump by its own past
	m.until("a knows that its clock is off", a.members.refuses.Load)
	wantRefused := func(when string) {
		t.Helper()
		a.members.compareClocks()
		if err := write(); !errors.Is(err, ErrClock) || !strings.Contains(err.Error(), "off from the median") {
			t.Fatalf("%s: %v", when, err)
		}
	}
	wantRefused("both others are there")
	m.links["ab"]()
	m.until("b is away", func() bool { return !a.replica.connected("b") })
	wantRefused("one of them is there")
	m.links["ac"]()
	m.until("c is away", func() bool { return !a.replica.connected("c") })
	wantRefused("nobody is there")
	c.by.Store(0)
	m.link("a", "c")
	m.until("c agrees with it", func() bool { return !a.members.refuses.Load() })
	if err := write(); err != nil {
		t.Fatal(err)
	}
}
