package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

// Every rule is in force after a restart as it was before.
func TestRestart(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	clk.Advance(time.Millisecond)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	keep := revocation.Request{Match: match(t, "iss=i,sub=alice"), Keep: []revocation.Match{match(t, "iss=i,sid=kept")}}
	for _, r := range []revocation.Request{
		deny(t, "denied"),
		{Match: match(t, "iss=i,sid=gone")},
		keep,
		{Match: match(t, "iss=i,sub=bob"), Below: &revocation.Below{Claim: "ver", Value: 7}},
		{Action: revocation.Block, Match: match(t, "iss=i,sub=carol")},
		{Action: revocation.Block, Match: match(t, "iss=i,sub=dave")},
		{Action: revocation.Unblock, Match: match(t, "iss=i,sub=dave")},
		{Match: match(t, "iss=i,header.kid=k1")},
	} {
		write(t, n, r)
	}
	cases := map[string]revocation.Status{
		`"jti":"denied"`:              revocation.Revoked,
		`"jti":"other"`:               revocation.Active,
		`"sid":"gone"`:                revocation.Revoked,
		`"sub":"alice"`:               revocation.Revoked,
		`"sub":"alice","sid":"kept"`:  revocation.Active,
		`"sub":"alice","sid":"other"`: revocation.Revoked,
		`"sub":"bob","ver":6`:         revocation.Revoked,
		`"sub":"bob"`:                 revocation.Revoked,
		`"sub":"bob","ver":7`:         revocation.Active,
		`"sub":"carol"`:               revocation.Revoked,
		`"sub":"dave"`:                revocation.Active,
	}
	check := func(n *Node) {
		t.Helper()
		for claims, want := range cases {
			c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","iat":%d,"exp":%d,%s}`, start.Unix(), start.Add(time.Hour).Unix(), claims))
			if err != nil {
				t.Fatal(err)
			}
			if v := n.Check(c); v.Status != want {
				t.Errorf("%s: %s (%s), want %s", claims, v.Status, v.Cause, want)
			}
		}
	}
	check(n)
	before := dots(t, n)
	stop()
	for range 3 {
		clk.Advance(time.Minute)
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		check(n)
		if r := write(t, n, deny(t, "denied")); r.Outcome != OutcomeCovered {
			t.Fatalf("known after the restart: %s", r.Outcome)
		}
		write(t, n, deny(t, fmt.Sprint("new", clk.Now().Unix())))
		for dot := range dots(t, n) {
			before[dot] = true
		}
		stop()
	}
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	if got := len(dots(t, n)); got != len(before) {
		t.Fatalf("%d records have %d dots", got, len(before))
	}
}

// dots returns the numbers of all records; each stands for one record.
func dots(t *testing.T, n *Node) map[uint64]bool {
	t.Helper()
	seen := make(map[uint64]bool)
	n.table.Range(revocation.Fingerprint{}, n.Now(), func(_ revocation.Record, dot uint64) bool {
		if dot == 0 || seen[dot] {
			t.Fatalf("dot %d twice, or none", dot)
		}
		seen[dot] = true
		return true
	})
	return seen
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	_, stop := runNode(t, Config{Dir: dir})
	if _, err := New(Config{Name: "n2", Key: testKey, Dir: dir}); !errors.Is(err, journal.ErrLocked) {
		t.Fatalf("second node: %v", err)
	}
	stop()
	if _, err := New(Config{Name: "n1", Key: revocation.Key{9}, Dir: dir}); !errors.Is(err, journal.ErrKeyMismatch) {
		t.Fatalf("other key: %v", err)
	}
}

