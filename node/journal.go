package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// Keys of the journal's metadata.
const (
	metaShape  = "shape/"  // + id: the definition
	metaOrigin = "origin/" // + index: see appendOrigin
	// metaRepaired is there from a repair until the node is level with another one: what the vector claims may be lost.
	metaRepaired = "repaired"
	metaVector   = "vector/" // + index of an origin of another run: up to which number all of it is on disk, 8 bytes
	metaTime     = "time"    // guarded time, Unix milliseconds, 8 bytes: see clock.GuardConfig.HighWater
	metaSlack    = "slack"   // Config.Slack, seconds, 4 bytes; there is none in directories that know only the default
	metaQuota    = "quota/"  // + account and bucket: how many records are in it; see quotas
	metaPolicy   = "policy"  // the policy in force, JSON: see revocation.Policy.Succeed
)

func (n *Node) openJournal() error {
	j, err := journal.Open(journal.Config{
		Dir: n.cfg.Dir, FS: n.cfg.FS, Logger: n.cfg.Logger.Named("journal"), RecordSize: entrySize, KeyID: uint64(n.cfg.Key.ID()),
		Deadline: n.deadline, Live: n.live, Assign: n.assign, Committed: n.committed,
	})
	if err != nil {
		return err
	}
	n.journal = j
	n.onDisk = onDisk{shapes: make(map[revocation.ShapeID]*definition), keys: make(map[string]bool)}
	n.commits = (*disk)(n)
	return nil
}

// deadline tells the journal until which second a record must be kept. What it cannot read it keeps.
func (n *Node) deadline(b []byte) int64 {
	r, _, err := parseEntry(b)
	if err != nil {
		return 1<<63 - 1
	}
	return int64(n.deadlineOf(r.RetainUntil()))
}

// live tells the journal whether a record is still needed: it is not if the table holds, from the same origin, a later one that
// supersedes it and is on disk itself. What another origin has superseded stays to its deadline: the last number of an origin is
// known by its records.
func (n *Node) live(b []byte) bool {
	r, d, err := parseEntry(b)
	if err != nil {
		return true
	}
	held, by, ok := n.table.Held(r, n.Now())
	dot, holds := replication.Dot(d), replication.Dot(by)
	if !ok || dot.Index() != holds.Index() || dot.Number() >= holds.Number() {
		return true
	}
	return !n.replica.superseded(r, held, holds)
}

// deadlineOf is until when a record that must be retained to a second is kept.
func (n *Node) deadlineOf(until uint32) uint32 {
	if d := until + uint32(n.cfg.Slack/time.Second); d > until {
		return d
	}
	return ^uint32(0)
}

// disk commits through the journal.
type disk Node

func (d *disk) commit(ctx context.Context, w *writing) error {
	b := &journal.Batch{Records: make([]byte, 0, len(w.entries)*entrySize), User: w}
	for _, e := range w.entries {
		var err error
		if b.Records, err = appendEntry(b.Records, e); err != nil {
			(*Node)(d).merged(w, err)
			return err
		}
	}
	err := d.journal.Append(ctx, b)
	if err != nil && !b.Taken() {
		(*Node)(d).merged(w, err)
	}
	switch {
	case errors.Is(err, journal.ErrBusy):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, journal.ErrClosed):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return err
}

// onDisk is what the journal's metadata holds, or is about to hold. It belongs to the goroutine that commits.
type onDisk struct {
	shapes map[revocation.ShapeID]*definition
	keys   map[string]bool // see metaKey
	policy []byte
	time   int64 // guarded, Unix milliseconds
	slack  bool  // of the configuration
	// distrusted: of the vector this run has not believed anything.
	distrusted bool
}

// definition is that of a shape. Files keep records for a while after their time has passed, and a start whose clock is wrong
// may have to read them: so it stays on disk until no file can hold a record that needs it.
type definition struct {
	unused bool  // no file held a record of it at the start, and none has been written since
	idle   int64 // guarded time since when the table has no record of it, Unix milliseconds; 0: it has, or nobody has looked
}

// keepDefinition is how long a shape must be without live records: longer than a file outlives its records, by a clock that goes
// back a month.
const keepDefinition = 33 * 24 * time.Hour

