package sim

import (
	"slices"
	"time"

	"github.com/revokd/revokd/cluster/replication"
)

// Spread is what came of copying single records through a large cluster.
type Spread struct {
	Result
	Links, Dead int
	Copies      int // of records, on all nodes
	P50, P99    time.Duration
	Max         time.Duration // from when the record was durable where it was written until a node held it
}

// RunSpread writes records one by one, within a tenth of a second, at nodes picked by chance; the nodes have the sessions that those of a
// cluster of that size have, and one link in ten is dead from the beginning.
func RunSpread(seed uint64, nodes, records int) Spread {
	var s Spread
	w := New(Options{Seed: seed, Nodes: nodes, Calm: true, large: true, Config: func(c *replication.Config) {
		c.ProbeEvery = time.Second
	}})
	s.Links = len(w.links)
	for _, l := range w.links {
		if w.chance(0.1) {
			l.dead = true
			s.Dead++
		}
	}
	began := make(map[replication.Key]time.Duration)
	var took []time.Duration
	w.arrived = func(k replication.Key) {
		if began[k] == 0 {
			began[k] = w.now
		}
		took = append(took, w.now-began[k])
	}
	for _, h := range w.hosts {
		h.store.arrived = w.arrived
	}
	w.run(500 * time.Millisecond)
	for i := range records {
		w.after(w.between(0, 100*time.Millisecond), func() {
			w.nodes[w.rng.IntN(nodes)].write(makeRecord(uint64(i), epoch, uint32(epoch/1000)+3600), replication.Urgent)
		})
	}
	for w.now < 10*time.Second && len(took) < nodes*records && len(w.result.Failures) == 0 {
		w.run(w.now + 10*time.Millisecond)
	}
	slices.Sort(took)
	s.Copies = len(took)
	if len(took) > 0 {
		s.P50, s.P99, s.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	}
	if len(took) < nodes*records {
		w.failf("%d of %d copies are missing", nodes*records-len(took), nodes*records)
	}
	s.Result = w.Result()
	return s
}
