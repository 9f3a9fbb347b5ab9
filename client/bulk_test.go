package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/revokd/revokd/revocation"
)

// ids names tokens t0, t1, ... from one index to another.
func ids(from, to int) iter.Seq[Item] {
	return func(yield func(Item) bool) {
		for i := from; i < to; i++ {
			if !yield(Item{Match: Match{"iss": "i", "jti": fmt.Sprint("t", i)}}) {
				return
			}
		}
	}
}

func TestRevokeAll(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	const n = 2*maxRun + 100
	var steps []int64
	got, err := c.RevokeAll(t.Context(), ids(0, n), func(b Bulk) { steps = append(steps, b.Acknowledged) }, Reason("logout"))
	if err != nil || got.Acknowledged != n || got.Revoked != n || got.Refused != 0 || got.Receipt.Ack != AckLocal {
		t.Fatalf("%+v %v", got, err)
	}
	if !slices.IsSorted(steps) || len(steps) < 3 || steps[len(steps)-1] != n {
		t.Errorf("progress %v", steps)
	}
	for _, i := range []int{0, maxRun - 1, maxRun, n - 1} {
		want(t, c, fmt.Sprint("t", i), revocation.Revoked)
	}
	want(t, c, fmt.Sprint("t", n), revocation.Active)
	// Where an interrupted caller goes on does not matter to the result.
	got, err = c.RevokeAll(t.Context(), ids(n-10, n+10), nil)
	if err != nil || got.Revoked != 10 || got.Covered != 10 {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := c.RevokeAll(t.Context(), ids(0, 0), nil); err != nil || got.Acknowledged != 0 {
		t.Errorf("nothing: %+v %v", got, err)
	}
}

// Refused items stop nothing and are listed by their place, whether the node refuses them or they are not sent at all.
func TestRevokeAllRefused(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	good := Item{Match: Match{"iss": "i", "jti": "t1"}}
	items := []Item{
		good,
		{},
		{Match: Match{"iss": "i", "jti": 1.5}},
		{Token: "not a token"},
		{Match: Match{"iss": "i", "sub": "a"}, ExpiresAt: time.Now().Add(1000 * 24 * time.Hour)},
		{Match: Match{"iss": "i", "jti": "t2"}, Reason: "no such reason"},
		{Token: "t", BelowClaim: "v"},
		{Match: Match{"jti": "t3"}, Session: true},
		{Match: Match{"iss": "i", "sub": "bob"}, BelowClaim: "v", BelowValue: 3},
		{Match: Match{"iss": "i", "jti": "t9"}},
	}
	got, err := c.RevokeAll(t.Context(), slices.Values(items), nil)
	if err != nil || got.Acknowledged != int64(len(items)) || got.Revoked != 3 || got.Refused != 7 {
		t.Fatalf("%+v %v", got, err)
	}
	var where []int64
	for _, r := range got.Refusals {
		where = append(where, r.Index)
		if r.Code == "" || strings.Contains(r.Error(), "alice") {
			t.Errorf("%+v", r)
		}
	}
	if !slices.Equal(where, []int64{1, 2, 3, 4, 5, 6, 7}) {
		t.Errorf("refused %v", where)
	}
	want(t, c, "t9", revocation.Revoked)
	for i, o := range []Option{ExpiresAt(time.Now()), IssuedBefore(time.Now()), IdempotencyKey("k"), Reason("none")} {
		if _, err := c.RevokeAll(t.Context(), ids(0, 1), nil, o); !errors.Is(err, ErrConfig) {
			t.Errorf("option %d: %v", i, err)
		}
	}
	// Many refusals are counted, and the first of them listed.
	got, err = c.RevokeAll(t.Context(), func(yield func(Item) bool) {
		for range MaxRefused + 5 {
			if !yield(Item{}) {
				return
			}
		}
	}, nil)
	if err != nil || got.Refused != MaxRefused+5 || len(got.Refusals) != MaxRefused {
		t.Errorf("%d refused, %d listed, %v", got.Refused, len(got.Refusals), err)
	}
}

// lossy carries out calls and loses their answers.
type lossy struct {
	http.RoundTripper
	path string
	lose atomic.Int32
}

func (l *lossy) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := l.RoundTripper.RoundTrip(r)
	if err != nil || !strings.HasSuffix(r.URL.Path, l.path) || l.lose.Add(-1) < 0 {
		return res, err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return nil, errors.New("connection reset by peer")
}

// A write whose answer was lost is tried again and moves no cutoff over a token issued meanwhile.
func TestAnswerLost(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	l := &lossy{RoundTripper: c.http.Transport, path: "/Revoke"}
	l.lose.Store(2)
	c.http.Transport = l
	before := time.Now()
	r, err := c.RevokeSubject(t.Context(), "i", "alice")
	if err != nil || r.Outcome != "covered" || r.UsableAfter.IsZero() {
		t.Fatalf("%+v %v", r, err)
	}
	token := func(at time.Time) *revocation.Claims {
		cl := claims(t, "t")
		cl.SetIssuedAt(at.UnixMilli())
		return cl
	}
	if v := c.Check(token(before.Add(-time.Millisecond))); v.Status != revocation.Revoked {
		t.Errorf("issued before the call: %v", v)
	}
	if got := c.held.Load().table.Stats(c.now.Load()).Items; got != 1 {
		t.Errorf("%d records", got)
	}
	// What a second node would be told.
	at := before.UnixMilli()
	for name, f := range map[string]struct {
		m     Match
		fixed bool
	}{
		"a subject":           {Match{"iss": "i", "sub": "a"}, true},
		"typed claims":        {Match{"iss": "i", "tenant": 7, "x": true}, true},
		"everything":          {Match{}, true},
		"a token":             {Match{"iss": "i", "jti": "t"}, false},
		"a session":           {Match{"iss": "i", "sid": "s"}, false},
		"a key":               {Match{"iss": "i", "header.kid": "k"}, false},
		"what nobody accepts": {Match{"": "x"}, false},
	} {
		req, refusal := Item{Match: f.m}.request(0)
		if refusal != nil {
			t.Fatal(refusal)
		}
		if got := c.fixCutoff(req, at); (got.GetIssuedBefore() != nil) != f.fixed || got.GetIssuedBefore() != nil && got.GetIssuedBefore().AsTime().UnixMilli() != at {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A run whose answer was lost is sent again as a whole.
func TestRevokeAllAnswerLost(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	l := &lossy{RoundTripper: c.http.Transport, path: "/RevokeStream"}
	c.http.Transport = l
	for _, lost := range []int32{1, attempts - 1} {
		l.lose.Store(lost)
		got, err := c.RevokeAll(t.Context(), ids(0, 3000), nil)
		if err != nil || got.Acknowledged != 3000 || got.Revoked+got.Covered != 3000 {
			t.Errorf("%d answers lost: %+v %v", lost, got, err)
		}
	}
	l.lose.Store(1000)
	got, err := c.RevokeAll(t.Context(), ids(0, 10), nil)
	if !errors.Is(err, ErrUnavailable) || got.Acknowledged != 0 {
		t.Errorf("all answers lost: %+v %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.RevokeAll(ctx, ids(0, 10), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}
