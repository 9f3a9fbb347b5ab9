package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
	"github.com/revokd/revokd/revocation"
)

// newVoting is a mesh of nodes with disks of which some have agreed, by themselves, to be the voters.
func newVoting(t *testing.T, names []string, first int) *mesh {
	m := &mesh{t: t, names: names, voting: true, nodes: map[string]*Node{}, stops: map[string]func(){}, links: map[string]func(){}}
	for _, name := range names {
		m.start(name, Config{
			Name: name, Key: revocation.Key{1}, Dir: t.TempDir(), ProbeEvery: 20 * time.Millisecond, AckTimeout: 10 * time.Second, Cluster: &ClusterConfig{},
		})
	}
	t.Cleanup(func() {
		for _, name := range names {
			m.stops[name]()
		}
		m.wg.Wait()
	})
	for i, a := range names {
		for _, b := range names[i+1:] {
			m.link(a, b)
		}
	}
	var seen []voters.Voter
	for _, name := range names[:first] {
		seen = append(seen, voters.Voter{Name: name, Incarnation: voters.Incarnation(m.nodes[name].replica.incarnation)})
	}
	for _, name := range names[:first] {
		m.nodes[name].members.events <- voters.Bootstrap{Expect: first, Seen: seen}
	}
	for _, name := range names {
		m.until(name+" knows the voters", func() bool {
			st := m.nodes[name].Voters()
			return len(st.Config.Voters) == first && st.Votes == slices.Contains(names[:first], name)
		})
	}
	m.ready()
	return m
}

// revoke writes one revocation and returns who has confirmed it.
func (m *mesh) revoke(name, jti string, level Ack, limit time.Duration) (Receipt, error) {
	r := revocation.Request{Match: match(m.t, "iss=i,jti="+jti), ExpiresAt: time.Now().Add(time.Hour).UnixMilli()}
	_, receipt, err := m.nodes[name].Write(m.t.Context(), []revocation.Request{r}, WriteOptions{Ack: level, AckTimeout: limit})
	return receipt, err
}

// Acknowledgements and views count under one list (guarantees 1, rule 3): who holds a write and follows another list has confirmed nothing, until both follow the same.
func TestAcknowledgedUnderOneList(t *testing.T) {
	m := newMesh(t, Config{Durability: DurabilityMemory, Key: revocation.Key{1}, ProbeEvery: 20 * time.Millisecond, MaxStaleness: 300 * time.Millisecond}, "a", "b", "c")
	m.ready()
	other := replication.Voters{Number: 2, Hash: 8, Names: m.names}
	follow := func(name string) {
		m.nodes[name].setVoters(other, true)
	}
	follow("c")
	m.until("c's acknowledgements do not count on a", func() bool {
		receipt, err := m.revoke("a", "all", AckAll, 100*time.Millisecond)
		return errors.Is(err, ErrAck) && receipt.Ack == AckQuorum && slices.Equal(receipt.Confirmed, []string{"a", "b"}) && slices.Equal(receipt.Unconfirmed, []string{"c"})
	})
	if receipt, err := m.revoke("a", "two", AckQuorum, 10*time.Second); err != nil || !slices.Equal(receipt.Confirmed, []string{"a", "b"}) {
		t.Fatalf("two of three under the same list: %+v %v", receipt, err)
	}
	follow("b")
	m.until("a is alone with its list", func() bool {
		receipt, err := m.revoke("a", "one", AckQuorum, 100*time.Millisecond)
		return errors.Is(err, ErrAck) && slices.Equal(receipt.Confirmed, []string{"a"})
	})
	c := claimsAt(t, time.Now(), "x")
	m.until("a's view is of too few", func() bool { return m.nodes["a"].Check(c).Cause == revocation.CauseStale })
	for _, name := range []string{"b", "c"} { // it holds all of it all the same
		m.until(name+" holds what a wrote", func() bool {
			return m.nodes[name].Check(claimsAt(t, time.Now(), "one")).Status == revocation.Revoked
		})
	}
	done := make(chan Receipt, 1)
	go func() {
		receipt, err := m.revoke("a", "waits", AckAll, 10*time.Second)
		if err != nil {
			t.Error(err)
		}
		done <- receipt
	}()
	m.until("b holds what waits", func() bool {
		return m.nodes["b"].Check(claimsAt(t, time.Now(), "waits")).Status == revocation.Revoked
	})
	select {
	case receipt := <-done:
		t.Fatalf("acknowledged by others' lists: %+v", receipt)
	case <-time.After(50 * time.Millisecond): // long enough for what is held everywhere to be acknowledged by mistake
	}
	follow("a")
	if receipt := <-done; receipt.Ack != AckAll || len(receipt.Confirmed) != 3 {
		t.Errorf("under the same list again: %+v", receipt)
	}
	m.until("a's view is fresh", func() bool { return m.nodes["a"].Check(c).Status == revocation.Active })
}

