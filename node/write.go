package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/revocation"
)

// MaxBatch is the number of requests in one call of [Node.Write].
const MaxBatch = 1000

// Ack says which voters must hold a write durably before the call returns. A lone node is all of them.
type Ack uint8

// The levels.
const (
	AckDefault Ack = iota
	AckLocal
	AckQuorum
	AckAll
)

// WriteOptions go with a call of [Node.Write].
type WriteOptions struct {
	Ack        Ack
	AckTimeout time.Duration // 0: see Config; it bounds the wait for other nodes
	// Bulk: there are many; single ones overtake them on their way to other nodes.
	Bulk bool
	// IdempotencyKey: the same key with the same requests answers as the first call did, for ten minutes. Empty: none.
	IdempotencyKey string
	// Writer is held to limits of his own; nil: only to those that hold for everybody, as admins are.
	Writer *Writer
	// Timing is told how long the parts of the call took; nil: nobody asks.
	Timing *Timing
}

// Timing says when the parts of a call of [Node.Write] ended, since its beginning; 0: they did not. A call whose idempotency key is known has only the last one.
type Timing struct {
	Validated time.Duration // what is refused has been, the rest has its records
	Durable   time.Duration // on the disk of this node, or found there
	Confirmed time.Duration // by as many as were asked for

	mono  func() time.Duration
	began time.Duration
}

func (t *Timing) elapsed() time.Duration { return max(1, t.mono()-t.began) }

// Outcome says what a request did.
type Outcome uint8

// The outcomes. The zero Outcome goes with an error.
const (
	OutcomeRevoked        Outcome = 1 + iota // stored
	OutcomeCovered                           // what was there already denies at least as much for at least as long
	OutcomeAlreadyExpired                    // no matching token can be accepted anywhere: nothing was stored
	OutcomeUnblocked                         // stored
)

func (o Outcome) String() string {
	switch o {
	case OutcomeRevoked:
		return "revoked"
	case OutcomeCovered:
		return "covered"
	case OutcomeAlreadyExpired:
		return "already_expired"
	case OutcomeUnblocked:
		return "unblocked"
	}
	return "refused"
}

// Result answers one request.
type Result struct {
	Outcome     Outcome
	Rule        revocation.Rule        // what is in force now; zero if nothing was stored
	Fingerprint revocation.Fingerprint // of what was asked for, under its rule; zero if nothing came of it that has one
	UsableAfter int64                  // Unix milliseconds; see revocation.Plan; 0 without a cutoff
	// Err: this request was refused and changed nothing, or is not in force ([ErrSuperseded]); the others of the call went on. It matches one of
	// revocation's sentinels, ErrClock or ErrSuperseded.
	Err error
}

// Receipt says where a write is.
type Receipt struct {
	Durability  Durability
	Ack         Ack // the level that was reached
	Confirmed   []string
	Unconfirmed []string
	// Positions: a replica that has reached all of them holds the write.
	Positions []Position
}

// Position is a number of an origin.
type Position struct {
	Origin replication.OriginID
	Number uint64
}

// String returns the name of a level.
func (a Ack) String() string {
	switch a {
	case AckLocal:
		return "local"
	case AckQuorum:
		return "quorum"
	case AckAll:
		return "all"
	}
	return "default"
}

// WriteStats counts requests by what became of them.
type WriteStats struct {
	Revoked, Covered, AlreadyExpired, Unblocked uint64
	Refused                                     uint64 // invalid, or beyond a limit
	Failed                                      uint64 // by the disk, a full queue or a context
}

type writeCounts struct{ revoked, covered, expired, unblocked, refused, failed atomic.Uint64 }

func (c *writeCounts) stats() WriteStats {
	return WriteStats{
		Revoked: c.revoked.Load(), Covered: c.covered.Load(), AlreadyExpired: c.expired.Load(), Unblocked: c.unblocked.Load(),
		Refused: c.refused.Load(), Failed: c.failed.Load(),
	}
}

