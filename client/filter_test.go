package client

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// revoke writes on the node itself.
func (s *server) revoke(t testing.TB, list ...revocation.Request) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); len(s.node.Ready()) > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // between polls: a node that has just begun takes no writes yet
	}
	for len(list) > 0 {
		n := min(len(list), node.MaxBatch)
		results, receipt, err := s.node.Write(t.Context(), list[:n], node.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		for _, p := range receipt.Positions {
			s.written[p.Origin] = max(s.written[p.Origin], p.Number)
		}
		list = list[n:]
	}
}

func match(t testing.TB, text string) revocation.Match {
	t.Helper()
	m, err := revocation.ParseMatch(text)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func logouts(t testing.TB, from, n int) []revocation.Request {
	list := make([]revocation.Request, n)
	for i := range list {
		list[i] = revocation.Request{Match: match(t, fmt.Sprintf("iss=i,jti=old%d", from+i)), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}
	}
	return list
}

// level waits until a replica holds what revoke has written.
func level(t testing.TB, c *Client, s *server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := c.wait(ctx, func() bool {
		for id, number := range s.written {
			if !c.core.ReachedOrigin(id, number) {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Fatalf("%v: %+v", err, c.Status())
	}
}

// What was there before the filter is asked about; what came later is known; what was never revoked is rarely asked about.
func TestFilter(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 3000)...)
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second})
	st := c.Status().Filter
	if st.Filtered != 3000 || st.Recent != 0 {
		t.Fatalf("%+v", st)
	}
	want(t, c, "old1", revocation.Revoked)
	if st = c.Status().Filter; st.Asks != 1 {
		t.Errorf("%d calls for a token that the filter has", st.Asks)
	}
	want(t, c, "old1", revocation.Revoked)
	if st = c.Status().Filter; st.Asks != 1 || st.Doubts != 2 {
		t.Errorf("the answer was not kept: %+v", st)
	}
	for i := range 2000 {
		want(t, c, fmt.Sprintf("valid%d", i), revocation.Active)
	}
	if st = c.Status().Filter; st.Asks > 20 {
		t.Errorf("%d of 2000 valid tokens were asked about", st.Asks-1)
	}
	if _, err := c.Revoke(t.Context(), Match{"iss": "i", "jti": "new"}, ExpiresAt(time.Now().Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	before := c.Status().Filter.Asks
	want(t, c, "new", revocation.Revoked)
	if st = c.Status().Filter; st.Asks != before || st.Recent != 1 {
		t.Errorf("a record that came by the stream was asked about: %+v", st)
	}
	if n := testing.AllocsPerRun(100, func() { c.Check(valid) }); n != 0 {
		t.Errorf("a check makes %v allocations", n)
	}
}

var valid = func() *revocation.Claims {
	c := new(revocation.Claims)
	_ = c.Set("iss", revocation.String("i"))
	_ = c.Set("sub", revocation.String("alice"))
	_ = c.Set("jti", revocation.String("valid"))
	c.SetIssuedAt(time.Now().UnixMilli() - 1000)
	c.SetExpiresAt(time.Now().UnixMilli() + 3_600_000)
	return c
}()

// An answer that was kept is forgotten when a record of its key comes, and the verdict changes at once.
func TestFilterAnswerDies(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	user := match(t, "iss=i,sub=alice")
	expires := time.Now().Add(time.Hour).UnixMilli()
	s.revoke(t, revocation.Request{Action: revocation.Block, Match: user, ExpiresAt: expires})
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second})
	want(t, c, "t", revocation.Revoked)
	for range 5 {
		if _, err := c.Unblock(t.Context(), Match{"iss": "i", "sub": "alice"}); err != nil {
			t.Fatal(err)
		}
		want(t, c, "t", revocation.Active)
		if _, err := c.Block(t.Context(), Match{"iss": "i", "sub": "alice"}, ExpiresAt(time.Now().Add(time.Hour))); err != nil {
			t.Fatal(err)
		}
		want(t, c, "t", revocation.Revoked)
	}
}