// gone reports whether a definition may go, seen at a moment at which the table has no record of its shape.
func (d *definition) gone(now int64) bool {
	if d.idle == 0 || d.idle > now {
		d.idle = now
	}
	return d.unused || now-d.idle >= keepDefinition.Milliseconds()
}

// holds notes that the journal has a record of a shape.
func (d *onDisk) holds(id revocation.ShapeID) { d.shapes[id] = &definition{} }

// housekeeping is a batch that states the time and the policy, and forgets shapes without records.
type housekeeping struct {
	next    *revocation.Policy // comes into force with the batch; nil: the one that is in force stays
	policy  []byte
	time    int64
	origins broughtOrigins
}

// assign is called in commit order before a batch is encoded: numbers are given here, so that they follow each
// other on disk, and a batch brings the definitions that the disk does not have.
func (n *Node) assign(b *journal.Batch) {
	switch w := b.User.(type) {
	case *writing:
		made, err := n.number(w)
		if err != nil { // without numbers the batch is not one record long: the journal refuses it
			b.Records = b.Records[:len(b.Records)-1]
			return
		}
		w.origins = n.bringOrigins(b)
		if made != nil {
			w.origins.origins = append(w.origins.origins, *made)
			b.Meta = append(b.Meta, journal.Meta{Key: originKey(made.Index), Value: appendOrigin(nil, *made)})
		}
		n.bringKeys(b)
		for i, e := range w.entries {
			binary.BigEndian.PutUint64(b.Records[i*entrySize+revocation.RecordSize:], e.dot)
			n.bring(b, e.record.Shape, e.shape)
		}
		n.quotas.bring(b, w.charges)
	case *peerWrite:
		w.origins = n.bringOrigins(b)
		n.bringKeys(b)
		for _, id := range w.shapes {
			if s, ok := n.table.Shape(id); ok {
				n.bring(b, id, s)
			}
		}
		for _, v := range n.replica.claims(w) {
			b.Meta = append(b.Meta, journal.Meta{Key: vectorKey(v.Index), Value: binary.BigEndian.AppendUint64(nil, v.Number)})
		}
	case *housekeeping:
		w.origins = n.bringOrigins(b)
		n.quotas.forget(b)
		n.dropKeys(b)
		live := make(map[revocation.ShapeID]bool)
		for _, s := range n.table.Shapes() {
			live[s.ID()] = true
		}
		now := n.Now()
		for id, def := range n.onDisk.shapes {
			if live[id] {
				def.idle = 0
			} else if def.gone(now) {
				b.Meta = append(b.Meta, journal.Meta{Key: shapeKey(id)})
				// A writer behind this batch brings the definition again, even if this batch should fail.
				delete(n.onDisk.shapes, id)
			}
		}
		if _, repaired := n.journal.Get(metaRepaired); repaired && n.replica.recovered() {
			b.Meta = append(b.Meta, journal.Meta{Key: metaRepaired})
			if n.onDisk.distrusted {
				n.claimAnew(b)
			}
		}
		if !n.onDisk.slack {
			b.Meta = append(b.Meta, journal.Meta{Key: metaSlack, Value: binary.BigEndian.AppendUint32(nil, uint32(n.cfg.Slack/time.Second))})
		}
		// A clock that stands before the time on disk does not take it back before it is believed again.
		if now > n.onDisk.time || n.clockState() == "ok" {
			w.time = now
			b.Meta = append(b.Meta, journal.Meta{Key: metaTime, Value: binary.BigEndian.AppendUint64(nil, uint64(now))})
		}
		inForce := n.Policy()
		if w.next != nil {
			inForce = w.next
		}
		if policy, err := json.Marshal(inForce); err == nil && !bytes.Equal(policy, n.onDisk.policy) {
			b.Meta = append(b.Meta, journal.Meta{Key: metaPolicy, Value: policy})
			w.policy = policy
		}
	}
}

// claimAnew puts what this run holds durably in the place of the vector on disk: while that was not believed it went on claiming what a repair
// has lost.
func (n *Node) claimAnew(b *journal.Batch) {
	durable := n.replica.durable()
	for _, key := range n.journal.Keys(metaVector) {
		m := journal.Meta{Key: key}
		if index, err := strconv.ParseUint(strings.TrimPrefix(key, metaVector), 10, 24); err == nil && index < uint64(len(durable)) && durable[index] > 0 {
			m.Value = binary.BigEndian.AppendUint64(nil, durable[index])
		}
		b.Meta = append(b.Meta, m)
	}
}