func (c *writeCounts) count(results []Result) {
	for _, r := range results {
		switch r.Outcome {
		case OutcomeRevoked:
			c.revoked.Add(1)
		case OutcomeCovered:
			c.covered.Add(1)
		case OutcomeAlreadyExpired:
			c.expired.Add(1)
		case OutcomeUnblocked:
			c.unblocked.Add(1)
		default:
			c.refused.Add(1)
		}
	}
}

// Write carries out 1 to [MaxBatch] requests in one durable write and returns when all of them have the durability of
// the receipt. A refused request has its error in its result. An error that matches [ErrAck] comes with results and receipt: the write is
// durable here, but fewer nodes than asked for have confirmed it in time. Any other error of the call is for the disk ([journal.ErrDisk],
// [journal.ErrFull]), [ErrNotReady], [ErrTooMany], [ErrBusy], [ErrIdempotencyConflict] and the context: then nothing
// is acknowledged, and what was written is undecided.
func (n *Node) Write(ctx context.Context, requests []revocation.Request, o WriteOptions) ([]Result, Receipt, error) {
	if len(requests) == 0 || len(requests) > MaxBatch {
		return nil, Receipt{}, ErrTooMany
	}
	if err := n.writable(); err != nil {
		return nil, Receipt{}, err
	}
	if t := o.Timing; t != nil {
		*t = Timing{mono: n.cfg.Clock.Mono, began: n.cfg.Clock.Mono()}
	}
	level := n.replica.level(o.Ack)
	carryOut := func() (written, error) { return n.write(ctx, requests, o) }
	for try := 0; ; try++ {
		done, err := n.calls.do(ctx, n.cfg.Clock.Mono(), o.IdempotencyKey, requests, carryOut)
		if err != nil {
			n.counts.failed.Add(uint64(len(requests)))
			return nil, Receipt{}, err
		}
		receipt, err := n.replica.acknowledged(ctx, done.needs, level, o.AckTimeout)
		if err != nil {
			return done.results, receipt, err
		}
		if t := o.Timing; t != nil {
			t.Confirmed = t.elapsed()
		}
		lost := n.superseded(done)
		if len(lost) == 0 {
			done.answered.Store(true)
			return done.results, receipt, nil
		}
		// Somebody's clock is ahead, and his unblock, or block, was there before this one: the later call wins, with a later stamp.
		n.calls.forgetKey(o.IdempotencyKey)
		if try == maxRestamps {
			results := slices.Clone(done.results) // others may have been given them
			for _, b := range lost {
				results[b.request] = Result{Err: ErrSuperseded}
			}
			return results, receipt, nil
		}
		carryOut = func() (written, error) { return n.restamp(ctx, requests, done, lost, o) }
	}
}

// writable returns an error while no request can be carried out.
func (n *Node) writable() error {
	if !n.complete.Load() {
		return ErrNotReady
	}
	if n.members == nil {
		return nil
	}
	if n.members.refuses.Load() {
		return fmt.Errorf("%w: it is %s off from the median of the other nodes'", ErrClock, n.ClockOffset())
	}
	if !n.members.agreed() { // nothing says what time it is, and other nodes refuse what was made in their future
		return fmt.Errorf("%w: it has not been found to agree with that of another node since the start", ErrClock)
	}
	return nil
}

// maxRestamps is how often a block is written again because another node held a later stamp.
const maxRestamps = 3

// written is what a call has done: its results, the dots that must be durable for its acknowledgement, and the blocks and unblocks in it.
type written struct {
	results []Result
	needs   []replication.Dot
	blocks  []blocked
	// answered: the caller was told that this is in force. What lifts it is later, and no retry with the same key undoes that.
	answered *atomic.Bool
}

// blocked is a block or unblock of a call: the last one for its key.
type blocked struct {
	request int // its place in the call
	record  revocation.Record
	twin    revocation.Record // the same under the other fingerprint key; see revocation.Table.Twin
}