// No clock at the restart makes the node forget, and none makes it keep what has expired for ever.
func TestClockAtRestart(t *testing.T) {
	for _, wrong := range []time.Duration{time.Hour, -time.Hour, 30 * 24 * time.Hour, -30 * 24 * time.Hour, -50 * 365 * 24 * time.Hour} {
		dir, clk := t.TempDir(), clocktest.New(start)
		n, stop := runNode(t, Config{Dir: dir, Clock: clk})
		write(t, n, deny(t, "j1"))
		if err := n.keepHouse(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		clk.Jump(wrong)
		c := token(t, start, "")
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		word := "ahead"
		if wrong < 0 {
			word = "behind"
		}
		if s := n.Status().Clock; !strings.Contains(s, word) && !strings.Contains(s, "not set") {
			t.Errorf("clock wrong by %s: %s", wrong, s)
		}
		for range 9 { // within the grace period
			n.tick()
			n.table.Sweep(n.Now())
			if err := n.journal.Expire(t.Context(), n.Now()/1000); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, n, c, revocation.Revoked)
			clk.Advance(time.Minute)
		}
		clk.Jump(-wrong) // somebody sets it right
		n.tick()
		n.table.Sweep(n.Now())
		wantStatus(t, n, c, revocation.Revoked)
		stop()
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		wantStatus(t, n, c, revocation.Revoked)
		stop()
		clk.Advance(24 * time.Hour)
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		clk.Advance(11 * time.Minute)
		n.tick()
		n.table.Sweep(n.Now())
		if items := n.Status().Table.Items; items != 0 {
			t.Errorf("clock wrong by %s: %d records a day later", wrong, items)
		}
		stop()
	}
}

// expire does what the sweeper, the housekeeper and the expiry of files do now and then.
func expire(t *testing.T, n *Node) {
	t.Helper()
	n.tick()
	n.table.Sweep(n.Now())
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.journal.Expire(t.Context(), n.Now()/1000); err != nil {
		t.Fatal(err)
	}
}

// The wall clock steps under a running node, once or to and fro, and nobody sets it right: what is revoked stays so up to
// the last minute of its hour and slack, in memory and on disk, and goes as soon as the clock allows.
func TestClockSteps(t *testing.T) {
	const day = 24 * time.Hour
	for _, steps := range [][]time.Duration{
		{time.Hour},
		{-time.Hour},
		{30 * day},
		{-30 * day},
		{time.Hour, -time.Hour},
		{-time.Hour, time.Hour},
		{30 * day, -30 * day, 30 * day},
		{-30 * day, 31 * day},
		{10 * time.Minute, 10 * time.Minute, 10 * time.Minute, 10 * time.Minute},
	} {
		dir, clk := t.TempDir(), clocktest.New(start)
		n, stop := runNode(t, Config{Dir: dir, Clock: clk})
		write(t, n, deny(t, "j1"))
		wrong := time.Duration(0)
		for minute := range 70 { // an hour, and 10 minutes of slack
			if minute%7 == 3 && minute/7 < len(steps) {
				clk.Jump(steps[minute/7])
				wrong += steps[minute/7]
			}
			expire(t, n)
			if v := n.Check(token(t, start, "")); v.Status != revocation.Revoked {
				t.Fatalf("steps %v: after %d minutes %s (%s)", steps, minute, v.Status, v.Cause)
			}
			clk.Advance(time.Minute)
		}
		clk.Advance(5 * time.Minute)
		if wrong < 0 {
			clk.Advance(-wrong)
		}
		expire(t, n)
		if items := n.Status().Table.Items; items != 0 {
			t.Errorf("steps %v: %d records after their time", steps, items)
		}
		stop()
	}
}

// A machine that starts again and again with a wrong clock, each time for less than the grace period, forgets nothing early.
func TestRestartsWithWrongClock(t *testing.T) {
	const day = 24 * time.Hour
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	write(t, n, deny(t, "j1"))
	expire(t, n)
	stop()
	wrong := []time.Duration{time.Hour, 30 * day, -time.Hour, -30 * day, -50 * 365 * day, 12 * time.Hour}
	for round := range 12 {
		step := wrong[round%len(wrong)]
		clk.Jump(step)
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		for range 5 {
			expire(t, n)
			if v := n.Check(token(t, start, "")); v.Status != revocation.Revoked {
				t.Fatalf("round %d, clock wrong by %s: %s (%s)", round, step, v.Status, v.Cause)
			}
			clk.Advance(time.Minute)
		}
		expire(t, n)
		stop()
		clk.Jump(-step)
	}
	n, stop = runNode(t, Config{Dir: dir, Clock: clk}) // an hour after the revocation
	defer stop()
	expire(t, n)
	wantStatus(t, n, token(t, start, ""), revocation.Revoked)
	clk.Advance(30 * time.Minute)
	expire(t, n)
	if items := n.Status().Table.Items; items != 0 {
		t.Errorf("%d records long after their time", items)
	}
}

