package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/internal/clock"
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
	AckTimeout time.Duration // 0: none but that of the context
	// IdempotencyKey: the same key with the same requests answers as the first call did, for ten minutes. Empty: none.
	IdempotencyKey string
}

// Outcome says what a request did.
type Outcome uint8

// The outcomes. The zero Outcome goes with an error.
const (
	OutcomeRevoked        Outcome = 1 + iota // stored
	OutcomeCovered                           // what was there already denies at least as much for at least as long
	OutcomeAlreadyExpired                    // no matching token can be alive: nothing was stored
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
	Rule        revocation.Rule // what is in force now; zero if nothing was stored
	UsableAfter int64           // Unix milliseconds; see revocation.Plan; 0 without a cutoff
	// Err: this request was refused and changed nothing; the others of the call went on. It matches one of
	// revocation's sentinels or ErrClock.
	Err error
}

// Receipt says where a write is.
type Receipt struct {
	Durability  Durability
	Ack         Ack // the level that was reached
	Confirmed   []string
	Unconfirmed []string
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
// the receipt. A refused request has its error in its result; the error of the call is for the disk ([journal.ErrDisk],
// [journal.ErrFull]), [ErrNotReady], [ErrTooMany], [ErrBusy], [ErrIdempotencyConflict] and the context: then nothing
// is acknowledged, and what was written is undecided.
func (n *Node) Write(ctx context.Context, requests []revocation.Request, o WriteOptions) ([]Result, Receipt, error) {
	if len(requests) == 0 || len(requests) > MaxBatch {
		return nil, Receipt{}, ErrTooMany
	}
	if !n.complete.Load() {
		return nil, Receipt{}, ErrNotReady
	}
	if o.AckTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.AckTimeout)
		defer cancel()
	}
	results, err := n.calls.do(ctx, n.cfg.Clock.Mono(), o.IdempotencyKey, requests, func() ([]Result, error) {
		return n.write(ctx, requests)
	})
	if err != nil {
		n.counts.failed.Add(uint64(len(requests)))
		return nil, Receipt{}, err
	}
	r := Receipt{Durability: n.cfg.Durability, Ack: max(o.Ack, AckLocal), Confirmed: []string{n.cfg.Name}}
	return results, r, nil
}

// write is the order of a write, on one screen.
func (n *Node) write(ctx context.Context, requests []revocation.Request) ([]Result, error) {
	reading := n.tick()
	results := make([]Result, len(requests))
	w := &writing{node: n}
	for i, r := range requests {
		plan, err := n.plan(r, reading)
		switch {
		case err != nil:
			results[i].Err = err
		case plan.AlreadyExpired:
			results[i].Outcome = OutcomeAlreadyExpired
		default:
			results[i] = w.add(i, plan, reading)
		}
	}
	if len(w.entries) > 0 {
		if err := n.commit(ctx, w); err != nil {
			return nil, err
		}
		for _, e := range w.entries {
			if e.err != nil {
				return nil, e.err // durable, but memory refused it: never acknowledged
			}
		}
	}
	n.counts.count(results)
	return results, nil
}

// plan turns a request into revocations, unless it needs a clock that cannot be believed.
func (n *Node) plan(r revocation.Request, reading clock.Reading) (revocation.Plan, error) {
	if needsClock(r) && !believable(reading) {
		return revocation.Plan{}, fmt.Errorf("%w: %s", ErrClock, reading.String())
	}
	return n.table.Policy().Plan(r, reading.Wall.UnixMilli(), reading.Guarded.UnixMilli())
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
	node    *Node
	entries []entry
}

// entry is one record; shape is its definition.
type entry struct {
	record revocation.Record
	shape  revocation.Shape
	dot    uint64
	err    error // of the merge
}

// add turns a plan into entries, unless the table covers all of it.
func (w *writing) add(i int, plan revocation.Plan, reading clock.Reading) Result {
	n := w.node
	now := reading.Guarded.UnixMilli()
	var entries []entry
	covered := true
	for _, rev := range plan.Revocations {
		rec := n.cfg.Key.Record(rev)
		if rec.Class == revocation.ClassBlock || rec.Class == revocation.ClassUnblock {
			var err error
			if rec, err = n.stamp(rec, w.entries, now, reading.Wall.UnixMilli()); err != nil {
				return Result{Err: err}
			}
		}
		held, _, ok := n.table.Held(rec, now)
		covered = covered && ok && revocation.Covers(held, rec)
		entries = append(entries, entry{record: rec, shape: rev.Shape})
	}
	main := entries[len(entries)-1]
	result := Result{UsableAfter: plan.UsableAfter, Outcome: OutcomeRevoked, Rule: revocation.Rule{
		Shape: &main.shape, Class: main.record.Class, Reason: main.record.Reason, ExpiresAt: main.record.ExpiresAt, Value: main.record.Value,
	}}
	if main.record.Class == revocation.ClassUnblock {
		result.Outcome = OutcomeUnblocked
	}
	if covered {
		result.Outcome = OutcomeCovered
		return result
	}
	if err := n.admit(len(w.entries) + len(entries)); err != nil {
		return Result{Err: err}
	}
	for _, e := range entries {
		if _, err := n.table.Define(e.shape, e.record.ExpiresAt, now, true); err != nil {
			return Result{Err: err}
		}
	}
	w.entries = append(w.entries, entries...)
	return result
}

// stamp raises the stamp of a block or unblock above the one held and above those earlier in the same call.
func (n *Node) stamp(r revocation.Record, earlier []entry, now, wall int64) (revocation.Record, error) {
	for _, e := range earlier {
		if e.record.Fingerprint == r.Fingerprint && e.record.Value >= r.Value {
			r.Value = e.record.Value + 1
		}
	}
	return n.table.Stamp(r, now, wall)
}

// admit refuses what the table would refuse after it has been written to disk. It may refuse a little early: records that
// are on their way count in full, and a tenth of the memory is left for tables that grow aside and for the next start.
func (n *Node) admit(more int) error {
	records, bytes := n.table.Size()
	if records+int(n.inflight.Load())+more > n.maxRecords {
		return fmt.Errorf("%w: %d records, limit %d", revocation.ErrFull, records, n.maxRecords)
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
	n.inflight.Add(-int64(len(w.entries)))
	if err != nil {
		return
	}
	now := n.Now()
	for i := range w.entries {
		e := &w.entries[i]
		if _, err := n.table.Define(e.shape, e.record.ExpiresAt, now, false); err != nil {
			e.err = err
			continue
		}
		// The writers' limit was checked before: what is on disk must get into memory.
		_, e.err = n.table.Merge(e.record, e.dot, now, false)
	}
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
	m.node.number(w)
	m.node.merged(w, nil)
	return nil
}

// origin is (node, boot, lane): it numbers the records of one run of this node. A dot is the index of its
// origin here, 24 bits, and a number from 1, 40 bits.
type origin struct {
	index uint32
	epoch uint64 // random; never used again
	next  uint64
}

const (
	dotBits   = 40
	maxNumber = 1<<dotBits - 1
)

// number gives w's records their dots. Only the goroutine that commits calls it.
func (n *Node) number(w *writing) {
	for i := range w.entries {
		n.origin.next++
		w.entries[i].dot = uint64(n.origin.index)<<dotBits | n.origin.next
	}
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