// While voters are added and removed under writes, every acknowledgement is one of a majority of a list that was in force, and nothing of it is lost.
func TestWritesDuringVoterChanges(t *testing.T) {
	m := newVoting(t, []string{"a", "b", "c", "d"}, 3)
	lists := [][]string{{"a", "b", "c"}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	var receipts []Receipt
	var wg sync.WaitGroup
	for _, name := range []string{"a", "c"} {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				receipt, err := m.revoke(name, fmt.Sprint(name, i), AckQuorum, 10*time.Second)
				if err != nil {
					t.Errorf("%s %d: %+v %v", name, i, receipt, err)
					return
				}
				mu.Lock()
				receipts = append(receipts, receipt)
				mu.Unlock()
			}
		})
	}
	change := func(by string, c VoterChange, list ...string) {
		t.Helper()
		if err := m.nodes[by].ChangeVoters(ctx, c, 15*time.Second); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		lists = append(lists, list)
		before := len(receipts)
		mu.Unlock()
		for _, name := range m.names {
			m.until(name+" knows the list", func() bool { return len(m.nodes[name].Voters().Config.Voters) == len(list) })
		}
		m.until("writes go on", func() bool { mu.Lock(); defer mu.Unlock(); return len(receipts) > before+20 })
	}
	change("a", VoterChange{Add: "d"}, "a", "b", "c", "d")
	change("c", VoterChange{Remove: "b"}, "a", "c", "d")
	change("d", VoterChange{Remove: "d"}, "a", "c")
	change("c", VoterChange{Add: "b"}, "a", "b", "c")
	cancel()
	wg.Wait()
	for i, r := range receipts {
		if !slices.ContainsFunc(lists, func(list []string) bool {
			n := 0
			for _, name := range r.Confirmed {
				if slices.Contains(list, name) {
					n++
				}
			}
			return n > len(list)/2
		}) {
			t.Fatalf("receipt %d is of no majority: %+v", i, r)
		}
	}
	if d := m.nodes["d"].Voters(); d.Votes {
		t.Errorf("d still votes: %+v", d)
	}
	t.Logf("%d acknowledgements", len(receipts))
}