// A node whose clock stands before the last time on disk says so and takes no cutoff at "now".
func TestClockBehindDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	clk.Jump(-time.Hour)
	n = testNode(t, Config{Dir: dir, Clock: clk})
	if s := n.Status().Clock; !strings.Contains(s, "behind") {
		t.Errorf("clock: %q", s)
	}
	results, _, err := n.Write(t.Context(), []revocation.Request{{Match: match(t, "iss=i,sub=alice")}}, WriteOptions{})
	if err != nil || !errors.Is(results[0].Err, ErrClock) {
		t.Fatalf("%v, %+v", err, results)
	}
}

// The time on disk is not taken back by a clock that is wrong: the starts after it know better too.
func TestTimeOnDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	expire(t, n)
	stop()
	clk.Jump(-30 * 24 * time.Hour)
	for range 3 {
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		if s := n.Status().Clock; !strings.Contains(s, "behind") {
			t.Errorf("clock: %s", s)
		}
		expire(t, n)
		results, _, err := n.Write(t.Context(), []revocation.Request{{Match: match(t, "iss=i,sub=alice")}}, WriteOptions{})
		if err != nil || !errors.Is(results[0].Err, ErrClock) {
			t.Errorf("a cutoff 30 days ago: %v, %+v", err, results)
		}
		stop()
	}
	// While the node runs it is the same.
	clk.Jump(30 * 24 * time.Hour)
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	clk.Jump(-30 * 24 * time.Hour)
	expire(t, n)
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	if s := n.Status().Clock; !strings.Contains(s, "behind") {
		t.Errorf("clock: %s", s)
	}
}

// The definition of a shape goes when no file can hold a record of it any more, and comes back with the next one.
func TestShapesOnDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	write(t, n, deny(t, "j1"))
	want := func(count int, when string) {
		t.Helper()
		if got := len(n.journal.Keys(metaShape)); got != count {
			t.Fatalf("%d shapes %s", got, when)
		}
	}
	expire(t, n)
	want(1, "in its time")
	clk.Advance(4 * time.Hour)
	expire(t, n)
	want(1, "after its time, with records in files")
	stop()
	// A start with a clock that has gone back needs it.
	clk.Jump(-4 * time.Hour)
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	wantStatus(t, n, token(t, start, ""), revocation.Revoked)
	stop()
	clk.Jump(4 * time.Hour)
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	expire(t, n)
	want(1, "after its time")
	clk.Advance(keepDefinition)
	expire(t, n)
	want(0, "long after its time")
	r := revocation.Request{Match: match(t, "iss=i,jti=j1"), ExpiresAt: clk.Now().Add(time.Hour).UnixMilli()}
	write(t, n, r)
	want(1, "after a new record")
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	wantStatus(t, n, token(t, clk.Now(), ""), revocation.Revoked)
	clk.Advance(4 * time.Hour)
	for range 3 { // closed, sorted, removed
		expire(t, n)
		clk.Advance(2 * time.Hour)
	}
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	clk.Advance(11 * time.Minute)
	expire(t, n)
	want(0, "after a start that met no record of it")
}

// Origins of runs whose records have gone are forgotten.
func TestOriginsOnDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	for i := range 5 {
		n, stop := runNode(t, Config{Dir: dir, Clock: clk})
		write(t, n, revocation.Request{Match: match(t, fmt.Sprint("iss=i,jti=", i)), ExpiresAt: clk.Now().Add(time.Hour).UnixMilli()})
		stop()
	}
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	if got := len(n.journal.Keys(metaOrigin)); got != 5 {
		t.Fatalf("%d origins, want 5", got)
	}
	stop()
	clk.Advance(3 * time.Hour)
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	clk.Advance(11 * time.Minute)
	n.tick()
	for range 2 { // sealed, then sorted by expiry
		if err := n.journal.Expire(t.Context(), n.Now()/1000); err != nil {
			t.Fatal(err)
		}
		clk.Advance(time.Hour)
		n.tick()
	}
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := len(n.journal.Keys(metaOrigin)); got != 0 {
		t.Fatalf("%d origins without records", got)
	}
}

