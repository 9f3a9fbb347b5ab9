package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// as carries out one request of a writer.
func as(t testing.TB, n *Node, by *Writer, r revocation.Request) Result {
	t.Helper()
	results, _, err := n.Write(t.Context(), []revocation.Request{r}, WriteOptions{Writer: by})
	if err != nil {
		t.Fatal(err)
	}
	return results[0]
}

// wantQuota fails the test unless a result was refused for a quota.
func wantQuota(t testing.TB, what string, r Result, claims string, limit int) {
	t.Helper()
	q, ok := errors.AsType[*QuotaError](r.Err)
	if !ok || !errors.Is(r.Err, ErrQuota) || strings.Join(q.Claims, ",") != claims || q.Limit != limit || q.Grant != (claims != "iss") {
		t.Errorf("%s: %+v, %v", what, q, r.Err)
	}
}

// wantDone fails the test unless a request was carried out.
func wantDone(t testing.TB, what string, r Result, want Outcome) {
	t.Helper()
	if r.Err != nil || r.Outcome != want {
		t.Errorf("%s: %s, %v", what, r.Outcome, r.Err)
	}
}

func until(m revocation.Match, at time.Time) revocation.Request {
	return revocation.Request{Match: m, ExpiresAt: at.UnixMilli()}
}

// Writers may have so many live records of an issuer and no more. What is there already costs nothing, others and admins go on, checks do not notice.
func TestIssuerQuota(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{IssuerRecords: 3, Clock: clk})
	w1, w2 := &Writer{Name: "w1"}, &Writer{Name: "w2"}
	wantDone(t, "the first", as(t, n, w1, deny(t, "a")), OutcomeRevoked)
	wantDone(t, "the second", as(t, n, w1, deny(t, "b")), OutcomeRevoked)
	wantDone(t, "the third, of another writer", as(t, n, w2, deny(t, "c")), OutcomeRevoked)
	wantQuota(t, "one more", as(t, n, w1, deny(t, "d")), "iss", 3)
	wantQuota(t, "of another writer", as(t, n, w2, deny(t, "d")), "iss", 3)
	wantDone(t, "what is there", as(t, n, w1, deny(t, "a")), OutcomeCovered)
	wantDone(t, "another issuer", as(t, n, w1, until(match(t, "iss=j,jti=d"), start.Add(time.Hour))), OutcomeRevoked)
	if _, err := n.Rehearse(deny(t, "d"), w1); !errors.Is(err, ErrQuota) {
		t.Errorf("a rehearsal: %v", err)
	}
	wantDone(t, "an admin", as(t, n, nil, deny(t, "d")), OutcomeRevoked)
	wantDone(t, "an admin, again", as(t, n, nil, deny(t, "e")), OutcomeRevoked)
	for _, jti := range []string{"a", "b", "c", "d", "e"} {
		wantStatus(t, n, claimsAt(t, start, jti), revocation.Revoked)
	}
	// They are over when they have been forgotten, rounded up by an eighth at most.
	live := time.Hour + revocation.DefaultSlack
	clk.Advance(live - time.Second)
	n.tick()
	r := until(match(t, "iss=i,jti=f"), clk.Now().Add(time.Hour))
	wantQuota(t, "in their last second", as(t, n, w1, r), "iss", 3)
	clk.Advance(live/8 + 2*time.Second)
	n.tick()
	wantDone(t, "when they are over", as(t, n, w1, r), OutcomeRevoked)
}

