package node

import (
	"sync/atomic"
	"time"

	"github.com/revokd/revokd/revocation"
)

// What is remembered of checks for rehearsals: all if they are few, else so many in each tick, and more after a calm.
const (
	sampledPerTick = 2
	sampledAtOnce  = 100
	sampledChecks  = 4096            // about 2 MiB
	sampledFor     = 5 * time.Minute // at most
	countedRecords = 1 << 20         // of the table, for how many a shape has
)

// rehearsals remember what a rehearsal needs.
type rehearsals struct {
	recent *revocation.Sample
	due    atomic.Int32 // checks that are to be remembered; about 0 if they are many
}

// tick lets more checks be remembered.
func (r *rehearsals) tick() { r.due.Store(min(max(r.due.Load(), 0)+sampledPerTick, sampledAtOnce)) }

// sampled remembers a check if one is due. All others cost a load of what nobody writes meanwhile.
func (n *Node) sampled(c *revocation.Claims, v revocation.Verdict) {
	r := &n.rehearsals
	if r.due.Load() > 0 && r.due.Add(-1) >= 0 {
		r.recent.Add(c, v.Status, n.now.Load())
	}
}

// Rehearsal is what a request would do now.
type Rehearsal struct {
	Result // as that of [Node.Write]

	ShapeLive bool // there are revocations with these names of claims already: it takes no place among the live shapes
	// ShapeRecords is how many of them are live that have this rule. Of a large table only a part is counted, and the number is an estimate.
	ShapeRecords          int64
	ShapeRecordsEstimated bool
	// Checks of the last minutes that this node answered, through [Node.CheckFresh]: all of them, or a sample of at most 20 a second.
	Checks revocation.Caught
}

// Rehearse tells what a request would do, and does nothing. It refuses what [Node.Write] refuses to by. Errors are those of a result and of the call of Write.
func (n *Node) Rehearse(r revocation.Request, by *Writer) (Rehearsal, error) {
	if err := n.writable(); err != nil {
		return Rehearsal{}, err
	}
	reading := n.tick()
	plan, err := n.plan(r, reading)
	if err != nil {
		return Rehearsal{}, err
	}
	if plan.AlreadyExpired {
		return Rehearsal{Result: Result{Outcome: OutcomeAlreadyExpired}}, nil
	}
	w := &writing{node: n, by: by, rehearsal: true}
	records := make([]revocation.Record, len(plan.Revocations))
	for i, rev := range plan.Revocations {
		records[i] = n.table.Record(rev)
	}
	result := w.add(0, plan, records, reading)
	if result.Err != nil {
		return Rehearsal{}, result.Err
	}
	now := reading.Guarded.UnixMilli()
	out := Rehearsal{Result: result, ShapeLive: w.live, Checks: n.rehearsals.recent.Catch(plan, now-sampledFor.Milliseconds())}
	if out.ShapeLive {
		out.ShapeRecords, out.ShapeRecordsEstimated = n.countShape(records[len(records)-1], now)
	}
	return out, nil
}

// countShape counts the live records with the shape and the rule of one.
func (n *Node) countShape(like revocation.Record, now int64) (count int64, estimated bool) {
	seen := int64(0)
	_, more := n.table.Each(revocation.Fingerprint{}, countedRecords, now, func(r revocation.Record, _ uint64) {
		seen++
		if r.Shape == like.Shape && r.Class == like.Class {
			count++
		}
	})
	if !more || seen == 0 {
		return count, false
	}
	// Records lie in the order of a hash, so what was seen stands for the rest.
	all, _ := n.table.Size()
	return int64(float64(count) * float64(all) / float64(seen)), true
}
