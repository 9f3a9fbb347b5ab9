package sim

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/revocation"
)

// store is a replica's records: what revocation.Table does, on a map.
type store struct {
	entries map[replication.Key]*entry
	keys    []replication.Key // sorted
	defs    map[uint64]bool
	broken  rule
	full    bool        // takes no new keys
	trusted func() bool // its clock may judge; nil: never
	arrived func(replication.Key)
}

type entry struct {
	record replication.Record
	dot    replication.Dot
}

func newStore(broken rule) *store {
	return &store{entries: make(map[replication.Key]*entry), defs: make(map[uint64]bool), broken: broken}
}

func compareKeys(a, b replication.Key) int {
	switch {
	case a.Hi < b.Hi || a.Hi == b.Hi && a.Lo < b.Lo:
		return -1
	case a == b:
		return 0
	}
	return 1
}

func deadline(r *replication.Record) uint32        { return parse(r).RetainUntil() }
func definition(r *replication.Record) uint64      { return binary.BigEndian.Uint64(r[24:]) }
func expired(r *replication.Record, ms int64) bool { return int64(deadline(r)) < ms/1000 }

func parse(r *replication.Record) revocation.Record {
	p, _ := revocation.ParseRecord(r[:]) // the simulator makes only valid ones
	return p
}

func encode(r revocation.Record) (out replication.Record) {
	_, _ = r.AppendBinary(out[:0])
	return out
}

// join is the oracle: what two contents of one key must become.
func join(a, b *replication.Record) replication.Record {
	return encode(revocation.Join(parse(a), parse(b)))
}

func (s *store) join(a, b *replication.Record) replication.Record {
	j := join(a, b)
	if s.broken == "min-for-max" {
		x, y := parse(a), parse(b)
		r := parse(&j)
		r.Value = min(x.Value, y.Value)
		return encode(r)
	}
	return j
}

// covers reports whether what is held is at least r.
func (s *store) covers(r *replication.Record) bool {
	e := s.entries[r.Key()]
	return e != nil && (e.record == *r || join(&e.record, r) == e.record)
}

func (*store) Ahead([]replication.Key) {}

func (s *store) Merge(r *replication.Record, d replication.Dot, now replication.Now, _ bool) (replication.Merged, error) {
	if !s.defs[definition(r)] {
		return replication.Merged{}, replication.ErrDefinition
	}
	p, err := revocation.ParseRecord(r[:])
	if err != nil {
		return replication.Merged{}, err
	}
	if s.trusted != nil && s.trusted() && s.broken != "no-bounds" {
		if err := p.Plausible(now.Wall); err != nil {
			return replication.Merged{}, err
		}
	}
	if expired(r, now.Guarded) {
		return replication.Merged{}, nil
	}
	if s.full && s.entries[r.Key()] == nil {
		return replication.Merged{}, errFull
	}
	return s.merge(r, d, now.Guarded), nil
}

var errFull = errors.New("full")

func (s *store) merge(r *replication.Record, d replication.Dot, guarded int64) replication.Merged {
	key := r.Key()
	e := s.entries[key]
	if e != nil && expired(&e.record, guarded) {
		*e = entry{*r, d}
		return replication.Merged{Changed: true, Unnamed: d == 0}
	}
	if e == nil {
		s.entries[key] = &entry{*r, d}
		i, _ := slices.BinarySearchFunc(s.keys, key, compareKeys)
		s.keys = slices.Insert(s.keys, i, key)
		if s.arrived != nil {
			s.arrived(key)
		}
		return replication.Merged{Changed: true, Unnamed: d == 0}
	}
	switch joined := s.join(&e.record, r); joined {
	case e.record:
		if e.dot != 0 || *r != e.record || d == 0 {
			return replication.Merged{Loose: e.dot == 0}
		}
		e.dot = d
		return replication.Merged{Changed: true}
	case *r:
		*e = entry{*r, d}
	default:
		*e = entry{joined, 0}
		if s.broken == "one-of-two-dots" {
			e.dot = d
		}
	}
	return replication.Merged{Changed: true, Unnamed: e.dot == 0}
}

// rename gives content another dot, if it is what is held.
func (s *store) rename(r *replication.Record, d replication.Dot) {
	if e := s.entries[r.Key()]; e != nil && e.record == *r {
		e.dot = d
	}
}

func (s *store) Held(r *replication.Record, now replication.Now) (replication.Record, replication.Dot, bool) {
	e := s.entries[r.Key()]
	if e == nil || expired(&e.record, now.Guarded) {
		return replication.Record{}, 0, false
	}
	return e.record, e.dot, true
}

func (s *store) Scan(from replication.Key, budget int, now replication.Now, keep func(replication.Dot) bool, fn func(*replication.Record, replication.Dot) bool) (replication.Key, bool) {
	i, _ := slices.BinarySearchFunc(s.keys, from, compareKeys)
	for ; i < len(s.keys); i++ {
		if budget--; budget < 0 {
			return s.keys[i], true
		}
		e := s.entries[s.keys[i]]
		if expired(&e.record, now.Guarded) || !keep(e.dot) {
			continue
		}
		r := e.record
		if !fn(&r, e.dot) {
			if i+1 == len(s.keys) {
				return replication.Key{}, false
			}
			return s.keys[i+1], true
		}
	}
	return replication.Key{}, false
}

func (s *store) Each(from replication.Key, budget int, now replication.Now, fn func(*replication.Record, replication.Dot)) (replication.Key, bool) {
	return s.Scan(from, budget, now, func(replication.Dot) bool { return true }, func(r *replication.Record, d replication.Dot) bool {
		fn(r, d)
		return true
	})
}

func (s *store) Size() int { return len(s.entries) }

// Early stands for keeps: half of all.
func (s *store) Early(replication.Now) func(*replication.Record) bool {
	return func(r *replication.Record) bool { return digest(r)&1 == 0 }
}

func (s *store) Definition(id uint64) []byte {
	if !s.defs[id] {
		return nil
	}
	return binary.BigEndian.AppendUint64(nil, id)
}

func (s *store) Define(b []byte, _ replication.Now) error {
	if len(b) != 8 {
		return replication.ErrProtocol
	}
	s.defs[binary.BigEndian.Uint64(b)] = true
	return nil
}

// digest stands for a keyed PRF.
func digest(r *replication.Record) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for i := 0; i < len(r); i += 8 {
		h = mix(h, binary.BigEndian.Uint64(r[i:]))
	}
	return h
}

func mix(h, v uint64) uint64 {
	h ^= v
	h *= 0xff51afd7ed558ccd
	h ^= h >> 32
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>29
}