// A batch is cut at the edge and not as a whole; one request that needs several records has all or none; what did not come to be costs nothing.
func TestQuotaAtTheEdge(t *testing.T) {
	n := testNode(t, Config{IssuerRecords: 3})
	w := &Writer{Name: "w"}
	var batch []revocation.Request
	for i := range 5 {
		batch = append(batch, deny(t, fmt.Sprint("j", i)))
	}
	rehearsed := batch[4]
	for range 10 { // it would take the last place if it took one
		if _, err := n.Rehearse(rehearsed, w); err != nil {
			t.Fatal(err)
		}
	}
	results, _, err := n.Write(t.Context(), batch[:2], WriteOptions{Writer: w})
	if err != nil || results[0].Err != nil || results[1].Err != nil {
		t.Fatal(results, err)
	}
	keep := revocation.Request{Match: match(t, "iss=i,sub=alice"), Keep: []revocation.Match{match(t, "iss=i,sid=s")}, Cutoff: true}
	wantQuota(t, "two records where one is left", as(t, n, w, keep), "iss", 3)
	results, _, err = n.Write(t.Context(), batch, WriteOptions{Writer: w})
	if err != nil || results[0].Outcome != OutcomeCovered || results[1].Outcome != OutcomeCovered || results[2].Outcome != OutcomeRevoked {
		t.Fatal(results, err)
	}
	wantQuota(t, "the fourth", results[3], "iss", 3)
	wantQuota(t, "the fifth", results[4], "iss", 3)
	if all, _ := n.table.Size(); all != 3 {
		t.Errorf("%d records", all)
	}
}

// Who asks for the same again in one call, such as for all sessions of a user by each of his tokens, pays once; a later deadline costs as ever.
func TestQuotaOfTheSameInACall(t *testing.T) {
	n := testNode(t, Config{IssuerRecords: 4})
	w := &Writer{Name: "w"}
	alice := match(t, "iss=i,sub=alice")
	results, _, err := n.Write(t.Context(), []revocation.Request{
		deny(t, "a"), deny(t, "a"),
		{Match: alice, Cutoff: true},
		{Match: alice, Cutoff: true},
		{Match: alice, Action: revocation.Block},
		{Match: alice, Action: revocation.Unblock},
		{Match: alice, Action: revocation.Block},
		until(match(t, "iss=i,jti=a"), start.Add(300*24*time.Hour)), until(match(t, "iss=i,jti=a"), start.Add(400*24*time.Hour)), deny(t, "a"),
	}, WriteOptions{Writer: w})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if i == 8 {
			wantQuota(t, "a fifth place", r, "iss", 4)
		} else if r.Err != nil {
			t.Errorf("%d: %v", i, r.Err)
		}
	}
	if a := n.quotas.accounts; len(a) != 1 {
		t.Errorf("%d accounts", len(a))
	}
	for _, a := range n.quotas.accounts {
		if a.total != 4 {
			t.Errorf("%d places", a.total)
		}
	}
}

// A block that was refused is not looked after: what somebody else has done meanwhile is not told instead of the refusal, and a block before it in the call is still looked after.
func TestRefusedBlock(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk, IssuerRecords: 1})
	requests := []revocation.Request{
		{Match: match(t, "iss=i,sub=alice"), Action: revocation.Block},
		{Match: match(t, "iss=i,sub=bob"), Action: revocation.Block},
	}
	done, err := n.write(t.Context(), requests, WriteOptions{Writer: &Writer{Name: "w"}})
	if err != nil || done.results[0].Err != nil {
		t.Fatal(done.results, err)
	}
	wantQuota(t, "the second", done.results[1], "iss", 1)
	at := clk.Now().Add(time.Second)
	for _, user := range []string{"alice", "bob"} {
		plan, err := n.table.Plan(revocation.Request{Match: match(t, "iss=i,sub="+user), Action: revocation.Unblock}, at.UnixMilli(), at.UnixMilli())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.table.Merge(n.table.Record(plan.Main()), 1, n.Now(), false); err != nil {
			t.Fatal(err)
		}
	}
	if lost := n.superseded(done); len(lost) != 1 || lost[0].request != 0 {
		t.Errorf("superseded: %+v", lost)
	}
}

// A cutoff that is written again and again is counted for each bucket that its deadline reaches, while those before are not over: so often at most.
func TestQuotaOfACutoffThatRises(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{Clock: clk, IssuerRecords: 17})
	w := &Writer{Name: "w"}
	for range 600 {
		wantDone(t, "logout", as(t, n, w, revocation.Request{Match: match(t, "iss=i,sub=alice"), Cutoff: true}), OutcomeRevoked)
		clk.Advance(revocation.DefaultMaxTokenLifetime / 100)
		n.tick()
	}
}

