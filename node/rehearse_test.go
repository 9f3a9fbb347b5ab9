package node

import (
	"errors"
	"fmt"
	"testing"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/revocation"
)

// A rehearsal says what the write would answer and changes nothing; the sample of checks says what it would have refused.
func TestRehearse(t *testing.T) {
	n := testNode(t, Config{})
	claims := func(sub string) *revocation.Claims {
		c := new(revocation.Claims)
		for name, v := range map[string]string{"iss": "i", "sub": sub} {
			if err := c.Set(name, revocation.String(v)); err != nil {
				t.Fatal(err)
			}
		}
		c.SetIssuedAt(n.Now() - 1000)
		c.SetExpiresAt(n.Now() + 60_000)
		return c
	}
	m, err := revocation.ParseMatch("iss=i,sub=alice")
	if err != nil {
		t.Fatal(err)
	}
	block := revocation.Request{Action: revocation.Block, Match: m}
	for i := range 10 {
		n.CheckFresh(claims([]string{"alice", "bob"}[i%2]), CheckOptions{})
	}
	r, err := n.Rehearse(block, nil)
	if err != nil || r.Outcome != OutcomeRevoked || r.ShapeLive || r.Checks.Checks != 10 || r.Checks.Refused != 5 || r.Rule.ExpiresAt == 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	if shapes := n.table.Shapes(); len(shapes) != 0 || n.Check(claims("alice")).Status != revocation.Active {
		t.Errorf("a rehearsal has left %v", shapes)
	}
	if st := n.Status().Writes; st != (WriteStats{}) {
		t.Errorf("counted as a write: %+v", st)
	}
	results, _, err := n.Write(t.Context(), []revocation.Request{block}, WriteOptions{})
	if err != nil || results[0].Outcome != r.Outcome || results[0].Fingerprint != r.Fingerprint {
		t.Errorf("%+v, %v", results, err)
	}
	if r, err = n.Rehearse(revocation.Request{Match: m, ExpiresAt: n.Now() + 90*24*3600_000, IssuedBefore: n.Now()}, nil); err != nil || r.ShapeLive || r.UsableAfter == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = n.Rehearse(block, nil); err != nil || !r.ShapeLive || r.ShapeRecords != 1 || r.ShapeRecordsEstimated {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = n.Rehearse(revocation.Request{Match: m, ExpiresAt: 1}, nil); err == nil {
		t.Errorf("%+v", r)
	}
	// What a write would be refused for.
	for i := range revocation.MaxLiveShapes {
		m, err := revocation.ParseMatch(fmt.Sprintf("iss=i,c%d=x", i))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := n.Write(t.Context(), []revocation.Request{{Action: revocation.Block, Match: m}}, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if m, err = revocation.ParseMatch("iss=i,other=x"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Rehearse(revocation.Request{Action: revocation.Block, Match: m}, nil); !errors.Is(err, revocation.ErrShapes) {
		t.Error(err)
	}
}

// Of many checks few are remembered, and the others cost nothing.
func TestFewChecksAreRemembered(t *testing.T) {
	n := testNode(t, Config{})
	c := new(revocation.Claims)
	c.SetIssuedAt(n.Now())
	if a := testing.AllocsPerRun(1000, func() { n.CheckFresh(c, CheckOptions{}) }); a != 0 {
		t.Errorf("%v allocations", a)
	}
	got := n.rehearsals.recent.Catch(revocation.Plan{Revocations: []revocation.Revocation{{Class: revocation.ClassBlock}}}, 0)
	if got.Checks < sampledAtOnce || got.Checks > 500 {
		t.Errorf("%+v", got)
	}
}

func BenchmarkCheckSampled(b *testing.B) {
	n, stop := benchNode(b, Config{Name: "n1", Key: testKey, Durability: DurabilityMemory, Clock: clocktest.New(start)})
	defer stop()
	c := new(revocation.Claims)
	c.SetIssuedAt(n.Now())
	c.SetExpiresAt(n.Now() + 60_000)
	b.ReportAllocs()
	for b.Loop() {
		n.CheckFresh(c, CheckOptions{})
	}
}
