package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/revocation"
)

// ringed is a mesh whose nodes keep rings, each in a directory of its own.
type ringed struct {
	*mesh
	cfgs map[string]Config
}

func newRinged(t *testing.T, names ...string) *ringed {
	m := &ringed{newMesh(t, Config{Key: revocation.Key{1}}), map[string]Config{}}
	m.names = names
	for i, name := range names {
		m.cfgs[name] = Config{
			Name: name, Key: revocation.Key{1}, Dir: filepath.Join(t.TempDir(), "journal"), RingFile: filepath.Join(t.TempDir(), "fingerprint.ring"), Cluster: &ClusterConfig{},
			Slack: time.Second, ProbeEvery: 20 * time.Millisecond, MaxStaleness: time.Second,
		}
		m.start(name, m.cfgs[name])
		for _, other := range names[:i] {
			m.link(other, name)
		}
	}
	t.Cleanup(func() {
		for _, stop := range m.stops {
			stop()
		}
	})
	m.ready()
	return m
}

func (m *ringed) restart(name string) {
	m.stops[name]()
	m.start(name, m.cfgs[name])
	for _, other := range m.names {
		if other != name {
			m.link(other, name)
		}
	}
	m.until(name+" is ready again", func() bool { return len(m.nodes[name].Ready()) == 0 })
}

// change makes a change on a node that must succeed.
func (m *ringed) change(name string, c KeyChange) {
	m.t.Helper()
	if err := m.nodes[name].ChangeKeys(m.t.Context(), c, 20*time.Second); err != nil {
		m.t.Fatalf("%+v on %s: %v", c, name, err)
	}
	m.alike()
}

// alike waits until all nodes have the same ring.
func (m *ringed) alike() {
	m.t.Helper()
	m.until("one ring", func() bool {
		for _, name := range m.names {
			if m.nodes[name].Ring() != m.nodes[m.names[0]].Ring() {
				return false
			}
		}
		return true
	})
}

func (m *ringed) revoke(name, jti string, life time.Duration) error {
	r := revocation.Request{Match: match(m.t, "iss=i,jti="+jti), ExpiresAt: time.Now().Add(life).UnixMilli()}
	_, _, err := m.nodes[name].Write(m.t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckAll})
	return err
}