// What is refused for its shape has cost nothing.
func TestQuotaBehindShapes(t *testing.T) {
	n := testNode(t, Config{IssuerRecords: revocation.WriterShapes + 1})
	w := &Writer{Name: "w"}
	of := func(i int, user string) revocation.Request {
		return until(match(t, fmt.Sprintf("iss=i,c%d=%s", i, user)), start.Add(25*time.Hour))
	}
	for i := range revocation.WriterShapes {
		wantDone(t, "his share", as(t, n, w, of(i, "x")), OutcomeRevoked)
	}
	for range 3 {
		if r := as(t, n, w, of(revocation.WriterShapes, "x")); !errors.Is(r.Err, revocation.ErrWriterShapes) {
			t.Errorf("beyond his share: %+v", r)
		}
	}
	wantDone(t, "a shape that is live", as(t, n, w, of(0, "y")), OutcomeRevoked)
	wantQuota(t, "beyond the quota", as(t, n, w, of(0, "z")), "iss", revocation.WriterShapes+1)
}

// A record that is written again is not another one: a user who is blocked and unblocked over and over, a cutoff that rises, cost a writer one place.
func TestQuotaOfWhatIsThere(t *testing.T) {
	clk := clocktest.New(start)
	n := testNode(t, Config{IssuerRecords: 2, Clock: clk})
	w := &Writer{Name: "w"}
	block := revocation.Request{Match: match(t, "iss=i,sub=alice"), Action: revocation.Block}
	unblock := revocation.Request{Match: block.Match, Action: revocation.Unblock}
	cutoff := revocation.Request{Match: match(t, "iss=i,sub=bob"), Cutoff: true}
	for range 20 {
		wantDone(t, "block", as(t, n, w, block), OutcomeRevoked)
		wantDone(t, "unblock", as(t, n, w, unblock), OutcomeUnblocked)
		wantDone(t, "cutoff", as(t, n, w, cutoff), OutcomeRevoked)
		clk.Advance(time.Second)
		n.tick()
	}
	wantQuota(t, "another one", as(t, n, w, deny(t, "j")), "iss", 2)
	// A deadline far behind the one that is held is a place of its own, so that nobody makes long ones of short ones for nothing.
	wantQuota(t, "a longer one", as(t, n, w, until(cutoff.Match, clk.Now().Add(300*24*time.Hour))), "iss", 2)
}

// All who have a grant share its quota; without a number there is none, and what is in no grant of a writer is not counted under one.
func TestGrantQuota(t *testing.T) {
	n := testNode(t, Config{})
	tenant, issuer := match(t, "iss=i,tenant_id=acme"), match(t, "iss=i")
	w1 := &Writer{Name: "w1", Records: 2, Grants: []revocation.Match{tenant, match(t, "iss=j")}}
	w2 := &Writer{Name: "w2", Records: 3, Grants: []revocation.Match{tenant}}
	free := &Writer{Name: "free", Grants: []revocation.Match{tenant}}
	wide := &Writer{Name: "wide", Records: 1, Grants: []revocation.Match{issuer}}
	of := func(m string) revocation.Request { return until(match(t, m), start.Add(time.Hour)) }
	acme := func(jti string) revocation.Request { return of("iss=i,tenant_id=acme,jti=" + jti) }
	wantDone(t, "no quota", as(t, n, free, acme("a")), OutcomeRevoked)
	wantDone(t, "no quota", as(t, n, free, acme("b")), OutcomeRevoked)
	wantDone(t, "the first", as(t, n, w1, acme("c")), OutcomeRevoked)
	wantDone(t, "the second", as(t, n, w1, acme("d")), OutcomeRevoked)
	wantQuota(t, "the third", as(t, n, w1, acme("e")), "iss,tenant_id", 2)
	wantDone(t, "the third, of who may have three", as(t, n, w2, acme("e")), OutcomeRevoked)
	wantQuota(t, "the fourth", as(t, n, w2, acme("f")), "iss,tenant_id", 3)
	wantDone(t, "the other grant", as(t, n, w1, of("iss=j,jti=a")), OutcomeRevoked)
	wantDone(t, "the other grant", as(t, n, w1, of("iss=j,jti=b")), OutcomeRevoked)
	if r := as(t, n, w1, of("iss=j,jti=c")); !errors.Is(r.Err, ErrQuota) {
		t.Errorf("beyond the other grant: %+v", r)
	}
	twice := &Writer{Name: "twice", Records: 1, Grants: []revocation.Match{match(t, "iss=k"), match(t, "iss=k")}}
	wantDone(t, "a grant that is there twice", as(t, n, twice, of("iss=k,jti=a")), OutcomeRevoked)
	wantDone(t, "the grant of the issuer", as(t, n, wide, of("iss=i,jti=x")), OutcomeRevoked)
	if r := as(t, n, wide, of("iss=i,jti=y")); !errors.Is(r.Err, ErrQuota) {
		t.Errorf("beyond the grant of the issuer: %+v", r)
	}
}

