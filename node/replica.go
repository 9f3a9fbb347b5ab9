package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// replica is the node's part in replication: it holds the state machine and carries out what that asks for.
type replica struct {
	n           *Node
	incarnation replication.Incarnation // of the data directory
	epoch       uint64                  // of this run: random, so that a copy of the directory has another one too

	// mu comes before the journal's locks and after nobody's. The state machine never waits, and nothing waits under mu.
	mu       sync.Mutex
	core     *replication.Replica // nil until the journal has been read
	sessions map[replication.PeerID]*session
	byName   map[string]*session // of nodes
	lastPeer replication.PeerID
	waiters  []*waiter
	voters   replication.Voters
	votes    bool
	caughtUp []replication.CaughtUp // nodes whose holdings are durable here

	// What peers sent on its way to the disk, in the order of tokens.
	backlog  []*journal.Batch // the journal's queue was full
	bytes    int              // of the backlog and of what the journal has
	room     *sync.Cond       // bytes has fallen, or the replica ends
	ended    bool
	held     atomic.Int64      // records that this node has written, at most; read without mu
	missed   bool              // the disk has refused something: it does not have all that memory has
	mending  *mending          // what it missed is being written
	owed     map[uint32]uint64 // how far the vector has risen by what was sent behind the beginning of mending
	lastSent uint64            // token

	unnamed      []replication.Record // to be written under dots of this node
	unnamedReady chan struct{}

	armed time.Duration // when the next tick is due
	wake  chan struct{} // it has come closer

	disk news
}

// news is what the next batch of the journal brings beside its records.
type news struct {
	mu     sync.Mutex
	latest originChanges // since the last batch
	failed originChanges // what batches have not brought, which is older
	urgent bool          // a start must not miss it: it does not wait for the next batch
}

// originChanges is what is to be done about origins, by index: dropped first.
type originChanges struct {
	origins map[uint32]replication.Origin
	dropped map[uint32]bool
}

func newOriginChanges() originChanges {
	return originChanges{make(map[uint32]replication.Origin), make(map[uint32]bool)}
}

// add adds what comes behind.
func (c originChanges) add(dropped []uint32, origins []replication.Origin) {
	for _, index := range dropped {
		c.dropped[index] = true
		delete(c.origins, index)
	}
	for _, o := range origins {
		c.origins[o.Index] = o
	}
}

// maxReissues bounds content that waits for a dot of this node; the state machine asks again for what is left out.
const maxReissues = 1 << 14

// maxPeerBytes bounds what peers sent and the disk does not have yet; then they are not read from.
const maxPeerBytes = 64 << 20

func newReplica(n *Node) *replica {
	r := &replica{
		n: n, epoch: random(), sessions: make(map[replication.PeerID]*session), byName: make(map[string]*session), wake: make(chan struct{}, 1), unnamedReady: make(chan struct{}, 1),
		disk: news{latest: newOriginChanges(), failed: newOriginChanges()},
	}
	r.room = sync.NewCond(&r.mu)
	return r
}

// begin makes the state machine of what was on disk.
func (r *replica) begin(origins []replication.Origin, vector []replication.VectorEntry, latest map[uint32]uint32) error {
	digest := r.n.cfg.Key.Digest()
	core, err := replication.New(replication.Config{
		Name: r.n.cfg.Name, Incarnation: r.incarnation, Boot: r.epoch, KeyID: uint64(r.n.cfg.Key.ID()),
		Digest:       func(rec *replication.Record) uint64 { return digest((*[revocation.RecordSize]byte)(rec)) },
		Deadline:     func(rec *replication.Record) uint32 { return r.n.deadlineOf(view.RetainUntil(rec)) },
		DefinitionID: func(rec *replication.Record) uint64 { return binary.BigEndian.Uint64(rec[24:32]) },
		Random:       random,
		ProbeEvery:   r.n.cfg.ProbeEvery,
		AuditEvery:   r.n.cfg.AuditEvery,
		NodeRecords:  r.n.cfg.NodeRecords,
		NodeRate:     r.n.cfg.NodeRate,
	}, &view.Store{Table: r.n.table, Trusted: r.n.judges}, origins, vector)
	if err != nil {
		return err
	}
	for index, second := range latest {
		core.Seen(index, second)
	}
	r.mu.Lock()
	r.core = core
	r.mu.Unlock()
	r.step(replication.SetVoters{Voters: r.voters, Self: r.votes})
	r.n.tellKeys()
	return nil
}