// bringOrigins forgets the origins that are gone, then adds what has become known of others: they may have the same indices.
func (n *Node) bringOrigins(b *journal.Batch) broughtOrigins {
	o := n.replica.disk.take()
	for _, index := range o.dropped {
		b.Meta = append(b.Meta, journal.Meta{Key: originKey(index)}, journal.Meta{Key: vectorKey(index)})
	}
	for _, o := range o.origins {
		b.Meta = append(b.Meta, journal.Meta{Key: originKey(o.Index), Value: appendOrigin(nil, o)})
	}
	return o
}

// An origin on disk: id 8 | what is doubtful, 2 bits, and sealed, 62 | expires 4 | name of the node.
func appendOrigin(b []byte, o replication.Origin) []byte {
	sealed := o.Sealed
	if o.Partial {
		sealed |= originPartial
	}
	if o.Fenced {
		sealed |= originFenced
	}
	b = binary.BigEndian.AppendUint64(b, uint64(o.ID))
	b = binary.BigEndian.AppendUint64(b, sealed)
	b = binary.BigEndian.AppendUint32(b, o.Expires)
	return append(b, o.Node...)
}

const (
	originPartial = 1 << 63
	originFenced  = 1 << 62
)

func parseOrigin(b []byte) (o replication.Origin, err error) {
	if len(b) < 21 {
		return o, errors.New("an origin is too short")
	}
	sealed := binary.BigEndian.Uint64(b[8:])
	return replication.Origin{
		ID: replication.OriginID(binary.BigEndian.Uint64(b)), Sealed: sealed &^ (originPartial | originFenced), Expires: binary.BigEndian.Uint32(b[16:]), Node: string(b[20:]),
		Partial: sealed&originPartial != 0, Fenced: sealed&originFenced != 0,
	}, nil
}

// bring adds the definition of a shape to a batch unless an earlier one has made it durable.
func (n *Node) bring(b *journal.Batch, id revocation.ShapeID, s revocation.Shape) {
	if n.onDisk.shapes[id] != nil || slices.ContainsFunc(b.Meta, func(m journal.Meta) bool { return m.Key == shapeKey(id) }) {
		return
	}
	def, err := s.AppendBinary(nil)
	if err != nil {
		return // cannot be: the table has validated it
	}
	b.Meta = append(b.Meta, journal.Meta{Key: shapeKey(id), Value: def})
}

func shapeKey(id revocation.ShapeID) string { return metaShape + strconv.FormatUint(uint64(id), 16) }

func originKey(index uint32) string { return metaOrigin + strconv.FormatUint(uint64(index), 10) }

func vectorKey(index uint32) string { return metaVector + strconv.FormatUint(uint64(index), 10) }

// committed is called in commit order after a batch is durable or has failed.
func (n *Node) committed(b *journal.Batch, err error) {
	if err == nil {
		n.keptKeys(b)
	}
	switch w := b.User.(type) {
	case *writing:
		if err != nil {
			n.own[w.lane] = origin{} // a number may be on disk or not: it is never given again
			n.replica.disk.again(w.origins)
		} else {
			for _, e := range w.entries {
				n.onDisk.holds(e.record.Shape)
			}
		}
		n.merged(w, err)
	case *peerWrite:
		if err == nil {
			for _, id := range w.shapes {
				n.onDisk.holds(id)
			}
		}
		n.replica.peerCommitted(b, err)
	case *housekeeping:
		if err != nil {
			n.replica.disk.again(w.origins)
			return
		}
		if w.policy != nil {
			n.onDisk.policy = w.policy
			n.policyKept.Store(true)
		}
		if w.next != nil { // here, so that no later batch still has the old one
			n.table.SetPolicy(w.next)
		}
		n.onDisk.slack, n.onDisk.time = true, max(w.time, n.onDisk.time)
	}
}