// The quota of an issuer and that of a grant of this issuer are two: one record is one in each.
func TestQuotasAreTwo(t *testing.T) {
	n := testNode(t, Config{IssuerRecords: 2})
	w := &Writer{Name: "w", Records: 2, Grants: []revocation.Match{match(t, "iss=i")}}
	wantDone(t, "the first", as(t, n, w, deny(t, "a")), OutcomeRevoked)
	wantDone(t, "the second", as(t, n, w, deny(t, "b")), OutcomeRevoked)
	wantQuota(t, "the third", as(t, n, w, deny(t, "c")), "iss", 2)
	if err := n.quotas.take(n.charges(w, match(t, "iss=i"), []uint32{1}), 0, true); err == nil {
		t.Error("no quota of an issuer")
	}
	if err := n.quotas.take(n.charges(w, match(t, "iss=i"), []uint32{1})[1:], 0, true); err == nil {
		t.Error("no quota of a grant")
	}
}

// What other nodes send is bound by no quota and no share, and counts in none.
func TestPeersHaveNoQuota(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: testKey, IssuerRecords: 1}, "a", "b")
	m.ready()
	at := time.Now().Add(time.Hour)
	w := &Writer{Name: "w"}
	for i := range 20 { // of as many shapes
		as(t, m.nodes["a"], nil, until(match(t, fmt.Sprintf("iss=i,c%d=x,jti=y", i)), at))
	}
	m.until("b has them", func() bool { all, _ := m.nodes["b"].table.Size(); return all == 20 })
	wantDone(t, "a writer there", as(t, m.nodes["b"], w, until(match(t, "iss=i,jti=a"), at)), OutcomeRevoked)
	wantQuota(t, "the second", as(t, m.nodes["b"], w, until(match(t, "iss=i,jti=b"), at)), "iss", 1)
}

// Counts are on disk with the records: a restart, and a crash, forget none, and what is over leaves the disk. Records beyond the quota are read all the same.
func TestQuotaAcrossRestart(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	cfg := Config{Dir: dir, Clock: clk, IssuerRecords: 3}
	w := &Writer{Name: "w", Records: 3, Grants: []revocation.Match{match(t, "iss=i")}}
	n, stop := runNode(t, cfg)
	for _, jti := range []string{"a", "b", "c"} {
		wantDone(t, jti, as(t, n, w, deny(t, jti)), OutcomeRevoked)
	}
	if keys := n.journal.Keys(metaQuota); len(keys) != 2 || strings.Contains(strings.Join(keys, " "), "iss") {
		t.Errorf("on disk: %q", keys)
	}
	killed := t.TempDir() // what is on disk if it ends now
	if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	stop()
	for i, limit := range []int{3, 1, 3} { // it may change
		cfg.IssuerRecords, cfg.Dir = limit, []string{dir, dir, killed}[i]
		n, stop = runNode(t, cfg)
		wantQuota(t, "after a restart", as(t, n, w, deny(t, "d")), "iss", limit)
		for _, jti := range []string{"a", "b", "c"} {
			wantStatus(t, n, claimsAt(t, start, jti), revocation.Revoked)
		}
		stop()
	}
	cfg.IssuerRecords = 4
	n, stop = runNode(t, cfg)
	w.Records = 4
	wantDone(t, "after a restart", as(t, n, w, deny(t, "d")), OutcomeRevoked)
	wantQuota(t, "after a restart", as(t, n, w, deny(t, "e")), "iss", 4)
	clk.Advance(2 * time.Hour)
	expire(t, n)
	n.quotas.sweep(uint32(n.Now() / 1000))
	expire(t, n)
	if keys := n.journal.Keys(metaQuota); len(keys) != 0 || len(n.quotas.accounts) != 0 {
		t.Errorf("over, and on disk: %q", keys)
	}
	stop()
}