// A cluster changes its key, and once more, under writes and while one node after another is started again: what was acknowledged stays revoked everywhere for as long as it must, no node refuses to
// start, and every key goes in the end.
func TestRotation(t *testing.T) {
	m := newRinged(t, "a", "b", "c")
	type written struct {
		jti   string
		acked time.Time
		until time.Time
	}
	var mu sync.Mutex
	var done []written
	var counts [3]int
	var up [3]sync.RWMutex // held by writers, and by whoever starts the node again
	var nodes [3]*Node     // guarded by it
	for w, name := range m.names {
		nodes[w] = m.nodes[name]
	}
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				up[w].RLock()
				jti, life := fmt.Sprintf("w%d-%d", w, i), 3*time.Second
				until := time.Now().Add(life)
				r := revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: until.UnixMilli()}
				_, _, err := nodes[w].Write(ctx, []revocation.Request{r}, WriteOptions{Ack: AckQuorum, AckTimeout: 5 * time.Second})
				up[w].RUnlock()
				if err == nil {
					mu.Lock()
					done = append(done, written{jti, time.Now(), until})
					counts[w]++
					mu.Unlock()
				}
				time.Sleep(time.Millisecond) // two processors are enough for the rest of the test
			}
		})
	}
	stop := sync.OnceFunc(func() { cancel(); writers.Wait() })
	defer stop()
	restart := func() {
		w := rand.IntN(3)
		up[w].Lock()
		m.restart(m.names[w])
		nodes[w] = m.nodes[m.names[w]]
		up[w].Unlock()
	}
	// check: no node calls active what was acknowledged longer ago than a view may be old, and is still in force.
	check := func() {
		t.Helper()
		mu.Lock()
		list := append([]written(nil), done...)
		mu.Unlock()
		for _, d := range list[max(0, len(list)-1000):] {
			for _, name := range m.names {
				before := time.Now()
				v := m.nodes[name].Check(claimsAt(t, d.until.Add(-time.Minute), d.jti))
				if before.Sub(d.acked) > time.Second && time.Now().Before(d.until) && v.Status == revocation.Active {
					t.Fatalf("%s is %v on %s", d.jti, v, name)
				}
			}
		}
	}
	last := revocation.Key{1}
	for round := range byte(2) {
		next := revocation.Key{2, round}
		m.change(m.names[rand.IntN(3)], KeyChange{Add: next})
		restart()
		check()
		m.change(m.names[rand.IntN(3)], KeyChange{Use: next.ID()})
		restart()
		check()
		m.until("the records of the older key have expired", func() bool {
			check()
			err := m.nodes["a"].ChangeKeys(t.Context(), KeyChange{Drop: last.ID()}, time.Second)
			if err != nil && !errors.Is(err, ErrKeys) {
				t.Fatal(err)
			}
			return len(m.nodes["a"].Keys()) == 1 // after an error it may be in force there, and elsewhere a little later
		})
		m.alike()
		restart()
		check()
		last = next
	}
	stop()
	m.until("every node holds the same", func() bool {
		a := m.nodes["a"].Status().Table.Items
		return a == m.nodes["b"].Status().Table.Items && a == m.nodes["c"].Status().Table.Items
	})
	for w, n := range counts {
		if n == 0 {
			t.Errorf("%s has written nothing", m.names[w])
		}
	}
	for _, name := range m.names {
		if got := m.nodes[name].Keys(); len(got) != 1 || got[0].ID != last.ID() {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A node that cannot keep the cluster's keys takes no record of a key that it lacks, confirms none and calls no token active; when it can, it catches up.
func TestNodeWithoutKey(t *testing.T) {
	m := newRinged(t, "a", "b", "c")
	if err := os.Remove(filepath.Dir(m.cfgs["c"].RingFile)); err != nil {
		t.Fatal(err)
	}
	next := revocation.Key{2}
	err := m.nodes["a"].ChangeKeys(t.Context(), KeyChange{Add: next}, time.Second)
	if why := new(KeysError); !errors.As(err, &why) || !strings.HasSuffix(why.Why, "not yet on c") {
		t.Fatal(err)
	}
	err = m.nodes["a"].ChangeKeys(t.Context(), KeyChange{Use: next.ID()}, 100*time.Millisecond)
	if why := new(KeysError); !errors.As(err, &why) || !strings.HasSuffix(why.Why, ": c") {
		t.Fatal(err)
	}
	// Somebody uses it all the same.
	for _, name := range []string{"a", "b"} {
		ring, err := m.nodes[name].Ring().Use(next.ID())
		if err == nil {
			err = m.nodes[name].adopt(ring)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	r := revocation.Request{Match: match(t, "iss=i,jti=1"), ExpiresAt: now.Add(time.Hour).UnixMilli()}
	_, receipt, err := m.nodes["a"].Write(t.Context(), []revocation.Request{r}, WriteOptions{Ack: AckAll, AckTimeout: 2 * time.Second})
	if !errors.Is(err, ErrAck) || len(receipt.Unconfirmed) != 1 || receipt.Unconfirmed[0] != "c" {
		t.Fatalf("%+v, %v", receipt, err)
	}
	c := m.nodes["c"]
	m.until("its view is old", func() bool { return c.Check(claimsAt(t, now, "1")).Cause == revocation.CauseStale })
	if !c.Ring().Single() || len(c.journal.Keys(metaKey)) != 0 {
		t.Fatalf("%s, %v", c.Ring(), c.journal.Keys(metaKey))
	}
	if err := os.Mkdir(filepath.Dir(m.cfgs["c"].RingFile), 0o700); err != nil {
		t.Fatal(err)
	}
	m.until("it has caught up", func() bool { return c.Check(claimsAt(t, now, "1")).Status == revocation.Revoked })
	m.alike()
	m.restart("c")
	if v := m.nodes["c"].Check(claimsAt(t, now, "1")); v.Status != revocation.Revoked {
		t.Fatal(v)
	}
}

// A node that begins with nothing but the first key, which the others no longer have, gets theirs before their records.
func TestJoinBehindRotation(t *testing.T) {
	m := newRinged(t, "a", "b")
	next := revocation.Key{2}
	m.change("a", KeyChange{Add: next})
	m.change("b", KeyChange{Use: next.ID()})
	m.change("a", KeyChange{Drop: revocation.Key{1}.ID()})
	now := time.Now()
	for i := range 50 {
		if err := m.revoke("a", fmt.Sprint(i), time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	m.names = append(m.names, "c")
	m.cfgs["c"] = m.cfgs["a"]
	c := m.cfgs["c"]
	c.Name, c.Dir, c.RingFile = "c", filepath.Join(t.TempDir(), "journal"), filepath.Join(t.TempDir(), "fingerprint.ring")
	m.cfgs["c"] = c
	m.start("c", c)
	m.link("a", "c")
	m.link("b", "c")
	m.ready()
	for i := range 50 {
		m.until("revoked", func() bool { return m.nodes["c"].Check(claimsAt(t, now, fmt.Sprint(i))).Status == revocation.Revoked })
	}
	m.alike()
}

// Of two additions at once one is everywhere in the end, and the other caller is told.
func TestTwoAdditions(t *testing.T) {
	m := newRinged(t, "a", "b", "c")
	for round := range byte(5) {
		var errs [2]error
		var both sync.WaitGroup
		for i, name := range []string{"a", "b"} {
			both.Go(func() {
				errs[i] = m.nodes[name].ChangeKeys(t.Context(), KeyChange{Add: revocation.Key{9, round, byte(i)}}, 20*time.Second)
			})
		}
		both.Wait()
		m.alike()
		keys := m.nodes["c"].Keys()
		if len(keys) != 2 {
			t.Fatalf("%+v", keys)
		}
		for i, err := range errs {
			if has := keys[1].ID == (revocation.Key{9, round, byte(i)}).ID(); has != (err == nil) {
				t.Fatalf("%d: %v, and the ring has the other one %v", i, err, !has)
			}
		}
		m.change("c", KeyChange{Drop: keys[1].ID})
	}
}

// A node that has been told that its key is gone, and cannot keep the others, makes no record under that: nobody would take it, nor would this node ever get the keys.
func TestNoWriteUnderKeyThatIsGone(t *testing.T) {
	m := newRinged(t, "a", "b")
	next := revocation.Key{2}
	m.change("a", KeyChange{Add: next})
	m.change("b", KeyChange{Use: next.ID()})
	m.change("a", KeyChange{Drop: revocation.Key{1}.ID()})
	dir := filepath.Join(t.TempDir(), "later")
	m.names = append(m.names, "c")
	c := m.cfgs["a"]
	c.Name, c.Dir, c.RingFile = "c", filepath.Join(t.TempDir(), "journal"), filepath.Join(dir, "fingerprint.ring")
	m.cfgs["c"] = c
	m.start("c", c)
	keys, r := &m.nodes["c"].keys, m.nodes["c"].replica
	keys.changing.Lock()
	m.link("a", "c")
	m.link("b", "c")
	m.until("c is level", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.core != nil && r.core.Leveled()
	})
	r.look()
	early := m.nodes["c"].complete.Load()
	keys.changing.Unlock()
	if early {
		t.Fatal("it is complete before it has looked at the keys")
	}
	m.until("c is complete, and has tried", func() bool { return m.nodes["c"].complete.Load() && m.nodes["c"].table.Leaving() })
	now := time.Now()
	request := revocation.Request{Match: match(t, "iss=i,jti=1"), ExpiresAt: now.Add(time.Hour).UnixMilli()}
	if _, _, err := m.nodes["c"].Write(t.Context(), []revocation.Request{request}, WriteOptions{Ack: AckLocal}); !errors.Is(err, ErrNotReady) {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	m.alike()
	if err := m.revoke("c", "1", time.Hour); err != nil {
		t.Fatal(err)
	}
	m.until("revoked", func() bool { return m.nodes["a"].Check(claimsAt(t, now, "1")).Status == revocation.Revoked })
}

// Of two additions at once one is lost. A node that has had that key in force, and has written, starts again with the other one.
func TestLostAddition(t *testing.T) {
	cfg := Config{Key: testKey, Clock: clock.System(), Dir: filepath.Join(t.TempDir(), "journal"), RingFile: filepath.Join(t.TempDir(), "fingerprint.ring"), Slack: time.Second}
	var rings [2]revocation.Ring
	for i := range rings {
		var err error
		if rings[i], err = revocation.NewRing(cfg.Key).Add(revocation.Key{2, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if rings[0].Compare(rings[1]) > 0 {
		rings[0], rings[1] = rings[1], rings[0]
	}
	now := time.Now()
	n, stop := runNode(t, cfg)
	for i, ring := range rings {
		if err := n.adopt(ring); err != nil {
			t.Fatal(err)
		}
		r := revocation.Request{Match: match(t, "iss=i,jti="+strconv.Itoa(i)), ExpiresAt: now.Add(time.Hour).UnixMilli()}
		if _, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var backup bytes.Buffer
	if _, err := n.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	stop()
	n, stop = runNode(t, cfg)
	defer stop()
	for i := range rings {
		if v := n.Check(claimsAt(t, now, strconv.Itoa(i))); n.Ring() != rings[1] || v.Status != revocation.Revoked {
			t.Fatalf("%s: %v", n.Ring(), v)
		}
	}
	if _, err := RestoreJournal(t.Context(), filepath.Join(t.TempDir(), "restored"), rings[1], &backup); err != nil {
		t.Fatal(err)
	}
}

// A change that the disk refused is tried again, also by a node that nobody tells anything.
func TestKeysAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	n, stop := runNode(t, Config{
		Key: testKey, Clock: clock.System(), Dir: filepath.Join(t.TempDir(), "journal"), RingFile: filepath.Join(dir, "fingerprint.ring"), Slack: time.Second,
	})
	defer stop()
	next := revocation.Key{2}
	if err := n.ChangeKeys(t.Context(), KeyChange{Add: next}, 0); !errors.Is(err, ErrKeys) || !n.Ring().Single() {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for moved := n.keys.waits(); n.Ring().Single(); moved = n.keys.waits() {
		select {
		case <-moved:
		case <-time.After(20 * time.Second):
			t.Fatal("it was not tried again")
		}
	}
	if err := n.ChangeKeys(t.Context(), KeyChange{Use: next.ID()}, 0); err != nil {
		t.Fatal(err)
	}
}

// Of two changes that contradict each other one succeeds at most.
func TestContradictingKeys(t *testing.T) {
	m := newRinged(t, "a", "b", "c")
	for round := range byte(10) {
		old, next := m.nodes["c"].Keys()[0].ID, revocation.Key{8, round}
		m.change("c", KeyChange{Add: next})
		var use, drop error
		var both sync.WaitGroup
		both.Go(func() { use = m.nodes["a"].ChangeKeys(t.Context(), KeyChange{Use: next.ID()}, 20*time.Second) })
		both.Go(func() { drop = m.nodes["b"].ChangeKeys(t.Context(), KeyChange{Drop: next.ID()}, 20*time.Second) })
		both.Wait()
		m.alike()
		keys := m.nodes["c"].Keys()
		switch {
		case use == nil && drop == nil:
			t.Fatalf("both: %+v", keys)
		case use == nil && keys[0].ID != next.ID(), drop == nil && len(keys) != 1, use != nil && drop != nil:
			t.Fatalf("use %v, drop %v, %+v", use, drop, keys)
		}
		if len(keys) == 2 {
			m.change("c", KeyChange{Drop: old})
		}
	}
}

func TestKeysRefused(t *testing.T) {
	m := newRinged(t, "a", "b", "c")
	next := revocation.Key{2}
	refused := func(name string, c KeyChange, why string) {
		t.Helper()
		err := m.nodes[name].ChangeKeys(t.Context(), c, 300*time.Millisecond)
		if reason := new(KeysError); !errors.As(err, &reason) || !strings.Contains(reason.Why, why) {
			t.Fatalf("%v, want %q", err, why)
		}
	}
	m.nodes["c"].setVoters(replication.Voters{Number: 2, Hash: 8, Names: []string{"a", "b"}}, false)
	refused("c", KeyChange{Add: next}, "no voter")
	m.nodes["c"].setVoters(replication.Voters{Number: 1, Hash: 7, Names: m.names}, true)
	m.change("a", KeyChange{Add: next})
	if err := m.revoke("b", "1", time.Hour); err != nil {
		t.Fatal(err)
	}
	m.change("a", KeyChange{Use: next.ID()})
	refused("a", KeyChange{Drop: revocation.Key{1}.ID()}, "may have live records of it for")
	m.stops["c"]()
	m.until("a has noticed", func() bool { return !m.nodes["a"].replica.connected("c") })
	refused("a", KeyChange{Use: revocation.Key{1}.ID()}, ": c")
	if err := m.nodes["a"].ChangeKeys(t.Context(), KeyChange{Use: next.ID()}, time.Second); !errors.Is(err, revocation.ErrInvalid) {
		t.Fatal(err)
	}
}

// The two orders in which a crash can leave file and journal, and the one in which none can.
func TestCrashBetweenFileAndJournal(t *testing.T) {
	cfg := Config{Key: testKey, Clock: clock.System(), Dir: filepath.Join(t.TempDir(), "journal"), RingFile: filepath.Join(t.TempDir(), "fingerprint.ring"), Slack: time.Second}
	next := revocation.Key{2}
	ring, err := revocation.NewRing(cfg.Key).Add(next)
	if err != nil {
		t.Fatal(err)
	}
	write := func(r revocation.Ring) {
		t.Helper()
		b, _ := r.MarshalBinary()
		if err := os.WriteFile(cfg.RingFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Now()
	revoke := func(n *Node, jti string, life time.Duration) {
		t.Helper()
		r := revocation.Request{Match: match(t, "iss=i,jti="+jti), ExpiresAt: now.Add(life).UnixMilli()}
		if _, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n, stop := runNode(t, cfg)
	revoke(n, "1", time.Hour)
	stop()

	write(ring) // behind the file, before anything else
	n, stop = runNode(t, cfg)
	if n.Ring() != ring || n.Check(claimsAt(t, now, "1")).Status != revocation.Revoked {
		t.Fatalf("%s", n.Ring())
	}
	if err := n.ChangeKeys(t.Context(), KeyChange{Use: next.ID()}, 0); err != nil {
		t.Fatal(err)
	}
	revoke(n, "2", time.Hour)
	used := n.Ring()
	if info, err := os.Stat(cfg.RingFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	var backup bytes.Buffer
	if _, err := n.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	stop()
	n, stop = runNode(t, cfg)
	for _, jti := range []string{"1", "2"} {
		if v := n.Check(claimsAt(t, now, jti)); n.Ring() != used || v.Status != revocation.Revoked {
			t.Fatalf("%s: %v", n.Ring(), v)
		}
	}
	stop()

	// An older file, or none, in the place of the one that the journal was written with.
	startsNot := func(cfg Config) {
		t.Helper()
		cfg.Name = "n"
		n, err := New(cfg)
		if err == nil {
			err = errors.Join(n.Run(t.Context()), n.Close())
		}
		if !errors.Is(err, revocation.ErrKey) || !strings.Contains(err.Error(), cfg.RingFile) {
			t.Fatal(err)
		}
	}
	older := revocation.NewRing(cfg.Key)
	write(older)
	startsNot(cfg)
	if err := os.Remove(cfg.RingFile); err != nil {
		t.Fatal(err)
	}
	startsNot(cfg)
	write(revocation.NewRing(next)) // of another cluster
	startsNot(cfg)

	// A backup names its keys, and is of use with the file only.
	write(used)
	restored := cfg
	restored.Dir = filepath.Join(t.TempDir(), "journal")
	if _, err := RestoreJournal(t.Context(), restored.Dir, used, bytes.NewReader(backup.Bytes())); err != nil {
		t.Fatal(err)
	}
	n, stop = runNode(t, restored)
	if v := n.Check(claimsAt(t, now, "2")); v.Status != revocation.Revoked {
		t.Fatal(v)
	}
	stop()
	if _, err := RestoreJournal(t.Context(), filepath.Join(t.TempDir(), "journal"), older, bytes.NewReader(backup.Bytes())); !errors.Is(err, revocation.ErrKey) {
		t.Fatal(err)
	}

	// Records of a key that has gone had expired when it went, whatever the time on disk says.
	gone, err := used.Drop(cfg.Key.ID())
	if err != nil {
		t.Fatal(err)
	}
	write(gone)
	var log lockedLog
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &log})
	n, stop = runNode(t, cfg)
	defer stop()
	if !strings.Contains(log.String(), "records that have not expired are left out") || !strings.Contains(log.String(), "records=1") {
		t.Fatal(log.String())
	}
	if a, b := n.Check(claimsAt(t, now, "1")), n.Check(claimsAt(t, now, "2")); a.Status != revocation.Active || b.Status != revocation.Revoked {
		t.Fatal(a, b)
	}
}

// Without a file there is no other key: a node with a disk would not find its own records again.
func TestRingNeedsFile(t *testing.T) {
	n, stop := runNode(t, Config{Dir: filepath.Join(t.TempDir(), "journal")})
	defer stop()
	if err := n.ChangeKeys(t.Context(), KeyChange{Add: revocation.Key{9}}, time.Second); !errors.Is(err, ErrKeys) || !n.Ring().Single() {
		t.Fatal(err, n.Ring())
	}
}
