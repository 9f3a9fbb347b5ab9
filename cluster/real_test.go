package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
)

func newKey(t *testing.T) []byte {
	t.Helper()
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		t.Fatal(err)
	}
	return key
}

// run starts a node on sockets of loopback. It ends with the test.
func run(t *testing.T, name string, seeds []string, change ...func(*Config)) *Members {
	t.Helper()
	cfg := Config{Name: name, Bind: "127.0.0.1:0", Seeds: seeds, RejoinEvery: 200 * time.Millisecond, Meta: func() Meta { return Meta{State: Ready} }}
	for _, f := range change {
		f(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	select {
	case <-m.Started():
	case <-time.After(time.Minute):
		t.Fatal("not started")
	}
	return m
}

func addr(m *Members) string { return m.Local().Addr.String() }

// eventually is generous: the machine may be busy.
func eventually(t *testing.T, what string, good func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !good(); time.Sleep(20 * time.Millisecond) { // between polls
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func allAlive(nodes ...*Members) bool {
	for _, n := range nodes {
		for _, other := range nodes {
			if status(n, other.cfg.Name) != Alive {
				return false
			}
		}
	}
	return true
}

func TestLoopbackCluster(t *testing.T) {
	for name, keys := range map[string][][]byte{"in the clear": nil, "sealed": {newKey(t)}} {
		t.Run(name, func(t *testing.T) {
			with := func(c *Config) { c.Keys, c.Label = keys, "one" }
			a := run(t, "a", nil, with)
			b := run(t, "b", []string{addr(a)}, with)
			c := run(t, "c", nil, with)
			if err := c.Join([]string{addr(a)}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "three members", func() bool { return allAlive(a, b, c) })
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := c.Leave(ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, "c has left", func() bool { return status(a, "c") == Left && status(b, "c") == Left })
			if st := a.Stats(); st.Alive != 2 || st.Left != 1 || st.RefusedKey != 0 || st.RefusedKind != 0 || (st.Sealed > 0) != (keys != nil) {
				t.Errorf("%+v", st)
			}
			if err := c.Run(ctx); err == nil {
				t.Error("a second Run")
			}
		})
	}
}

// stock is memberlist without us.
func stock(t *testing.T, name string, change func(*memberlist.Config)) *memberlist.Memberlist {
	t.Helper()
	c := memberlist.DefaultLocalConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertisePort, c.LogOutput, c.EnableCompression = name, "127.0.0.1", 0, 0, io.Discard, false
	change(c)
	m, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// stockMeta makes a stock node say what a node of ours does; its state is pushed to whom it joins.
type stockMeta struct{ meta, state []byte }

func (s stockMeta) NodeMeta(int) []byte             { return s.meta }
func (stockMeta) NotifyMsg([]byte)                  {}
func (stockMeta) GetBroadcasts(_, _ int) [][]byte   { return nil }
func (s stockMeta) LocalState(bool) []byte          { return s.state }
func (stockMeta) MergeRemoteState(_ []byte, _ bool) {}

// The format on the wire is memberlist's own: a stock node with key, label and metadata is a member.
func TestStockMemberlistUnderstandsUs(t *testing.T) {
	key := newKey(t)
	a := run(t, "a", nil, func(c *Config) { c.Keys, c.Label = [][]byte{key}, "one" })
	b := stock(t, "b", func(c *memberlist.Config) {
		c.SecretKey, c.Label, c.Delegate = key, "one", stockMeta{meta: metaBytes(t, Meta{State: Ready})}
	})
	if _, err := b.Join([]string{addr(a)}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are members", func() bool { return status(a, "b") == Alive && b.NumMembers() == 2 })
	if _, err := b.Ping("a", net.UDPAddrFromAddrPort(a.Local().Addr)); err != nil {
		t.Error(err)
	}
	// The other way round.
	c := run(t, "c", []string{b.LocalNode().Address()}, func(c *Config) { c.Keys, c.Label = [][]byte{key}, "one" })
	eventually(t, "three are members", func() bool { return allAlive(a, c) && status(c, "b") == Alive && b.NumMembers() == 3 })
	if st := a.Stats(); st.RefusedKey+st.RefusedKind != 0 {
		t.Errorf("%+v", st)
	}
}

func TestStrangersDoNotJoin(t *testing.T) {
	key := newKey(t)
	good := stockMeta{meta: metaBytes(t, Meta{State: Ready})}
	for name, change := range map[string]func(*memberlist.Config){
		"no key":        func(c *memberlist.Config) { c.SecretKey = nil },
		"another key":   func(c *memberlist.Config) { c.SecretKey = newKey(t) },
		"no label":      func(c *memberlist.Config) { c.Label = "" },
		"another label": func(c *memberlist.Config) { c.Label = "two" },
		"user state":    func(c *memberlist.Config) { c.Delegate = stockMeta{good.meta, make([]byte, 1<<20)} },
		"compressed":    func(c *memberlist.Config) { c.EnableCompression = true },
	} {
		t.Run(name, func(t *testing.T) {
			a := run(t, "a", nil, func(c *Config) { c.Keys, c.Label = [][]byte{key}, "one" })
			b := stock(t, "b", func(c *memberlist.Config) {
				c.SecretKey, c.Label, c.Delegate = key, "one", good
				change(c)
			})
			if _, err := b.Join([]string{addr(a)}); err == nil {
				t.Error("joined")
			}
			if b.NumMembers() != 1 || len(a.Members()) != 1 {
				t.Errorf("the stranger knows %d members, we know %d", b.NumMembers(), len(a.Members()))
			}
			if st := a.Stats(); st.RefusedKey+st.RefusedKind == 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Reference P5: who is not admitted is no member, whatever its own view is.
func TestNotAdmitted(t *testing.T) {
	key := newKey(t)
	for name, change := range map[string]func(*memberlist.Config){
		"no metadata":    func(c *memberlist.Config) { c.Delegate = nil },
		"unknown format": func(c *memberlist.Config) { c.Delegate = stockMeta{meta: bytes.Repeat([]byte{9}, 100)} },
		"another cluster": func(c *memberlist.Config) {
			c.Delegate = stockMeta{meta: metaBytes(t, Meta{State: Ready, Cluster: [16]byte{2}})}
		},
		"name":             func(c *memberlist.Config) { c.Name = "b\nFORGED LINE" },
		"protocol version": func(c *memberlist.Config) { c.ProtocolVersion = 5 },
	} {
		t.Run(name, func(t *testing.T) {
			a := run(t, "a", nil, func(c *Config) {
				c.Keys, c.Meta = [][]byte{key}, func() Meta { return Meta{State: Ready, Cluster: [16]byte{1}} }
			})
			b := stock(t, "b", func(c *memberlist.Config) {
				c.SecretKey, c.Delegate = key, stockMeta{meta: metaBytes(t, Meta{State: Ready})}
				change(c)
			})
			_, _ = b.Join([]string{addr(a)})
			eventually(t, "refused", func() bool { st := a.Stats(); return st.RefusedMembers+st.RefusedKind > 0 })
			if len(a.Members()) != 1 {
				t.Errorf("%+v", a.Members())
			}
			// One bad entry spoils nothing for the others.
			c := run(t, "c", []string{addr(a)}, func(c *Config) { c.Keys = [][]byte{key} })
			eventually(t, "a good node joins", func() bool { return allAlive(a, c) })
		})
	}
}

// Keys change on all nodes while they gossip; nobody leaves, news get through after each step, and the old key opens nothing any more.
func TestRotationOfKeys(t *testing.T) {
	old, next := newKey(t), newKey(t)
	var logs safeBuffer
	logger := hclog.New(&hclog.LoggerOptions{Output: &logs, Level: hclog.Trace})
	var epoch atomic.Uint64
	dir := t.TempDir()
	with := func(c *Config) {
		c.Keys, c.Logger, c.KeyFile = [][]byte{old}, logger, filepath.Join(dir, c.Name)
		c.Meta = func() Meta { return Meta{State: Ready, Epoch: epoch.Load()} }
	}
	a := run(t, "a", nil, with)
	b := run(t, "b", []string{addr(a)}, with)
	c := run(t, "c", []string{addr(a)}, with)
	nodes := []*Members{a, b, c}
	eventually(t, "members", func() bool { return allAlive(nodes...) })
	news := func(step string) {
		t.Helper()
		want := epoch.Add(1)
		for _, n := range nodes {
			n.UpdateMeta()
		}
		eventually(t, "news after "+step, func() bool {
			for _, n := range nodes {
				for _, m := range n.Members() {
					if m.Meta.Epoch != want {
						return false
					}
				}
			}
			return allAlive(nodes...)
		})
	}
	for _, n := range nodes {
		if id, err := n.InstallKey(next); err != nil || id != KeyID(next) {
			t.Fatal(id, err)
		}
		news("install")
	}
	for _, n := range nodes {
		if err := n.UseKey(KeyID(next)); err != nil {
			t.Fatal(err)
		}
		news("use")
	}
	for _, n := range nodes {
		if err := n.RemoveKey(KeyID(old)); err != nil {
			t.Fatal(err)
		}
		news("remove")
	}
	for _, n := range nodes {
		if st := n.Stats(); st.RefusedKey != 0 || st.Dead+st.Left != 0 {
			t.Errorf("%s: %+v", n.cfg.Name, st)
		}
	}
	late := run(t, "late", []string{addr(a)}, func(c *Config) { c.Keys = [][]byte{old} })
	eventually(t, "the old key is refused", func() bool { return a.Stats().RefusedKey > 0 && late.Stats().JoinsFailed > 1 })
	if len(late.Members()) != 1 || len(a.Members()) != 3 {
		t.Error("the old key still opens")
	}
	for _, key := range [][]byte{old, next} {
		for _, form := range []string{string(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), fmt.Sprint(key)} {
			if strings.Contains(logs.String(), form) {
				t.Error("a key is in the log")
			}
		}
	}
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Whoever connects and says nothing, or garbage, holds one of a bounded number of streams for three seconds, and no memory.
func TestConnectionsThatSayNothing(t *testing.T) {
	a := run(t, "a", nil, func(c *Config) { c.Keys, c.maxStreams = [][]byte{newKey(t)}, 4 })
	var conns []net.Conn
	for i := range 20 {
		conn, err := net.Dial("tcp", addr(a))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%2 == 0 {
			if _, err := conn.Write([]byte{msgEncrypted, 0xff, 0xff, 0xff, 0xff, 1}); err != nil {
				t.Log(err) // closed already
			}
		}
		conns = append(conns, conn)
	}
	eventually(t, "some are refused", func() bool { return a.Stats().RefusedStreams > 0 && a.Stats().RefusedKey > 0 })
	b := run(t, "b", []string{addr(a)}, func(c *Config) { c.Keys = a.cfg.Keys })
	eventually(t, "a node joins when they have been dropped", func() bool { return allAlive(a, b) })
	for _, conn := range conns {
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			t.Error("a stranger got an answer")
		}
	}
}

func TestRunEndsWhatItStarted(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Run("cluster", func(t *testing.T) {
		a := run(t, "a", nil)
		b := run(t, "b", []string{addr(a)})
		eventually(t, "members", func() bool { return allAlive(a, b) })
	})
	var err error
	for range 200 { // a probe may be under way, for seconds
		if err = goleak.Find(before); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond) // between polls
	}
	t.Error(err)
}

func TestPortThatIsTaken(t *testing.T) {
	a := run(t, "a", nil)
	m, err := New(Config{Name: "b", Bind: addr(a), Meta: func() Meta { return Meta{State: Ready} }})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("error %v", err)
	}
}

// Nodes that go while they announce something, on a machine that is busy with that. The race detector sees it if memberlist is told two things at once.
func TestGoingWhileAnnouncing(t *testing.T) {
	one := func() error {
		m, err := New(Config{Name: "a", Bind: "127.0.0.1:0", Meta: func() Meta { return Meta{State: Ready} }})
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		select {
		case <-m.Started():
		case err := <-done:
			return err
		}
		m.AnnounceLeaving()
		stop()
		return <-done
	}
	var g errgroup.Group
	for range 8 {
		g.Go(func() error {
			for range 150 {
				if err := one(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