// judges reports whether the wall clock of this node is good enough to refuse others' records by it.
func (n *Node) judges() bool {
	return n.clockOK.Load() && (n.members == nil || !n.members.refuses.Load())
}

func random() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

func (r *replica) now() replication.Now {
	return replication.Now{Mono: r.n.elapsed.Mono(), Wall: r.n.cfg.Clock.Now().UnixMilli(), Guarded: r.n.Now()}
}

// step tells the state machine what has happened and carries out its answer.
func (r *replica) step(e replication.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stepLocked(e)
	if len(r.backlog) > 0 {
		r.flush() // the queue may have been full of what this node wrote
	}
}

func (r *replica) stepLocked(e replication.Event) {
	if r.core == nil || r.ended { // after the end nobody may look at the table
		return
	}
	out := r.core.Step(r.now(), e)
	r.held.Store(int64(r.core.Held()))
	for _, id := range out.Wake {
		if s := r.sessions[id]; s != nil {
			s.signal()
		}
	}
	if len(out.Origins) > 0 || len(out.Dropped) > 0 {
		r.disk.add(out.Origins, out.Dropped)
		for _, index := range out.Dropped {
			delete(r.owed, index)
		}
	}
	for _, c := range out.Close {
		if s := r.sessions[c.Peer]; s != nil {
			s.fail(c.Err)
		}
	}
	if len(out.Reissue) > 0 && len(r.unnamed) < maxReissues {
		r.unnamed = append(r.unnamed, out.Reissue...)
		select {
		case r.unnamedReady <- struct{}{}:
		default:
		}
	}
	for _, m := range out.Keys {
		r.receivedKeys(m)
	}
	control := slices.Clone(out.Control)
	writes := slices.Clone(out.Journal)              // what follows may step again
	r.caughtUp = append(r.caughtUp, out.CaughtUp...) // once for each peer and configuration
	views, acks, fence := out.Views, out.Acks, out.Fence
	for i := range writes {
		r.keep(&writes[i])
	}
	if fence {
		r.n.fenced.Store(true)
		r.disk.urge()
	}
	if views {
		r.publish()
	}
	if acks || views {
		r.settle()
	}
	for _, c := range control {
		if m := r.n.members; m != nil {
			m.receive(c.Name, c.Message)
		}
	}
	if next := r.core.Deadline(); next < r.armed {
		r.armed = next
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// run ticks the state machine until ctx ends.
func (r *replica) run(ctx context.Context) error {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = true
		r.room.Broadcast()
		for _, s := range r.sessions {
			s.fail(context.Canceled)
		}
	}()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-t.C:
			r.step(replication.Tick{})
			r.closeSilent()
		}
		r.mu.Lock()
		r.armed = r.core.Deadline()
		next := r.armed - r.n.elapsed.Mono()
		r.mu.Unlock()
		t.Reset(max(next, time.Millisecond))
	}
}

// peerWrite is what a peer sent on its way to the disk.
type peerWrite struct {
	token   uint64
	vector  []replication.VectorEntry
	indices []uint32 // of origins in the dots
	shapes  []revocation.ShapeID
	origins broughtOrigins // that the batch brought
	mend    *mending       // a piece of what the disk had missed
}