// What the disk has refused is not counted.
func TestQuotaOfWhatFailed(t *testing.T) {
	fs := &failingFS{gate: make(chan struct{})}
	close(fs.gate)
	n := testNode(t, Config{Dir: t.TempDir(), FS: fs, IssuerRecords: 2})
	w := &Writer{Name: "w"}
	wantDone(t, "the first", as(t, n, w, deny(t, "a")), OutcomeRevoked)
	fs.fail.Store(1)
	// One of them is refused for the quota; what the disk does to the other is an error of the call.
	if _, _, err := n.Write(t.Context(), []revocation.Request{deny(t, "b"), deny(t, "c")}, WriteOptions{Writer: w}); !errors.Is(err, journal.ErrDisk) {
		t.Fatalf("the disk has refused nothing: %v", err)
	}
	wantDone(t, "the second", as(t, n, w, deny(t, "d")), OutcomeRevoked)
	wantQuota(t, "the third", as(t, n, w, deny(t, "e")), "iss", 2)
}

// A writer who gives up does not take back what the journal carries out.
func TestQuotaOfWhoGivesUp(t *testing.T) {
	n := testNode(t, Config{Dir: t.TempDir(), IssuerRecords: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := &Writer{Name: "w"}
	_, _, err := n.Write(ctx, []revocation.Request{deny(t, "a")}, WriteOptions{Writer: w})
	as(t, n, nil, deny(t, "barrier")) // what was queued before is decided
	held := n.Check(claimsAt(t, start, "a")).Status == revocation.Revoked
	r := as(t, n, w, deny(t, "b"))
	if held != errors.Is(r.Err, ErrQuota) {
		t.Errorf("given up with %v, written: %v, then: %v", err, held, r.Err)
	}
}

// A bucket is never before its deadline, at most an eighth of what is left behind it, or a minute, and later deadlines do not have earlier ones.
func TestBucket(t *testing.T) {
	const now = 1_800_000_000
	seen, before := map[uint32]bool{}, uint32(0)
	for left := uint32(0); left < 401*24*3600; left += 1 + left/1000 {
		deadline := now + left
		b := bucket(deadline, now)
		if b < deadline || b-deadline >= max(leastBucket, left/8+1) || b < before {
			t.Fatalf("%d s: %d after %d", left, b-now, before)
		}
		seen[b], before = true, b
	}
	if len(seen) > 160 {
		t.Errorf("%d buckets", len(seen))
	}
	if b := bucket(now-5, now); b < now-5 || b > now+leastBucket {
		t.Errorf("over already: %d", b)
	}
	if b := bucket(^uint32(0)-1, now); b != ^uint32(0) {
		t.Errorf("at the end of time: %d", b)
	}
}

// So many quotas are told apart; beyond it they share one count, until some are over.
func TestManyQuotas(t *testing.T) {
	q := newQuotas()
	of := func(i int, until uint32) []charge {
		return []charge{{revocation.Fingerprint{Hi: uint64(i + 1)}, until, QuotaError{Limit: 1}}}
	}
	for i := range MaxAccounts {
		if err := q.take(of(i, 100), 0, false); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := q.take(of(-10, 200), 0, false); err != nil {
		t.Errorf("the first beyond the limit: %v", err)
	}
	shared := of(-11, 200)
	if err := q.take(shared, 0, false); !errors.Is(err, ErrQuota) {
		t.Errorf("the second shares its count: %v", err)
	}
	if err := q.take(of(0, 100), 0, false); !errors.Is(err, ErrQuota) {
		t.Errorf("one of the first: %v", err)
	}
	if len(q.accounts) != MaxAccounts+1 {
		t.Errorf("%d accounts", len(q.accounts))
	}
	if err := q.take(of(0, 300), 101, false); err != nil { // a second after the last of the first
		t.Errorf("over, before anything was swept: %v", err)
	}
	q.sweep(101)
	if len(q.accounts) != 2 {
		t.Errorf("%d accounts are left", len(q.accounts))
	}
	if err := q.take(of(-11, 200), 101, false); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

// What is no count is not taken for one.
func TestQuotaOnDisk(t *testing.T) {
	good := charge{revocation.Fingerprint{Hi: 1, Lo: 2}, 77, QuotaError{}}
	for _, bad := range []struct{ key, value string }{
		{metaQuota, "\x01"},
		{metaQuota + "00", "\x01"},
		{good.key() + "x", "\x01"},
		{good.key(), ""},
		{good.key(), "\x80"},
		{good.key(), "\x01\x01"},
		{strings.Replace(good.key(), "/4d", "/1ffffffff", 1), "\x01"},
	} {
		if err := newQuotas().restore(bad.key, []byte(bad.value)); err == nil {
			t.Errorf("%q = %q", bad.key, bad.value)
		}
	}
	q := newQuotas()
	if err := q.restore(good.key(), []byte{5}); err != nil || q.accounts[good.account].total != 5 || q.accounts[good.account].buckets[77] != (counted{5, true}) {
		t.Errorf("%v, %+v", err, q.accounts)
	}
	// One batch has a bucket once, and none that is over.
	good.quota.Limit = 10
	b := new(journal.Batch)
	if err := q.take([]charge{good, good}, 0, false); err != nil {
		t.Fatal(err)
	}
	q.bring(b, []charge{good, good})
	if len(b.Meta) != 1 || !slices.Equal(b.Meta[0].Value, []byte{7}) {
		t.Errorf("%+v", b.Meta)
	}
	q.sweep(78)
	q.bring(b, []charge{good})
	q.forget(b)
	if len(b.Meta) != 2 || b.Meta[1].Key != good.key() || b.Meta[1].Value != nil {
		t.Errorf("%+v", b.Meta)
	}
	// What was given back leaves the disk too, unless it counts again; a rehearsal never comes there.
	b = new(journal.Batch)
	one := []charge{good}
	if err := errors.Join(q.take(one, 0, false), q.take(one, 0, true)); err != nil {
		t.Fatal(err)
	}
	q.bring(b, one)
	q.giveBack(one)
	if err := q.take(one, 0, false); err != nil {
		t.Fatal(err)
	}
	q.forget(b)
	if len(b.Meta) != 1 {
		t.Errorf("it counts again: %+v", b.Meta)
	}
	q.giveBack(one)
	if q.forget(b); len(b.Meta) != 2 || b.Meta[1].Value != nil || len(q.gone) != 0 {
		t.Errorf("%+v", b.Meta)
	}
	if err := q.take(one, 0, true); err != nil || len(q.gone) != 0 || len(q.accounts) != 0 { // else rehearsals would take the places of those who write
		t.Errorf("a rehearsal leaves %+v, %v", q.accounts, err)
	}
	// So many at once.
	for i := range maxForgotten + 1 {
		q.gone = append(q.gone, charge{account: good.account, until: uint32(i)})
	}
	b = new(journal.Batch)
	if q.forget(b); len(b.Meta) != maxForgotten || len(q.gone) != 1 {
		t.Errorf("%d at once, %d are left", len(b.Meta), len(q.gone))
	}
}