// If no node answers, what the filter cannot exclude is Unknown; the rest is answered from memory.
func TestFilterNodeSilent(t *testing.T) {
	var deaf atomic.Bool
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 100)...)
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 200 * time.Millisecond})
	c.http.Transport = deafTo{c.http.Transport, &deaf}
	deaf.Store(true)
	if v := c.Check(claims(t, "old1")); v.Cause != revocation.CauseUnanswered || v.Status != revocation.Unknown {
		t.Errorf("%s (%s)", v.Status, v.Cause)
	}
	want(t, c, "valid", revocation.Active)
	deaf.Store(false)
	deadline := time.Now().Add(10 * time.Second)
	for c.Check(claims(t, "old1")).Status != revocation.Revoked {
		if time.Now().After(deadline) {
			t.Fatal("never asked again")
		}
		time.Sleep(10 * time.Millisecond) // between polls: it asks nobody for a while after a failure
	}
}

// deafTo fails lookups.
type deafTo struct {
	http.RoundTripper
	deaf *atomic.Bool
}

func (d deafTo) RoundTrip(r *http.Request) (*http.Response, error) {
	if d.deaf.Load() && r.URL.Path == "/revokd.v1.ReplicationService/Lookup" {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	return d.RoundTripper.RoundTrip(r)
}

func (d deafTo) CloseIdleConnections() {
	d.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

// A replica with a filter answers like one with everything, while records come and filters take each other's place.
func TestFilterLikeFull(t *testing.T) {
	s := newServer(t, "127.0.0.1:0", func(*api.Config) {})
	random := rand.New(rand.NewPCG(1, 2))
	draw := func() revocation.Request {
		expires := time.Now().Add(time.Hour).UnixMilli()
		name := func(claim string) string { return fmt.Sprintf("iss=i,%s=%d", claim, random.IntN(30)) }
		switch random.IntN(6) {
		case 0:
			return revocation.Request{Match: match(t, name("jti")), ExpiresAt: expires}
		case 1:
			return revocation.Request{Match: match(t, name("sub")), IssuedBefore: time.Now().UnixMilli() - random.Int64N(100_000)}
		case 2:
			return revocation.Request{Action: revocation.Block, Match: match(t, name("sub")), ExpiresAt: expires}
		case 3:
			return revocation.Request{Action: revocation.Unblock, Match: match(t, name("sub"))}
		case 4:
			return revocation.Request{Match: match(t, name("sub")), Keep: []revocation.Match{match(t, name("jti"))}}
		}
		return revocation.Request{Match: match(t, name("sub")), Below: &revocation.Below{Claim: "ver", Value: random.Int64N(5)}}
	}
	for range 60 {
		s.revoke(t, draw())
	}
	full := open(t, Config{Addrs: []string{s.addr}})
	part := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second, freshEvery: time.Hour})
	counts := map[revocation.Status]int{}
	for round := range 40 {
		for range 1 + random.IntN(4) {
			s.revoke(t, draw())
		}
		if round%5 == 4 {
			f, err := part.fetchFrom(t.Context(), s.addr, time.Nanosecond)
			if err != nil {
				t.Fatal(err)
			}
			if err := part.replace(f); err != nil {
				t.Fatal(err)
			}
		}
		level(t, full, s)
		level(t, part, s)
		for range 40 {
			now := time.Now().Unix()
			token, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"%d","jti":"%d","ver":%d,"iat":%d,"exp":%d}`,
				random.IntN(60), random.IntN(60), random.IntN(8), now-random.Int64N(150), now+3600))
			if err != nil {
				t.Fatal(err)
			}
			a, b := full.Check(token), part.Check(token)
			if a.Status != b.Status || a.Cause != b.Cause {
				t.Fatalf("round %d: full %s (%s), filter %s (%s): %+v", round, a.Status, a.Cause, b.Status, b.Cause, part.Status().Filter)
			}
			counts[a.Status]++
		}
	}
	if counts[revocation.Active] < 100 || counts[revocation.Revoked] < 100 {
		t.Errorf("the tokens are too much alike: %v", counts)
	}
	if st := part.Status().Filter; st.Refreshed != 8 || st.Recent > 20 {
		t.Errorf("%+v", st)
	}
}

// Filters are fetched when enough has come, and no record is lost between them.
func TestFilterRefresh(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 500)...)
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second, freshEvery: 20 * time.Millisecond, freshAbove: 100})
	deadline := time.Now().Add(30 * time.Second)
	n := 500
	for c.Status().Filter.Refreshed < 2 {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", c.Status().Filter)
		}
		s.revoke(t, logouts(t, n, 50)...)
		n += 50
		time.Sleep(50 * time.Millisecond) // not faster than filters can follow
	}
	level(t, c, s)
	for i := range n {
		want(t, c, fmt.Sprintf("old%d", i), revocation.Revoked)
	}
}

// Checks that need the same answer at once ask for it once.
func TestFilterCoalesces(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 10)...)
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second})
	var gate atomic.Bool
	gate.Store(true)
	c.http.Transport = slowTo{c.http.Transport, &gate}
	token := claims(t, "old1")
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if v := c.Check(token); v.Status != revocation.Revoked {
				t.Errorf("%s (%s)", v.Status, v.Cause)
			}
		})
	}
	for c.doubts.Load() < 20 {
		time.Sleep(time.Millisecond) // between polls
	}
	gate.Store(false)
	wg.Wait()
	// One that found no answer, just before the one of somebody else came.
	late := &question{part: c.held.Load().part, known: map[revocation.Fingerprint]answer{}}
	for f := range late.part.answers {
		late.missing = append(late.missing, f)
	}
	if len(late.missing) != 1 || !c.resolve(late) || len(late.known) != 1 {
		t.Errorf("%d missing, %d known", len(late.missing), len(late.known))
	}
	if st := c.Status().Filter; st.Asks != 1 {
		t.Errorf("%d calls for one fingerprint", st.Asks)
	}
}

// slowTo holds lookups back.
type slowTo struct {
	http.RoundTripper
	closed *atomic.Bool
}

func (d slowTo) RoundTrip(r *http.Request) (*http.Response, error) {
	for d.closed.Load() && r.URL.Path == "/revokd.v1.ReplicationService/Lookup" {
		time.Sleep(time.Millisecond) // between looks at the gate
	}
	return d.RoundTripper.RoundTrip(r)
}

func (d slowTo) CloseIdleConnections() {
	d.RoundTripper.(interface{ CloseIdleConnections() }).CloseIdleConnections()
}

// A verdict is as old as the view of the node that was asked, whatever this replica's own: an answer from a view that is too old, or that there is
// none of, is no Active.
func TestFilterAnswerAge(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	s.revoke(t, logouts(t, 0, 10)...)
	c := open(t, Config{Addrs: []string{s.addr}, Mode: Filter, AskTimeout: 10 * time.Second})
	token := claims(t, "old1")
	h := c.held.Load()
	q := &question{part: h.part, notBefore: 1 << 62, known: map[revocation.Fingerprint]answer{}}
	h.table.CheckWith(token, c.now.Load(), q)
	if len(q.missing) != 1 {
		t.Fatalf("%d fingerprints are in doubt", len(q.missing))
	}
	for _, tt := range []struct {
		age    time.Duration // of the node's view; negative: none
		status revocation.Status
	}{{0, revocation.Active}, {29 * time.Second, revocation.Active}, {31 * time.Second, revocation.Unknown}, {-1, revocation.Unknown}} {
		mono := c.elapsed.Mono()
		a := answer{holding: revocation.Absent, asked: mono, quorum: mono - tt.age, all: math.MinInt64}
		if tt.age < 0 {
			a.quorum = math.MinInt64
		}
		h.part.mu.Lock()
		h.part.answers[q.missing[0]] = a
		h.part.mu.Unlock()
		v := c.Check(token)
		if v.Status != tt.status || v.Age < tt.age || tt.status == revocation.Unknown && v.Cause != revocation.CauseStale {
			t.Errorf("a view of %s: %s (%s), %s old", tt.age, v.Status, v.Cause, v.Age)
		}
		if v := c.CheckFresh(token, CheckOptions{Freshness: All}); v.Status == revocation.Active {
			t.Error("active for all voters by an answer that knows of none")
		}
	}
}
