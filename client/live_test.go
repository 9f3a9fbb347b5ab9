package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/revocation"
)

// calls counts callbacks by name.
type calls struct {
	mu   sync.Mutex
	by   map[string]int
	more chan struct{}
}

func newCalls() *calls { return &calls{by: map[string]int{}, more: make(chan struct{}, 1)} }

func (k *calls) of(name string) func(revocation.Verdict) {
	return func(v revocation.Verdict) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if v.Status != revocation.Revoked {
			name += " (not revoked)"
		}
		k.by[name]++
		select {
		case k.more <- struct{}{}:
		default:
		}
	}
}

func (k *calls) count(name string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.by[name]
}

// until waits until so many names have been called back.
func (k *calls) until(t testing.TB, n int) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		k.mu.Lock()
		got := len(k.by)
		k.mu.Unlock()
		if got >= n {
			return
		}
		select {
		case <-k.more:
		case <-limit:
			t.Fatalf("%d of %d called back", got, n)
		}
	}
}

func session(t testing.TB, sub, jti string) *revocation.Claims {
	t.Helper()
	now := time.Now().Unix()
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":%q,"jti":%q,"aud":["x",%q],"iat":%d,"exp":%d}`, sub, jti, "for-"+jti, now-10, now+3600))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOnRevoked(t *testing.T) {
	for name, mode := range map[string]Mode{"full": Full, "filter": Filter} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "127.0.0.1:0")
			expires := time.Now().Add(time.Hour).UnixMilli()
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,jti=dead"), ExpiresAt: expires})
			c := open(t, Config{Addrs: []string{s.addr}, Mode: mode, AskTimeout: 10 * time.Second})
			k := newCalls()
			c.OnRevoked(session(t, "zoe", "dead"), k.of("dead")) // is revoked already
			k.until(t, 1)

			for _, u := range []string{"alice", "bob", "carol"} {
				for i := range 3 {
					c.OnRevoked(session(t, u, fmt.Sprint(u, i)), k.of(fmt.Sprint(u, i)))
				}
			}
			stop := c.OnRevoked(session(t, "alice", "gone"), k.of("gone"))
			stop()
			stop()                                                                                 // once more does nothing
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,jti=bob1"), ExpiresAt: expires}) // names that are known
			k.until(t, 2)
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,sub=alice")}) // names that nobody is indexed by
			k.until(t, 5)
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,aud=for-bob0"), IssuedBefore: time.Now().UnixMilli()}) // an element of an array
			k.until(t, 6)
			// The session that is kept goes on, and ends with a later cutoff.
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,sub=carol"), Keep: []revocation.Match{match(t, "jti=carol2")}})
			k.until(t, 8)
			// A cutoff that catches nobody, an unblock.
			s.revoke(t, revocation.Request{Match: match(t, "iss=i,sub=bob"), IssuedBefore: time.Now().UnixMilli() - 3_600_000})
			s.revoke(t, revocation.Request{Action: revocation.Unblock, Match: match(t, "iss=i,sub=bob")})
			level(t, c, s)
			if k.count("carol2") != 0 || k.count("bob2") != 0 {
				t.Errorf("called back without a reason: %v", k.by)
			}
			s.revoke(t, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=bob"), ExpiresAt: expires})
			k.until(t, 9)
			s.revoke(t, revocation.Request{Match: match(t, "iss=i"), IssuedBefore: time.Now().UnixMilli() + 1000})
			k.until(t, 10)
			k.mu.Lock()
			defer k.mu.Unlock()
			for name, n := range k.by {
				if n != 1 || name == "gone" {
					t.Errorf("%s was called %d times", name, n)
				}
			}
			if n := c.watch.count.Load(); n != 0 || len(c.watch.heads) != 0 || len(c.watch.all) != 0 {
				t.Errorf("%d registrations are left", n)
			}
		})
	}
}

// Registrations that come and go while everything is revoked are called back exactly once, or have ended.
func TestOnRevokedRace(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	const n = 400
	var called [n]atomic.Int32
	var stopped [n]bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < n; i += 4 {
				stop := c.OnRevoked(session(t, "alice", fmt.Sprint("r", i)), func(revocation.Verdict) { called[i].Add(1) })
				if i%8 >= 4 {
					stop()
					stopped[i] = true
				}
			}
		})
	}
	for i := range n / 2 {
		s.revoke(t, revocation.Request{Match: match(t, fmt.Sprint("iss=i,jti=r", i)), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()})
	}
	wg.Wait()
	s.revoke(t, revocation.Request{Match: match(t, "iss=i,sub=alice")})
	deadline := time.Now().Add(20 * time.Second)
	for i := range n {
		for !stopped[i] && called[i].Load() == 0 {
			if time.Now().After(deadline) {
				t.Fatalf("%d was not called back", i)
			}
			time.Sleep(time.Millisecond) // between polls: callbacks come by themselves
		}
		if k := called[i].Load(); k > 1 {
			t.Errorf("%d was called %d times", i, k)
		}
	}
}

// Callbacks that take their time hold up neither the stream nor Close for longer than they take.
func TestOnRevokedSlowCallback(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	release := make(chan struct{})
	var running, most atomic.Int32
	for i := range 3 * maxCallbacks {
		c.OnRevoked(session(t, "alice", fmt.Sprint("s", i)), func(revocation.Verdict) {
			if n := running.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			running.Add(-1)
		})
	}
	s.revoke(t, revocation.Request{Match: match(t, "iss=i,sub=alice")})
	s.revoke(t, logouts(t, 0, 2000)...)
	level(t, c, s)
	close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for c.watch.count.Load() > 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond) // between polls: callbacks end by themselves
	}
	if c.watch.count.Load() > 0 || most.Load() > maxCallbacks {
		t.Errorf("%d left, %d at once", c.watch.count.Load(), most.Load())
	}
}