// write is the order of a write, on one screen.
func (n *Node) write(ctx context.Context, requests []revocation.Request, o WriteOptions) (written, error) {
	reading := n.tick()
	done := written{results: make([]Result, len(requests)), answered: new(atomic.Bool)}
	results := done.results
	w := &writing{node: n, by: o.Writer, entries: make([]entry, 0, len(requests))}
	n.keys.writes.RLock()
	w.holdsKeys = true
	committing := false // then merged lets go of the keys
	defer func() {
		if !committing {
			w.releaseKeys()
		}
	}()
	if n.table.Leaving() { // the disk does not take the keys of the cluster: nobody would take a record under the one that is here
		return written{}, fmt.Errorf("%w: the fingerprint keys of the cluster are not in force here", ErrNotReady)
	}
	if o.Bulk {
		w.lane = replication.Bulk
	}
	for first := 0; first < len(requests); first += revocation.MaxRun {
		last := min(first+revocation.MaxRun, len(requests))
		w.run(first, requests[first:last], results[first:last], reading)
	}
	if t := o.Timing; t != nil {
		t.Validated = t.elapsed()
	}
	if len(w.entries) > 0 {
		committing = true
		if err := n.commit(ctx, w); err != nil {
			return written{}, err
		}
		for _, e := range w.entries {
			if e.err != nil {
				return written{}, e.err // durable, but memory refused it: never acknowledged
			}
		}
		w.covering = append(w.covering, replication.Dot(w.entries[len(w.entries)-1].dot)) // it is the last of its origin
	}
	if t := o.Timing; t != nil {
		t.Durable = t.elapsed()
	}
	done.needs, done.blocks = w.covering, w.blocks
	n.counts.count(results)
	return done, nil
}

// restamp writes again what has lost, under later stamps. The others are as they are: another time would move their cutoffs.
func (n *Node) restamp(ctx context.Context, requests []revocation.Request, done written, lost []blocked, o WriteOptions) (written, error) {
	again := make([]revocation.Request, len(lost))
	for i, b := range lost {
		again[i] = requests[b.request]
	}
	w, err := n.write(ctx, again, o)
	if err != nil {
		return written{}, err
	}
	w.needs = append(w.needs, done.needs...)
	results := slices.Clone(done.results)
	for i, b := range lost {
		results[b.request] = w.results[i]
	}
	w.results = results
	for i := range w.blocks {
		w.blocks[i].request = lost[w.blocks[i].request].request
	}
	for _, b := range done.blocks {
		if !slices.Contains(lost, b) {
			w.blocks = append(w.blocks, b)
		}
	}
	return w, nil
}

// superseded returns the blocks and unblocks that have lost to an opposite with a later stamp.
func (n *Node) superseded(done written) (lost []blocked) {
	if done.answered.Load() {
		return nil
	}
	for _, b := range done.blocks {
		for _, r := range [2]revocation.Record{b.record, b.twin} {
			if r.Class == 0 {
				continue
			}
			if held, _, ok := n.table.Held(r, n.Now()); ok && held.Class != b.record.Class && held.Value >= b.record.Value {
				lost = append(lost, b)
				break
			}
		}
	}
	return lost
}

// plan turns a request into revocations, unless it needs a clock that cannot be believed.
func (n *Node) plan(r revocation.Request, reading clock.Reading) (revocation.Plan, error) {
	wall := reading.Wall
	switch {
	case believable(reading) && (n.members == nil || !n.members.apart()):
	case needsClock(r):
		return revocation.Plan{}, fmt.Errorf("%w: %s", ErrClock, n.clockWords(reading))
	default:
		// It states its own times, and only says when it was made.
		wall = reading.Guarded
	}
	return n.table.Plan(r, wall.UnixMilli(), reading.Guarded.UnixMilli())
}

// needsClock: without a stated time the request's meaning depends on what time it is here.
func needsClock(r revocation.Request) bool {
	if r.Action != revocation.Revoke {
		return true
	}
	return r.IssuedBefore == 0 && r.ExpiresAt == 0 || r.IssuedBefore == 0 && r.Cutoff
}

// believable: a cutoff at a wall clock that has just jumped, or stands before the last time on disk, would
// miss the tokens that it is meant for.
func believable(r clock.Reading) bool {
	return r.Trusted && (!r.Unconfirmed || r.Offset >= 0)
}

