// Package view is what a node and a client replica have in common: a table of revocations as the state machine of
// cluster/replication sees it, and how old a view may be.
//
// It knows how records are encoded and how verdicts depend on the age of a view, and promises that an Active verdict never
// comes from a view older than asked for. It starts nothing. A Store is used by whoever holds the state machine's lock; a Freshness is immutable. The zero
// Store is not usable; the zero Freshness is a view that there is none of.
package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/faults"
	"github.com/revokd/revokd/revocation"
)

// Store is a table of revocations as the state machine sees it.
type Store struct {
	Table *revocation.Table
	// Trusted reports whether the wall clock may be used to judge records; nil: never.
	Trusted func() bool
}

var _ replication.Store = (*Store)(nil)

// Encode returns a record as it is sent.
func Encode(r revocation.Record) (out replication.Record) {
	_, _ = r.AppendBinary(out[:0])
	return out
}

// RetainUntil is that of the record: see [revocation.Record.RetainUntil].
func RetainUntil(rec *replication.Record) uint32 {
	return revocation.Record{
		Value: int64(binary.BigEndian.Uint64(rec[16:])), ExpiresAt: binary.BigEndian.Uint32(rec[32:]), Class: revocation.Class(rec[36]),
	}.RetainUntil()
}

// relayed is how much further ahead the times of a record may lie that comes from another node than its own: that one has accepted it by its own clock, and
// a little earlier it would have been refused here.
const relayed = 10 * time.Minute

// Merge makes the structural checks, and those of times that bind writers absolutely, unless this clock cannot be believed: records only become
// plausible as time passes, so who knows the time refuses none that was rightly accepted elsewhere.
func (s *Store) Merge(rec *replication.Record, d replication.Dot, now replication.Now, direct bool) (replication.Merged, error) {
	r, err := revocation.ParseRecord(rec[:])
	if err != nil {
		return replication.Merged{}, err
	}
	if faults.Mutant("local-ttl") {
		r.ExpiresAt++
	}
	if s.Trusted != nil && s.Trusted() && !faults.Mutant("accept-future") {
		wall := now.Wall
		if !direct {
			wall += relayed.Milliseconds()
		}
		if err := r.Plausible(wall); err != nil {
			return replication.Merged{}, err
		}
	}
	delta, err := s.Table.Merge(r, uint64(d), now.Guarded, false)
	if errors.Is(err, revocation.ErrUnknownShape) {
		err = fmt.Errorf("%w: %w", replication.ErrDefinition, err)
	}
	return replication.Merged{Changed: delta.Changed, Unnamed: delta.Changed && delta.Dot == 0, Loose: delta.Loose}, err
}

// Ahead requests the memory that merging records with these keys will touch.
func (s *Store) Ahead(keys []replication.Key) {
	var list [replication.MaxRun]revocation.Fingerprint
	n := min(len(keys), len(list))
	for i, k := range keys[:n] {
		list[i] = revocation.Fingerprint(k)
	}
	s.Table.Ahead(list[:n])
}

// Held returns what the table holds under the key of a record.
func (s *Store) Held(rec *replication.Record, now replication.Now) (replication.Record, replication.Dot, bool) {
	r, err := revocation.ParseRecord(rec[:])
	if err != nil {
		return replication.Record{}, 0, false
	}
	held, dot, ok := s.Table.Held(r, now.Guarded)
	return Encode(held), replication.Dot(dot), ok
}

// Scan returns live records in key order.
func (s *Store) Scan(from replication.Key, budget int, now replication.Now, keep func(replication.Dot) bool, fn func(*replication.Record, replication.Dot) bool) (replication.Key, bool) {
	var rec replication.Record // one for all: fn keeps none
	next, more := s.Table.Select(revocation.Fingerprint(from), budget, now.Guarded,
		func(dot uint64) bool { return keep(replication.Dot(dot)) },
		func(r revocation.Record, dot uint64) bool {
			rec = Encode(r)
			return fn(&rec, replication.Dot(dot))
		})
	return replication.Key(next), more
}

// Each returns live records in any order.
func (s *Store) Each(from replication.Key, budget int, now replication.Now, fn func(*replication.Record, replication.Dot)) (replication.Key, bool) {
	var rec replication.Record
	next, more := s.Table.Each(revocation.Fingerprint(from), budget, now.Guarded, func(r revocation.Record, dot uint64) {
		rec = Encode(r)
		fn(&rec, replication.Dot(dot))
	})
	return replication.Key(next), more
}

// Size is how many records the table holds.
func (s *Store) Size() int {
	records, _ := s.Table.Size()
	return records
}

// Early: keeps come before the cutoffs that they exempt from, or a session that was kept would be revoked for as long as a scan takes.
func (s *Store) Early(now replication.Now) func(*replication.Record) bool {
	if !s.Table.Keeps(now.Guarded) {
		return nil
	}
	return func(rec *replication.Record) bool { return revocation.Class(rec[36]) == revocation.ClassKeep }
}

// Definition returns a shape as it is sent.
func (s *Store) Definition(id uint64) []byte {
	shape, ok := s.Table.Shape(revocation.ShapeID(id))
	if !ok {
		return nil
	}
	b, _ := shape.AppendBinary(nil)
	return b
}

// Define keeps a shape for as long as it may take until its first record arrives.
func (s *Store) Define(definition []byte, now replication.Now) error {
	shape, err := revocation.ParseShape(definition)
	if err != nil {
		return err
	}
	_, err = s.Table.Define(shape, uint32(now.Guarded/1000), now.Guarded, revocation.Unbound)
	return err
}

// Oldest is the age of a view that there is none of.
const Oldest = time.Duration(math.MaxInt64)

// Freshness says as of when a view holds all that voters held, on the monotonic clock.
type Freshness struct {
	quorum, all time.Duration
	known       bool
	alone       bool // this replica is a majority by itself
}

// NewFreshness takes what [replication.Replica.FreshSince] returns.
func NewFreshness(quorum, all time.Duration) *Freshness {
	return &Freshness{quorum: quorum, all: all, known: true, alone: quorum == math.MaxInt64}
}

// Age returns how old the view of a majority of the voters is, or of all of them.
func (f *Freshness) Age(now time.Duration, all bool) time.Duration {
	since := f.quorum
	if all {
		since = f.all
	}
	switch {
	case !f.known || since == math.MinInt64:
		return Oldest
	case since > now: // this replica itself
		return 0
	}
	return now - since
}

// Judge withholds Active from a view that is older than limit; Revoked holds whatever its age. any: whatever the age.
func (f *Freshness) Judge(v revocation.Verdict, mono func() time.Duration, all, any bool, limit time.Duration) revocation.Verdict {
	if f.alone && !all { // nobody else has to be asked, and no clock
		return v
	}
	age := f.Age(mono(), all)
	if v.Status == revocation.Active && age > limit && !any && !faults.Mutant("active-stale") {
		return revocation.Verdict{Cause: revocation.CauseStale, Age: age}
	}
	v.Age = age
	return v
}
