package sim

import (
	"flag"
	"testing"
	"time"
)

var seeds = flag.Uint64("seeds", 40, "how many seeds TestSeeds runs")

// Clusters of 3 to 9 nodes, with everything that can happen to them: package comment.
func TestSeeds(t *testing.T) {
	n := *seeds
	if testing.Short() {
		n = 20
	}
	var total Result
	for seed := uint64(1); seed <= n; seed++ {
		r := Run(Seeded(seed, Options{Clients: -1}))
		total.Add(&r)
		if len(r.Failures) > 0 {
			t.Fatalf("seed %d: %q\nagain with: go run ./cluster/replication/internal/simrun -seed %d", seed, r.Failures, seed)
		}
	}
	t.Log(total)
	// What did not happen was not tested.
	if total.Crashes < int(n) || total.Wipes == 0 || total.Rolls < int(n)/2 || total.Refusals < int(n) || total.Scans < n || total.Reissued < n || total.Checked < 100*n || total.Quorum < 10*int(n) || total.Repaired > 0 ||
		total.Cuts < int(n) || total.Pauses < int(n)/2 || total.Steps < int(n)/5 || total.Pulls < n {
		t.Errorf("too little has happened: %v", total)
	}
}

// With a host that is trusted and sends what it likes, nobody keeps more than he must, nothing out of bounds is taken, and in the end everybody has what was acknowledged.
func TestRogueSeeds(t *testing.T) {
	n := *seeds / 2
	var total Result
	for seed := uint64(1); seed <= n; seed++ {
		r := Run(Seeded(seed, Options{Clients: -1, Rogue: true}))
		total.Add(&r)
		if len(r.Failures) > 0 {
			t.Fatalf("seed %d: %q\nagain with: go run ./cluster/replication/internal/simrun -rogue -seed %d", seed, r.Failures, seed)
		}
	}
	t.Log(total)
	if total.Crashes < int(n) || total.Cuts < int(n) || total.Scans < n || total.Pulls < n || total.Quorum < 10*int(n) {
		t.Errorf("too little has happened: %v", total)
	}
}

// The same seed is the same run, to the bit.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := range uint64(4) {
		a, b := Run(Seeded(seed, Options{Clients: 2, For: 600 * time.Millisecond})), Run(Seeded(seed, Options{Clients: 2, For: 600 * time.Millisecond}))
		if a.Trace != b.Trace || a.Events != b.Events || a.Bytes != b.Bytes {
			t.Fatalf("seed %d: %v\n%v", seed, a, b)
		}
		if other := Run(Seeded(seed+100, Options{Clients: 2, For: 600 * time.Millisecond})); other.Trace == a.Trace {
			t.Fatal("another seed has the same trace")
		}
	}
}

// A small cluster is held against the same: it has no voters, so nothing is acknowledged.
func TestSpreadOfFew(t *testing.T) {
	for _, nodes := range []int{3, 5, 6, 8} {
		if s := RunSpread(1, nodes, 100); len(s.Failures) > 0 || s.Quorum > 0 {
			t.Errorf("%d nodes: %d acknowledged, %v", nodes, s.Quorum, s.Failures)
		}
	}
}

// A large cluster, with the sessions that it has, and one link in ten dead.
func TestSpread(t *testing.T) {
	nodes := 200
	if testing.Short() {
		nodes = 100
	}
	a := RunSpread(1, nodes, 500)
	t.Logf("p50 %v, p99 %v, most %v; %d of %d links dead; %v", a.P50, a.P99, a.Max, a.Dead, a.Links, a.Result)
	if len(a.Failures) > 0 || a.Dead == 0 {
		t.Fatal(a.Failures)
	}
	if a.P99 > 20*time.Millisecond { // of virtual time
		t.Errorf("p99 is %v, at most 20 ms", a.P99)
	}
	if testing.Short() {
		return
	}
	if b := RunSpread(1, nodes, 500); b.Trace != a.Trace {
		t.Error("the same seed has another trace")
	}
}