// keep sends records of peers to the disk; mu is held.
func (r *replica) keep(w *replication.JournalWrite) {
	r.lastSent = w.Token
	if r.n.journal == nil {
		r.stepLocked(replication.Journaled{Token: w.Token})
		return
	}
	if r.missed && r.mending == nil {
		return // memory goes on; mend brings the disk up to it
	}
	b := newPeerBatch(w)
	if r.missed {
		// It need not be mended again. But its vector, and that it is durable, count when all before it has been mended.
		for _, v := range w.Vector {
			r.owed[v.Index] = max(r.owed[v.Index], v.Number)
		}
		p := b.User.(*peerWrite)
		p.token, p.vector = 0, nil
	}
	r.send(b)
}

// claims returns the vector that a batch may bring to the disk. Behind a batch that the disk has refused it is none: the next start would
// believe that it has what was in there.
func (r *replica) claims(w *peerWrite) []replication.VectorEntry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.missed && w.mend == nil {
		return nil
	}
	return w.vector
}

func newPeerBatch(w *replication.JournalWrite) *journal.Batch {
	p := &peerWrite{token: w.Token, vector: w.Vector}
	b := &journal.Batch{Records: make([]byte, 0, len(w.Records)*entrySize), User: p}
	lastShape, lastIndex := revocation.ShapeID(0), uint32(0)
	for i := range w.Records {
		rec := &w.Records[i]
		b.Records = append(b.Records, rec[:]...)
		b.Records = binary.BigEndian.AppendUint64(b.Records, uint64(w.Dots[i]))
		if id := revocation.ShapeID(binary.BigEndian.Uint64(rec[24:32])); id != lastShape {
			lastShape = id
			if !slices.Contains(p.shapes, id) {
				p.shapes = append(p.shapes, id)
			}
		}
		if index := w.Dots[i].Index(); index != lastIndex {
			lastIndex = index
			if !slices.Contains(p.indices, index) {
				p.indices = append(p.indices, index)
			}
		}
	}
	return b
}

// send queues a batch behind those that wait; mu is held.
func (r *replica) send(b *journal.Batch) {
	r.bytes += len(b.Records) + 64
	r.backlog = append(r.backlog, b)
	r.flush()
}

// flush gives the journal what it takes; mu is held.
func (r *replica) flush() {
	for len(r.backlog) > 0 {
		b := r.backlog[0]
		err := r.n.journal.AppendAsync(b, func(error) {})
		if errors.Is(err, journal.ErrBusy) {
			return // tried again when a batch is done
		}
		r.backlog = r.backlog[1:]
		if err != nil {
			r.done(b, err)
		}
	}
	r.backlog = nil
}

// peerCommitted is called in commit order when a batch of peers' records is durable or has failed.
func (r *replica) peerCommitted(b *journal.Batch, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done(b, err)
	r.flush()
}

func (r *replica) done(b *journal.Batch, err error) {
	w := b.User.(*peerWrite)
	full := r.bytes > maxPeerBytes
	r.bytes -= len(b.Records) + 64
	if full && r.bytes <= maxPeerBytes {
		now := r.n.cfg.Clock.Mono()
		for _, s := range r.sessions {
			s.heard = now // nobody listened
		}
	}
	r.room.Broadcast()
	if err != nil {
		r.disk.again(w.origins)
		if !r.missed && !errors.Is(err, journal.ErrClosed) {
			r.n.log.Warn("the disk does not take what peers send; memory goes on", "error", err)
		}
		r.missed, r.mending = true, nil // from the beginning
		return
	}
	if w.mend != nil {
		if w.mend == r.mending {
			r.mended(w.mend)
		}
		return
	}
	if !r.missed {
		r.stepLocked(replication.Journaled{Token: w.token})
	}
}

// mending brings the disk up to memory after it has refused something: every record that it may lack, then the vector as of the beginning.
type mending struct {
	token  uint64
	vector []replication.VectorEntry
	from   revocation.Fingerprint
	last   bool
}