// A limit that was raised does not reach tokens issued before: their cutoffs may be gone.
func TestPolicyAcrossRestart(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	hour := revocation.Policy{Default: revocation.Settings{MaxTokenLifetime: time.Hour}}
	day := revocation.Policy{Default: revocation.Settings{MaxTokenLifetime: 24 * time.Hour}}
	long := func(iat time.Time) *revocation.Claims {
		c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"alice","iat":%d,"exp":%d}`, iat.Unix(), iat.Add(20*time.Hour).Unix()))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	n, stop := runNode(t, Config{Dir: dir, Clock: clk, Policy: hour})
	write(t, n, revocation.Request{Match: match(t, "iss=i,sub=alice")})
	stop()
	clk.Advance(2 * time.Hour)
	n, stop = runNode(t, Config{Dir: dir, Clock: clk, Policy: day})
	clk.Advance(11 * time.Minute)
	n.tick()
	n.table.Sweep(n.Now()) // the cutoff has gone
	if v := n.Check(long(start.Add(-time.Minute))); v.Status != revocation.Unknown || v.Cause != revocation.CauseLifetime {
		t.Fatalf("token from before: %s (%s)", v.Status, v.Cause)
	}
	wantStatus(t, n, long(clk.Now()), revocation.Active)
	if err := n.keepHouse(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk, Policy: day}) // and it is remembered
	defer stop()
	if v := n.Check(long(start.Add(-time.Minute))); v.Status != revocation.Unknown {
		t.Fatalf("token from before, after another restart: %s", v.Status)
	}
}

// What has been superseded does not stay on disk to its deadline: the space follows what lives.
func TestSupersededOnDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	for range 500 {
		clk.Advance(time.Millisecond)
		n.tick()
		write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=alice")})
		write(t, n, revocation.Request{Action: revocation.Unblock, Match: match(t, "iss=i,sub=alice")})
	}
	write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=bob")})
	for range 4 { // closed, then sorted
		expire(t, n)
		clk.Advance(time.Hour)
	}
	if s := n.Status().Journal; s.Kept != 2 || s.ExpiryFiles == 0 || s.Bytes > 4096 {
		t.Errorf("%+v", s)
	}
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	for sub, want := range map[string]revocation.Status{"alice": revocation.Active, "bob": revocation.Revoked} {
		c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","sub":"%s","iat":%d,"exp":%d}`, sub, start.Unix(), start.Add(10*time.Hour).Unix()))
		if err != nil {
			t.Fatal(err)
		}
		wantStatus(t, n, c, want)
	}
}

// A block that has ended stays on disk as what older ones are compared with: one of those that comes back after restarts brings nothing back.
func TestEndedBlockOnDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	user := match(t, "iss=i,sub=alice")
	long := write(t, n, revocation.Request{Action: revocation.Block, Match: user}).Rule
	old := n.table.Record(revocation.Revocation{Match: user, Shape: *long.Shape, Class: long.Class, Value: long.Value, ExpiresAt: long.ExpiresAt})
	clk.Advance(time.Second)
	write(t, n, revocation.Request{Action: revocation.Block, Match: user, ExpiresAt: start.Add(time.Hour).UnixMilli()})
	for range 4 { // closed, then sorted, and swept
		clk.Advance(24 * time.Hour)
		expire(t, n)
		stop()
		n, stop = runNode(t, Config{Dir: dir, Clock: clk})
		clk.Advance(11 * time.Minute)
		expire(t, n)
	}
	defer func() { stop() }()
	c := token(t, clk.Now(), "")
	wantStatus(t, n, c, revocation.Active)
	if _, err := n.table.Merge(old, 0, n.Now(), false); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, n, c, revocation.Active)
	if until := n.deadline(must(appendEntry(nil, entry{record: old}))); until != int64(old.RetainUntil())+600 {
		t.Errorf("on disk until %d", until)
	}
}

func must[T any](v T, _ error) T { return v }