// A voter whose disk was lost does not vote again before it has caught up with n - W + 1 others (guarantees 1, rule 4), here two: with one of them it may lack what the other
// one and its former self have acknowledged.
func TestWipedVoter(t *testing.T) {
	m := newVoting(t, []string{"a", "b", "c"}, 3)
	// Acknowledged by a and c, while b is away.
	m.links["ab"]()
	m.links["bc"]()
	m.until("b is away", func() bool { return !m.nodes["a"].replica.connected("b") && !m.nodes["c"].replica.connected("b") })
	if receipt, err := m.revoke("a", "lost", AckQuorum, 10*time.Second); err != nil || !slices.Equal(receipt.Confirmed, []string{"a", "c"}) {
		t.Fatalf("%+v %v", receipt, err)
	}
	acked := time.Now()
	cfg := m.nodes["c"].cfg
	m.stops["c"]()
	if err := os.RemoveAll(cfg.Dir); err != nil {
		t.Fatal(err)
	}
	before := m.nodes["a"].Voters().Config
	m.start("c", cfg)
	c := m.nodes["c"]
	m.link("b", "c")
	m.until("c is level with b", func() bool { return len(c.Ready()) == 0 })
	lost := claimsAt(t, time.Now(), "lost")
	fresh := CheckOptions{MaxStaleness: 100 * time.Millisecond}
	m.until("more than that has passed", func() bool { return time.Since(acked) > fresh.MaxStaleness })
	for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) { // ten times as long as a vote takes
		if c.Voters().Votes {
			t.Fatal("it votes again after it has caught up with one")
		}
		for _, name := range []string{"b", "c"} {
			if v := m.nodes[name].CheckFresh(lost, fresh); v.Status == revocation.Active {
				t.Fatalf("%s calls active what a majority has acknowledged as revoked: %+v", name, v)
			}
		}
	}
	if receipt, err := m.revoke("b", "minority", AckQuorum, 200*time.Millisecond); !errors.Is(err, ErrAck) || !slices.Equal(receipt.Confirmed, []string{"b"}) {
		t.Fatalf("acknowledged with a voter that has lost its disk: %+v %v", receipt, err)
	}
	m.link("a", "c")
	m.link("a", "b")
	m.until("c votes again", func() bool { return c.Voters().Votes })
	if v := c.Check(lost); v.Status != revocation.Revoked {
		t.Errorf("%+v", v)
	}
	m.until("all confirm", func() bool {
		receipt, err := m.revoke("b", "all", AckAll, time.Second)
		return err == nil && len(receipt.Confirmed) == 3
	})
	after := m.nodes["a"].Voters().Config
	if after.Number <= before.Number || after.Contains("c", before.Voters[2].Incarnation) || len(after.Voters) != 3 {
		t.Errorf("before %s, after %s", before, after)
	}
}

// Without a quorum only the statement that a voter is lost goes on, and the receipts say what that is worth from then on.
func TestAcceptLoss(t *testing.T) {
	m := newVoting(t, []string{"a", "b"}, 2)
	if _, err := m.revoke("a", "both", AckAll, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	m.stops["b"]()
	m.until("b is gone", func() bool { return !m.nodes["a"].replica.connected("b") })
	if receipt, err := m.revoke("a", "one", AckQuorum, 100*time.Millisecond); !errors.Is(err, ErrAck) || receipt.Ack != AckLocal {
		t.Fatalf("%+v %v", receipt, err)
	}
	a := m.nodes["a"]
	if err := a.ChangeVoters(t.Context(), VoterChange{Remove: "b"}, 300*time.Millisecond); !errors.Is(err, ErrVoters) {
		t.Fatalf("removed without a quorum: %v", err)
	}
	for _, name := range []string{"x", "a"} {
		if err := a.ChangeVoters(t.Context(), VoterChange{AcceptLoss: name}, 0); !errors.Is(err, ErrVoters) {
			t.Errorf("the loss of %s is accepted: %v", name, err)
		}
	}
	if err := a.ChangeVoters(t.Context(), VoterChange{AcceptLoss: "b"}, 0); err != nil {
		t.Fatal(err)
	}
	if st := a.Voters(); len(st.Config.Voters) != 1 || !st.Votes || st.Config.Losses != 1 {
		t.Errorf("%+v", st)
	}
	receipt, err := m.revoke("a", "after", AckQuorum, 10*time.Second)
	if err != nil || !slices.Equal(receipt.Confirmed, []string{"a"}) {
		t.Errorf("%+v %v", receipt, err)
	}
	// Who was given up does not vote by its old list when it comes back.
	cfg := m.nodes["b"].cfg
	m.start("b", cfg)
	m.link("a", "b")
	m.until("b follows a's list", func() bool { st := m.nodes["b"].Voters(); return len(st.Config.Voters) == 1 && !st.Votes })
	m.until("b has what a wrote", func() bool {
		return m.nodes["b"].Check(claimsAt(t, time.Now(), "after")).Status == revocation.Revoked
	})
}