// writing is a call of Write on its way through the journal: the records that were not covered.
type writing struct {
	rehearsal bool // nothing is to be changed
	live      bool // of a rehearsal: the last shape has live records

	node     *Node
	by       *Writer
	charges  []charge                          // of the entries
	paid     map[revocation.Fingerprint]uint32 // up to which bucket the entries of a writer with a quota are paid for
	lane     replication.Lane
	entries  []entry
	records  []revocation.Record // of the requests that run looks at
	covering []replication.Dot   // of records that cover what was asked for
	blocks   []blocked           // blocks and unblocks among the entries, or covered
	origins  broughtOrigins      // that the batch brought to the disk
	renames  bool                // what the table has already gets the dots of these entries

	holdsKeys bool // the ring cannot change until these records are in the table
}

func (w *writing) releaseKeys() {
	if w.holdsKeys {
		w.holdsKeys = false
		w.node.keys.writes.RUnlock()
	}
}

// entry is one record; shape is its definition.
type entry struct {
	record revocation.Record
	shape  revocation.Shape
	dot    uint64
	err    error // of the merge
}

// run plans a few requests, the first of which has a number, and turns them into entries: what the table will be asked for is requested for all of them first.
func (w *writing) run(first int, requests []revocation.Request, results []Result, reading clock.Reading) {
	n := w.node
	var plans [revocation.MaxRun]revocation.Plan
	var ahead [revocation.MaxRun]revocation.Fingerprint
	count := 0
	w.records = w.records[:0]
	for i, r := range requests {
		plan, err := n.plan(r, reading)
		switch {
		case err != nil:
			results[i].Err = err
		case plan.AlreadyExpired:
			results[i].Outcome = OutcomeAlreadyExpired
		default:
			plans[i] = plan
			for _, rev := range plan.Revocations {
				w.records = append(w.records, n.table.Record(rev))
			}
			ahead[count] = w.records[len(w.records)-1].Fingerprint
			count++
		}
	}
	n.table.Ahead(ahead[:count])
	records := w.records
	for i, plan := range plans[:len(requests)] {
		if k := len(plan.Revocations); k > 0 {
			results[i] = w.add(first+i, plan, records[:k], reading)
			records = records[k:]
		}
	}
}