// The slack is fixed with the directory: another one at a start would make memory and the files by expiry disagree on what has expired.
func TestSlackIsFixed(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	run := func(slack time.Duration) error {
		n, err := New(Config{Name: "n1", Key: testKey, Dir: dir, Clock: clk, Slack: slack, Store: ttlstore.Config{Heap: true}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		for deadline := time.After(20 * time.Second); ; {
			select {
			case err = <-done:
				done <- err
			case <-deadline:
				t.Fatal("neither ready nor ended")
			case <-time.After(time.Millisecond):
				if len(n.Ready()) > 0 {
					continue
				}
			}
			break
		}
		cancel()
		err = <-done
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		return err
	}
	for _, c := range []struct {
		slack   time.Duration
		refused bool
	}{{20 * time.Minute, false}, {10 * time.Minute, true}, {0, true}, {time.Hour, true}, {20 * time.Minute, false}} {
		if err := run(c.slack); errors.Is(err, ErrSlack) != c.refused || !c.refused && err != nil {
			t.Errorf("slack %s: %v", c.slack, err)
		}
	}
	// One that was written before it was noted has the default.
	dir = t.TempDir()
	if err := run(0); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(journal.Config{Dir: dir, RecordSize: entrySize, KeyID: uint64(testKey.ID())})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.Replay(t.Context(), func([]byte) error { return nil }, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- j.Run(ctx) }()
	if err := j.Append(t.Context(), &journal.Batch{Meta: []journal.Meta{{Key: metaSlack}}}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := errors.Join(<-ended, j.Close()); err != nil {
		t.Fatal(err)
	}
	if err := run(time.Minute); !errors.Is(err, ErrSlack) {
		t.Errorf("another than the default: %v", err)
	}
	if err := run(0); err != nil {
		t.Error(err)
	}
}

// A disk that does not take the changed policy does not end the node: it answers, is not ready, and says why.
func TestPolicyRefusedByDisk(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	_, stop := runNode(t, Config{Dir: dir, Clock: clk})
	stop()
	day := revocation.Policy{Default: revocation.Settings{MaxTokenLifetime: 25 * time.Hour}}
	n, err := New(Config{Name: "n1", Key: testKey, Dir: dir, Clock: clk, Policy: day})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.replayed.Store(true)
	if err := os.Remove(filepath.Join(dir, "LOCK")); err != nil { // one way to make the journal refuse everything
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g, ctx := errgroup.WithContext(ctx)
	if err := n.runJournal(ctx, g); err != nil {
		t.Errorf("the journal refuses the policy: %v", err)
	}
	if n.policyKept.Load() || !strings.Contains(strings.Join(n.Ready(), "; "), "the disk refuses writes") {
		t.Errorf("ready: %q", n.Ready())
	}
	cancel()
	if err := errors.Join(g.Wait(), n.Close()); err != nil {
		t.Error(err)
	}
	n, stop = runNode(t, Config{Dir: dir, Clock: clk, Policy: day})
	defer stop()
	if !n.policyKept.Load() || len(n.Ready()) > 0 {
		t.Errorf("ready: %q", n.Ready())
	}
}

// Many writers at once share syncs, and everything that was acknowledged is there after a restart.
func TestConcurrentDurable(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				results, receipt, err := n.Write(t.Context(), []revocation.Request{deny(t, fmt.Sprintf("%d-%d", w, i))}, WriteOptions{})
				if err != nil || results[0].Err != nil || receipt.Durability != DurabilityDisk {
					t.Errorf("%v, %+v, %+v", err, results, receipt)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	n = testNode(t, Config{Dir: dir, Clock: clk})
	if got := n.Status().Table.Items; got != 800 {
		t.Fatalf("%d records after the restart, want 800", got)
	}
}

// A policy that replaces another is on disk before it is in force, and cutoffs that were made under it bind the next start.
func TestSetPolicy(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	lifetime := func(d time.Duration) revocation.Policy {
		return revocation.Policy{Default: revocation.Settings{MaxTokenLifetime: d}}
	}
	n, err := New(Config{Name: "n1", Key: testKey, Dir: t.TempDir(), Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.SetPolicy(t.Context(), lifetime(time.Hour)); !errors.Is(err, ErrNotReady) {
		t.Errorf("before the journal is read: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n, stop := runNode(t, Config{Dir: dir, Clock: clk, Policy: lifetime(24 * time.Hour)})
	if err := n.SetPolicy(t.Context(), revocation.Policy{Ceiling: -1}); err == nil {
		t.Error("a bad policy is taken")
	}
	if err := n.SetPolicy(t.Context(), lifetime(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := n.Policy().Default.MaxTokenLifetime; got != time.Hour {
		t.Errorf("in force: %s", got)
	}
	if !bytes.Contains(n.onDisk.policy, []byte(fmt.Sprint(time.Hour.Nanoseconds()))) {
		t.Errorf("on disk: %s", n.onDisk.policy)
	}
	stop()
	n, stop = runNode(t, Config{Dir: dir, Clock: clk, Policy: lifetime(24 * time.Hour)})
	defer stop()
	if earlier := n.Policy().Default.Earlier; len(earlier) != 1 || earlier[0].MaxTokenLifetime != time.Hour {
		t.Errorf("limits of what was made under the earlier one: %+v", earlier)
	}
}