// superseded reports whether what the table holds, under a dot, is on disk and makes an older record superfluous there. This node journals
// its own before it merges them, so what their dots name is on disk. Of another's dot that is not certain, since a joined content takes a dot
// without being written; but among blocks one with a larger stamp is enough, whatever was joined with it.
func (r *replica) superseded(older, held revocation.Record, dot replication.Dot) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core == nil || !r.core.Durable(dot) {
		return false
	}
	if slices.ContainsFunc(r.core.Own(), func(own replication.Dot) bool { return own.Index() == dot.Index() }) {
		return true
	}
	return (held.Class == revocation.ClassBlock || held.Class == revocation.ClassUnblock) && held.Value > older.Value
}

// mend begins to write what the disk has missed, once it takes writes again.
func (r *replica) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.missed || r.mending != nil || r.n.journal.Err() != nil || len(r.backlog) > 0 {
		return
	}
	r.mending, r.owed = &mending{token: r.lastSent, vector: r.core.Vector()}, make(map[uint32]uint64)
	r.piece(r.mending)
}

// piece writes the next piece; mu is held. The records that this node wrote itself are on disk.
func (r *replica) piece(m *mending) {
	w := replication.JournalWrite{Token: m.token}
	durable := r.core.DurableVector()
	next, more := r.n.table.Select(m.from, mendPiece, r.n.Now(), func(dot uint64) bool {
		d := replication.Dot(dot)
		return dot == 0 || int(d.Index()) >= len(durable) || d.Number() > durable[d.Index()]
	}, func(rec revocation.Record, dot uint64) bool {
		w.Records = append(w.Records, view.Encode(rec))
		w.Dots = append(w.Dots, replication.Dot(dot))
		return len(w.Records) < mendPiece
	})
	m.from, m.last = next, !more
	if m.last {
		w.Vector = m.vector
	}
	b := newPeerBatch(&w)
	b.User.(*peerWrite).mend = m
	r.send(b)
}

const mendPiece = 4096

// mended goes on after a piece is on disk. What peers sent meanwhile is on disk, or on its way there in front of what is owed.
func (r *replica) mended(m *mending) {
	if !m.last {
		r.piece(m)
		return
	}
	w := replication.JournalWrite{Token: r.lastSent}
	for index, number := range r.owed {
		w.Vector = append(w.Vector, replication.VectorEntry{Index: index, Number: number})
	}
	r.missed, r.mending, r.owed = false, nil, nil
	r.n.log.Info("the disk has what peers sent")
	if len(w.Vector) > 0 {
		r.send(newPeerBatch(&w))
	}
	r.stepLocked(replication.Journaled{Token: m.token})
}

// broughtOrigins is what a batch brings: dropped first.
type broughtOrigins struct {
	origins []replication.Origin
	dropped []uint32 // indices; one of origins may have it by now
}

// add takes in what a step has found: it names no origin behind dropping its index.
func (d *news) add(origins []replication.Origin, dropped []uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.latest.add(nil, origins)
	d.latest.add(dropped, nil)
}

// urge says that what is here must be on disk soon.
func (d *news) urge() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.urgent = true
}

// waits reports whether something here must be on disk soon.
func (d *news) waits() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.urgent && len(d.latest.origins)+len(d.failed.origins) > 0
}

// again takes back what a batch has not brought to the disk. What is committed together fails together, and comes here in its order: a batch may have dropped what
// one before it was to bring.
func (d *news) again(b broughtOrigins) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failed.add(b.dropped, b.origins)
}

// take returns what has to be written, and forgets it.
func (d *news) take() (b broughtOrigins) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := d.failed
	all.add(slices.Collect(maps.Keys(d.latest.dropped)), slices.Collect(maps.Values(d.latest.origins)))
	b = broughtOrigins{origins: slices.Collect(maps.Values(all.origins)), dropped: slices.Collect(maps.Keys(all.dropped))}
	for _, c := range []originChanges{d.latest, d.failed} {
		clear(c.origins)
		clear(c.dropped)
	}
	return b
}