// add turns the plan of a request, and its records, into entries, unless the table covers all of it.
func (w *writing) add(request int, plan revocation.Plan, records []revocation.Record, reading clock.Reading) Result {
	n := w.node
	now := reading.Guarded.UnixMilli()
	first, coveredBefore, chargedBefore := len(w.entries), len(w.covering), len(w.charges)
	refused := func(err error) Result {
		n.quotas.giveBack(w.charges[chargedBefore:])
		w.entries, w.covering, w.charges = w.entries[:first], w.covering[:coveredBefore], w.charges[:chargedBefore]
		return Result{Err: err}
	}
	covered, sec, counted := true, uint32(now/1000), n.heldToQuota(w.by)
	var until []uint32         // buckets of records that were not there, or not for as long
	var twin revocation.Record // of the last one
	for i, rec := range records {
		var twins bool
		twin, twins = n.table.Twin(plan.Revocations[i], now)
		if rec.Class == revocation.ClassBlock || rec.Class == revocation.ClassUnblock {
			var err error
			if rec, err = n.stamp(rec, twin, w.entries, now, reading.Wall.UnixMilli()); err != nil {
				return refused(err)
			}
		}
		held, dot, ok := n.table.Held(rec, now)
		covers := ok && dot != 0 && revocation.Covers(held, rec)
		if !covers && twins {
			like := rec
			like.Fingerprint, like.Flags = twin.Fingerprint, twin.Flags
			if other, otherDot, ok := n.table.Held(like, now); ok && otherDot != 0 && revocation.Covers(other, like) {
				covers, dot = true, otherDot
			}
		}
		covered = covered && covers
		if counted {
			paid := w.paid[rec.Fingerprint]
			if ok {
				paid = max(paid, bucket(n.deadlineOf(held.RetainUntil()), sec))
			}
			if in := bucket(n.deadlineOf(rec.RetainUntil()), sec); paid < in {
				until = append(until, in)
			}
		}
		w.covering = append(w.covering, replication.Dot(dot))
		w.entries = append(w.entries, entry{record: rec, shape: plan.Revocations[i].Shape})
	}
	entries := w.entries[first:]
	main := &entries[len(entries)-1]
	result := Result{UsableAfter: plan.UsableAfter, Outcome: OutcomeRevoked, Fingerprint: main.record.Fingerprint, Rule: revocation.Rule{
		Shape: &main.shape, Class: main.record.Class, Reason: main.record.Reason, ExpiresAt: main.record.ExpiresAt, Value: main.record.Value,
	}}
	if main.record.Class == revocation.ClassUnblock {
		result.Outcome = OutcomeUnblocked
	}
	if covered {
		w.accepted(blocked{request, main.record, twin})
		shape := main.shape // its place is the next one's
		result.Rule.Shape, result.Outcome, w.live = &shape, OutcomeCovered, true
		w.entries = w.entries[:first]
		return result
	}
	w.covering = w.covering[:coveredBefore]
	if err := n.admit(len(w.entries)); err != nil {
		return refused(err)
	}
	charges := n.charges(w.by, plan.Main().Match, until)
	if err := n.quotas.take(charges, sec, w.rehearsal); err != nil {
		return refused(err)
	}
	if !w.rehearsal {
		w.charges = append(w.charges, charges...)
	}
	for i := range entries {
		var err error
		if w.rehearsal {
			w.live, err = n.table.Admits(entries[i].shape, now, w.by.definer())
		} else {
			_, err = n.table.Define(entries[i].shape, entries[i].record.RetainUntil(), now, w.by.definer())
		}
		if err != nil {
			return refused(err)
		}
	}
	w.accepted(blocked{request, main.record, twin})
	if counted {
		w.pay(entries, sec)
	}
	return result
}

// accepted notes a block or unblock, in the place of an earlier one of the call.
func (w *writing) accepted(b blocked) {
	if b.record.Class == revocation.ClassBlock || b.record.Class == revocation.ClassUnblock {
		w.blocks = slices.DeleteFunc(w.blocks, func(o blocked) bool { return o.record.Fingerprint == b.record.Fingerprint })
		w.blocks = append(w.blocks, b)
	}
}

// pay notes entries whose charges have been taken: the same again in this call, which the table cannot know yet, costs nothing.
func (w *writing) pay(entries []entry, now uint32) {
	if w.paid == nil {
		w.paid = make(map[revocation.Fingerprint]uint32)
	}
	for _, e := range entries {
		f := e.record.Fingerprint
		w.paid[f] = max(w.paid[f], bucket(w.node.deadlineOf(e.record.RetainUntil()), now))
	}
}

// stamp raises the stamp of a block or unblock above the one held and above those earlier in the same call.
func (n *Node) stamp(r, twin revocation.Record, earlier []entry, now, wall int64) (revocation.Record, error) {
	for _, e := range earlier {
		if e.record.Fingerprint == r.Fingerprint && e.record.Value >= r.Value {
			r.Value = e.record.Value + 1
		}
	}
	return n.table.Stamp(r, twin, now, wall)
}

// admit refuses what the table would refuse after it has been written to disk. It may refuse a little early: records that
// are on their way count in full, and a tenth of the memory is left for tables that grow aside and for the next start.
func (n *Node) admit(more int) error {
	records, bytes := n.table.Size()
	if records+int(n.inflight.Load())+more > n.maxRecords {
		return fmt.Errorf("%w: %d records, limit %d", revocation.ErrFull, records, n.maxRecords)
	}
	if held := int(n.replica.held.Load()); n.cfg.NodeRecords < n.maxRecords && held+more > n.cfg.NodeRecords {
		return fmt.Errorf("%w: %d records of this node, limit %d", revocation.ErrFull, held, n.cfg.NodeRecords)
	}
	if bytes > n.maxBytes {
		return fmt.Errorf("%w: %d bytes, limit %d", revocation.ErrFull, bytes, n.maxBytes)
	}
	return nil
}

