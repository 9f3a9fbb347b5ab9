package replication

import (
	"testing"
	"time"
)

// sink is a store that costs nothing, so that the state machine is what is measured.
type sink struct{ table }

func (*sink) Ahead([]Key) {}

func (*sink) Merge(*Record, Dot, Now, bool) (Merged, error) { return Merged{Changed: true}, nil }

// BenchmarkReplicas copies records from one replica to another without a network: ns and bytes are for each record, both sides together.
func BenchmarkReplicas(b *testing.B) {
	for _, size := range []int{1, 32, 1000} {
		b.Run(map[int]string{1: "single", 32: "batches of 32", 1000: "batches of 1000"}[size], func(b *testing.B) {
			p := newPair(b, nil)
			for i := range p.r {
				p.r[i].store = &sink{}
			}
			records := make([]Record, size)
			for i := range records {
				records[i] = testRecord(uint64(i), 1)
			}
			var message []byte
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += size {
				p.now.Mono += 100 * time.Microsecond
				p.r[0].Step(p.now, Written{Index: p.own[0], First: p.next[0], Records: records})
				p.next[0] += uint64(size)
				for side := range 2 {
					for {
						if message = p.r[side].Fill(p.now, 1, message[:0]); len(message) == 0 {
							break
						}
						out := p.r[1-side].Step(p.now, Received{1, message})
						if len(out.Journal) > 0 {
							p.r[1-side].Step(p.now, Journaled{out.Journal[len(out.Journal)-1].Token})
						}
					}
				}
			}
			b.StopTimer()
			p.exchange(10 * time.Millisecond)
			if v := p.r[1].Vector(); v[len(v)-1].Number < uint64(b.N) {
				b.Fatal("not level")
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}

// BenchmarkClients is what it costs a node to pass a record on to a thousand clients when it knows two thousand origins.
func BenchmarkClients(b *testing.B) {
	const clients = 1000
	r, err := New(testConfig("a"), newTable(), nil, nil)
	if err != nil {
		b.Fatal(err)
	}
	now := Now{Mono: time.Hour}
	for i := range uint64(2000) {
		r.reg.add(Origin{ID: OriginID(1000 + i), Node: "old"}).applied = 5
	}
	index, err := r.NewOrigin(2)
	if err != nil {
		b.Fatal(err)
	}
	for id := range PeerID(clients) {
		r.Step(now, Connected{Peer: id, Client: true})
		r.Step(now, Received{id, frames(func(w *writer) { w.hello(hello{1, 0, "c", Incarnation{}, 1, true, true}) })})
		r.Step(now, Received{id, frames(func(w *writer) { w.frame(frameVector); w.uint(0); w.end() })})
	}
	var message []byte
	fill := func() {
		for id := range PeerID(clients) {
			for {
				if message = r.Fill(now, id, message[:0]); len(message) == 0 {
					break
				}
			}
		}
	}
	fill()
	records := []Record{testRecord(1, 1)}
	b.ReportAllocs()
	b.ResetTimer()
	for n := range uint64(b.N) {
		now.Mono += time.Millisecond
		r.Step(now, Written{Index: index, First: n + 1, Records: records})
		fill()
	}
	b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N)/clients, "ns/client")
}
