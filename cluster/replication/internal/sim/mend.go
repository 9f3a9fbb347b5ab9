package sim

import (
	"github.com/revokd/revokd/cluster/replication"
)

// behind is what a host does about a disk that has refused records of peers, as package node does: memory goes on, the durable vector stays, and when the
// disk takes writes again everything above it is written from memory.
type behind struct {
	missed   bool
	mending  *mending
	owed     map[uint32]uint64 // how far the vector has risen by what was sent behind the beginning of mending
	lastSent uint64            // token
}

// mending is one try.
type mending struct {
	token  uint64
	vector []replication.VectorEntry
	from   replication.Key
	last   bool
}

// mendPiece is how many records go into one batch.
const mendPiece = 7

// keep sends what peers sent to the disk.
func (h *host) keep(b *batch) {
	m := &h.behind
	m.lastSent = b.token
	if m.missed && m.mending == nil && h.w.broken != "vector-over-refused" {
		return
	}
	if m.missed && h.w.broken != "vector-over-refused" {
		// It need not be mended again. But its vector, and that it is durable, count when all before it has been mended.
		for _, v := range b.vector {
			m.owed[v.Index] = max(m.owed[v.Index], v.Number)
		}
		b.token, b.vector = 0, nil
	}
	h.enqueue(b)
}

// mend begins, once the disk takes writes again.
func (h *host) mend() {
	m := &h.behind
	if !m.missed || m.mending != nil || h.w.now < h.refuses || len(h.queue) > 0 {
		return
	}
	m.mending, m.owed = &mending{token: m.lastSent, vector: h.core.Vector()}, make(map[uint32]uint64)
	h.piece(m.mending)
}

func (h *host) piece(m *mending) {
	b := &batch{mend: m}
	durable := h.core.DurableVector()
	next, more := h.store.Scan(m.from, 1000, h.now(), func(d replication.Dot) bool {
		return d.Index() == 0 || int(d.Index()) >= len(durable) || d.Number() > durable[d.Index()]
	}, func(r *replication.Record, d replication.Dot) bool {
		b.records, b.dots = append(b.records, *r), append(b.dots, d)
		return len(b.records) < mendPiece
	})
	if m.from, m.last = next, !more; m.last {
		b.vector = m.vector
	}
	h.enqueue(b)
}

func (h *host) mended(m *mending) {
	if !m.last {
		h.piece(m)
		return
	}
	token, owed := h.behind.lastSent, &batch{}
	for index := range uint32(len(h.core.DurableVector())) {
		if number := h.behind.owed[index]; number > 0 {
			owed.vector = append(owed.vector, replication.VectorEntry{Index: index, Number: number})
		}
	}
	h.behind.missed, h.behind.mending, h.behind.owed = false, nil, nil
	if owed.token = token; len(owed.vector) > 0 {
		h.enqueue(owed)
	}
	h.step(replication.Journaled{Token: m.token})
}