func (n *Node) commit(ctx context.Context, w *writing) error {
	n.inflight.Add(int64(len(w.entries)))
	return n.commits.commit(ctx, w)
}

// merged is called in commit order when w is as durable as this node makes it, or has failed.
func (n *Node) merged(w *writing, err error) {
	defer w.releaseKeys()
	n.inflight.Add(-int64(len(w.entries)))
	if err != nil {
		n.quotas.giveBack(w.charges)
	}
	if err != nil || len(w.entries) == 0 {
		return
	}
	now := n.Now()
	e := replication.Written{Index: replication.Dot(w.entries[0].dot).Index(), First: replication.Dot(w.entries[0].dot).Number()}
	e.Records = make([]replication.Record, len(w.entries))
	var run [revocation.MaxRun]revocation.Fingerprint
	for i := range w.entries {
		if next := w.entries[i:]; i%len(run) == 0 && len(next) > 1 {
			next = next[:min(len(next), len(run))]
			for j := range next {
				run[j] = next[j].record.Fingerprint
			}
			n.table.Ahead(run[:len(next)])
		}
		entry := &w.entries[i]
		e.Records[i] = view.Encode(entry.record)
		if _, err := n.table.Define(entry.shape, entry.record.RetainUntil(), now, revocation.Unbound); err != nil {
			entry.err = err
			continue
		}
		// The writers' limit was checked before: what is on disk must get into memory.
		var delta revocation.Delta
		delta, entry.err = n.table.Merge(entry.record, entry.dot, now, false)
		if delta.Joined {
			e.Unnamed = append(e.Unnamed, e.Records[i])
		}
		if w.renames && !delta.Changed && delta.Dot != entry.dot {
			n.table.Rename(entry.record, entry.dot, now)
		}
	}
	n.replica.step(e)
}

// commits makes a write durable, then merges it. Writes pass one at a time and in the order of their numbers.
type commits interface {
	commit(ctx context.Context, w *writing) error
}

// memory is the journal of a node without a disk.
type memory struct {
	node *Node
	mu   sync.Mutex
}

func (m *memory) commit(_ context.Context, w *writing) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := m.node.number(w); err != nil {
		m.node.merged(w, err)
		return err
	}
	m.node.merged(w, nil)
	return nil
}

// origin is (node, run, lane): it numbers the records of one run of this node. A dot is the index of its
// origin here, 24 bits, and a number from 1, 40 bits.
type origin struct {
	index uint32
	id    replication.OriginID // random, never used again; 0: a new one is due
	next  uint64
}

// number gives w's records their dots, of a new origin if one is due: then it is returned. Only the goroutine that commits calls it.
func (n *Node) number(w *writing) (made *replication.Origin, err error) {
	if n.fenced.Swap(false) {
		n.own = [2]origin{}
	}
	o := &n.own[w.lane]
	if o.id == 0 || o.next+uint64(len(w.entries)) > replication.MaxNumber {
		id := replication.MakeOrigin(random(), w.lane)
		index, err := n.replica.newOrigin(id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBusy, err)
		}
		*o = origin{index: index, id: id}
		made = &replication.Origin{Index: index, ID: id, Node: n.cfg.Name}
	}
	for i := range w.entries {
		o.next++
		w.entries[i].dot = uint64(replication.MakeDot(o.index, o.next))
	}
	return made, nil
}

// entrySize is a record with its dot, in the journal.
const entrySize = revocation.RecordSize + 8

func appendEntry(b []byte, e entry) ([]byte, error) {
	b, err := e.record.AppendBinary(b)
	if err != nil {
		return b, err
	}
	return binary.BigEndian.AppendUint64(b, e.dot), nil
}

func parseEntry(b []byte) (revocation.Record, uint64, error) {
	if len(b) != entrySize {
		return revocation.Record{}, 0, errors.New("entry has the wrong length")
	}
	r, err := revocation.ParseRecord(b[:revocation.RecordSize])
	return r, binary.BigEndian.Uint64(b[revocation.RecordSize:]), err
}