// start reads the journal into the table.
func (n *Node) start(ctx context.Context) error {
	if n.members != nil && n.journal == nil {
		if err := n.members.begin(); err != nil {
			return err
		}
	}
	if n.journal == nil {
		return n.replica.begin(nil, nil, nil)
	}
	began := n.cfg.Clock.Mono()
	n.mu.Lock()
	n.reported = began // a short start says nothing on its way
	n.mu.Unlock()
	disk := &restored{last: make(map[uint32]uint64), latest: make(map[uint32]uint32), named: make(map[uint32]uint64)}
	meta := sync.OnceValue(func() error { return n.readMeta(disk) }) // complete before the first record, and also if there is none
	merging, ctx := errgroup.WithContext(ctx)
	chunks := make(chan []byte)
	for range runtime.GOMAXPROCS(0) { // most of a start is the table, and order does not matter
		merging.Go(func() error {
			for records := range chunks {
				if err := n.mergeRead(records, disk); err != nil {
					return err
				}
			}
			return nil
		})
	}
	var shape revocation.ShapeID
	stats, err := n.journal.Replay(ctx, func(records []byte) error {
		if err := meta(); err != nil {
			return err
		}
		for chunk := range slices.Chunk(records, readChunk) {
			for r := chunk; len(r) > 0; r = r[entrySize:] {
				record, dot, err := parseEntry(r[:entrySize])
				if err != nil {
					return fmt.Errorf("a record in the journal: %w", err)
				}
				disk.note(replication.Dot(dot), record.RetainUntil())
				if record.Shape != shape {
					shape = record.Shape
					n.onDisk.holds(shape)
				}
			}
			select {
			case chunks <- slices.Clone(chunk):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}, n.progress)
	close(chunks)
	if failure := merging.Wait(); failure != nil {
		err = failure // it ended the reading
	}
	if err == nil {
		err = meta()
	}
	if err != nil {
		return err
	}
	if k := disk.keyless.Load(); k > 0 {
		n.log.Warn("records that have not expired are left out: their fingerprint key has gone, so nothing can be looked up in them", "records", k)
	}
	if n.members != nil {
		if err := n.members.begin(); err != nil {
			return err
		}
		// Alone there is nobody to get it from: what is there is all there is.
		if _, repaired := n.journal.Get(metaRepaired); repaired && !n.members.lone() && !faults.Mutant("trust-repaired") {
			n.log.Warn("the journal was repaired: what it lacks is fetched from other nodes")
			disk.distrust()
			n.onDisk.distrusted = true
			n.replica.disk.add(disk.origins, nil) // on disk no later than the journal is believed again
		}
	}
	if err := n.replica.begin(disk.state(n.cfg.Name, n.deadlineOf)); err != nil {
		return err
	}
	n.log.Info("journal read", "records", stats.Records, "bytes", stats.Bytes, "cut", stats.Cut, "took", (n.cfg.Clock.Mono() - began).Round(time.Millisecond).String())
	return nil
}

// readChunk is how many bytes of records are merged in one go.
const readChunk = 1024 * entrySize

// mergeRead merges records of the journal.
func (n *Node) mergeRead(records []byte, disk *restored) error {
	now, ring := n.Now(), n.table.Ring()
	for ; len(records) > 0; records = records[entrySize:] {
		r, dot, err := parseEntry(records[:entrySize])
		if err != nil {
			return fmt.Errorf("a record in the journal: %w", err)
		}
		if ring.Had(r.KeyNumber()) {
			// When its key went they had all expired here, though the time on disk may be a little before that; unless somebody has put a newer file in place.
			if int64(r.RetainUntil()) > now/1000 {
				disk.keyless.Add(1)
			}
			continue
		}
		if disk.nameless(replication.Dot(dot)) {
			dot = 0
		}
		if _, err := n.table.Merge(r, dot, now, false); err != nil {
			return fmt.Errorf("read the journal into memory: %w", err)
		}
	}
	return nil
}

// restored is what the journal says about origins.
type restored struct {
	origins []replication.Origin
	vector  []replication.VectorEntry
	last    map[uint32]uint64 // largest number of a record, by index
	latest  map[uint32]uint32 // latest second to which a record must be retained, by index
	// above which number of an origin records are held without a name, by index: those of doubtful origins
	named map[uint32]uint64

	untrusted bool
	keyless   atomic.Int64 // records that have not expired, of a key that has gone
}

// nameless reports whether a dot names nothing: then the record has been written again under another, or will be.
func (d *restored) nameless(dot replication.Dot) bool {
	named, doubtful := d.named[dot.Index()]
	return doubtful && dot.Number() > named
}

func (d *restored) note(dot replication.Dot, until uint32) {
	d.last[dot.Index()] = max(d.last[dot.Index()], dot.Number())
	d.latest[dot.Index()] = max(d.latest[dot.Index()], until)
}

// distrust makes the vector claim nothing: records are missing among those that it covers.
func (d *restored) distrust() {
	for i := range d.origins {
		d.origins[i].Partial = true
	}
	d.vector, d.untrusted = nil, true
}

// state is what replication begins with. All that this node has ever written is on disk, or has expired, but for doubtful origins; of those and of others it is what
// the vector says.
func (d *restored) state(name string, deadline func(uint32) uint32) ([]replication.Origin, []replication.VectorEntry, map[uint32]uint32) {
	held := make(map[uint32]uint64)
	for _, v := range d.vector {
		held[v.Index] = v.Number
	}
	for i, o := range d.origins {
		if d.untrusted {
			break
		}
		own := o.Node == name && !o.Partial && !o.Fenced
		if own {
			held[o.Index] = max(held[o.Index], d.last[o.Index], o.Sealed)
		}
		if d.last[o.Index] == 0 && (own || o.Sealed > 0 && held[o.Index] >= o.Sealed) {
			d.origins[i].Sealed, d.origins[i].Expires = max(1, held[o.Index]), 1 // nothing of it is left
			held[o.Index] = d.origins[i].Sealed
		}
	}
	vector := make([]replication.VectorEntry, 0, len(held))
	for index, number := range held {
		vector = append(vector, replication.VectorEntry{Index: index, Number: number})
	}
	latest := make(map[uint32]uint32)
	for index, until := range d.latest {
		latest[index] = deadline(until)
	}
	return d.origins, vector, latest
}

// slackOf returns the slack that a journal was written with; ok is false for one that is new.
func slackOf(get func(string) ([]byte, bool)) (slack time.Duration, ok bool) {
	if b, ok := get(metaSlack); ok && len(b) == 4 {
		return time.Duration(binary.BigEndian.Uint32(b)) * time.Second, true
	}
	_, used := get(metaTime)
	return revocation.DefaultSlack, used
}

// readMeta takes the definitions of shapes and the last known time from the journal.
func (n *Node) readMeta(disk *restored) error {
	if err := n.checkKeys(); err != nil {
		return err
	}
	if slack, ok := slackOf(n.journal.Get); ok && slack/time.Second != n.cfg.Slack/time.Second {
		return fmt.Errorf("%w: %s, not %s", ErrSlack, slack, n.cfg.Slack)
	}
	if b, ok := n.journal.Get(metaTime); ok && len(b) == 8 {
		n.onDisk.time = int64(binary.BigEndian.Uint64(b))
		n.setGuard(time.UnixMilli(n.onDisk.time))
	}
	if b, ok := n.journal.Get(metaPolicy); ok {
		earlier, err := revocation.ParsePolicy(b)
		if err != nil {
			return fmt.Errorf("the policy in the journal: %w", err)
		}
		n.onDisk.policy = b
		p := *n.table.Policy()
		p.Succeed(&earlier, max(n.Now(), n.cfg.Clock.Now().UnixMilli()))
		n.table.SetPolicy(&p)
	}
	for _, key := range n.journal.Keys(metaShape) {
		b, _ := n.journal.Get(key)
		s, err := revocation.ParseShape(b)
		if err == nil {
			_, err = n.table.Define(s, 0, n.Now(), revocation.Unbound)
		}
		if err != nil {
			return fmt.Errorf("a shape in the journal: %w", err)
		}
		n.onDisk.shapes[s.ID()] = &definition{unused: true} // until its first record is read
	}
	for _, key := range n.journal.Keys(metaQuota) {
		b, _ := n.journal.Get(key)
		if err := n.quotas.restore(key, b); err != nil {
			return err
		}
	}
	for _, key := range n.journal.Keys(metaOrigin) {
		b, _ := n.journal.Get(key)
		index, err := strconv.ParseUint(strings.TrimPrefix(key, metaOrigin), 10, 24)
		var o replication.Origin
		if err == nil {
			o, err = parseOrigin(b)
		}
		if err != nil {
			return fmt.Errorf("an origin in the journal: %w", err)
		}
		o.Index = uint32(index)
		disk.origins = append(disk.origins, o)
	}
	for _, key := range n.journal.Keys(metaVector) {
		b, _ := n.journal.Get(key)
		index, err := strconv.ParseUint(strings.TrimPrefix(key, metaVector), 10, 24)
		if err != nil || len(b) != 8 {
			return fmt.Errorf("a vector in the journal: malformed")
		}
		disk.vector = append(disk.vector, replication.VectorEntry{Index: uint32(index), Number: binary.BigEndian.Uint64(b)})
	}
	_, repaired := n.journal.Get(metaRepaired)
	for _, o := range disk.origins {
		switch {
		case o.Fenced:
			disk.named[o.Index] = 0
		case o.Partial && !repaired: // else what others have is not known yet
			i := slices.IndexFunc(disk.vector, func(v replication.VectorEntry) bool { return v.Index == o.Index })
			disk.named[o.Index] = 0
			if i >= 0 {
				disk.named[o.Index] = disk.vector[i].Number
			}
		}
	}
	return nil
}

// runJournal starts what keeps the journal until ctx ends. It returns when the policy in force is on disk, or the disk has refused it: records
// are kept as long as it says, so the next start must know it, and until then the node is not ready.
func (n *Node) runJournal(ctx context.Context, g *errgroup.Group) error {
	if n.journal == nil {
		return nil
	}
	policy, err := json.Marshal(n.Policy())
	if err != nil {
		return fmt.Errorf("encode the policy: %w", err)
	}
	n.policyKept.Store(bytes.Equal(policy, n.onDisk.policy))
	g.Go(func() error { return n.journal.Run(ctx) })
	if !n.policyKept.Load() {
		if err := n.keepHouse(ctx); err != nil && ctx.Err() == nil {
			n.log.Warn("the policy is not on disk yet", "error", err)
		}
	}
	g.Go(func() error {
		// A failure shows in the state of the journal.
		return n.every(ctx, markEvery, func() { _ = n.keepHouse(ctx) })
	})
	g.Go(func() error {
		return n.every(ctx, mendEvery, func() {
			if !n.policyKept.Load() || n.replica.disk.waits() {
				_ = n.keepHouse(ctx) // shows in Ready, or is tried again
			}
			n.replica.mend()
		})
	})
	g.Go(func() error {
		return n.every(ctx, expireEvery, func() {
			if err := n.journal.Expire(ctx, n.Now()/1000); err != nil && ctx.Err() == nil {
				n.log.Warn("expired records stay on disk", "error", err)
			}
		})
	})
	return nil
}

func (n *Node) keepHouse(ctx context.Context) error {
	return n.journal.Append(ctx, &journal.Batch{User: new(housekeeping)})
}

// SetPolicy puts a policy in the place of the one in force: see [revocation.Policy.Succeed]. It is durable before any write is planned by it, because a start
// must know how long records were kept. Calls must not overlap. Errors leave the old one in force; ErrNotReady: the journal is being read.
func (n *Node) SetPolicy(ctx context.Context, p revocation.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if !n.replayed.Load() {
		return fmt.Errorf("%w: the journal is being read", ErrNotReady)
	}
	p.Succeed(n.table.Policy(), max(n.Now(), n.cfg.Clock.Now().UnixMilli()))
	if n.journal == nil {
		n.table.SetPolicy(&p)
		return nil
	}
	return n.journal.Append(ctx, &journal.Batch{User: &housekeeping{next: &p}})
}

// reportEvery is how often the log tells how far the start is.
const reportEvery = 2 * time.Second

func (n *Node) progress(p journal.Progress) {
	if p.Files == 0 && p.Records == 0 {
		n.table.Expect(int(p.BytesTotal / entrySize)) // a little more than there is
	}
	n.mu.Lock()
	n.replay = p
	now := n.cfg.Clock.Mono()
	report := now-n.reported >= reportEvery
	if report {
		n.reported = now
	}
	n.mu.Unlock()
	if report {
		n.log.Info("reading the journal", "progress", p.String())
	}
}

// diskError says why writes are refused, nil if they are not.
func (n *Node) diskError() error {
	if n.journal == nil {
		return nil
	}
	return n.journal.Err()
}
