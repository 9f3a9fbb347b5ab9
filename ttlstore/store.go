// Package ttlstore holds fixed-size items by 128-bit key until their deadlines pass. It never drops a live
// item to make room: when it is full, [Store.Update] answers [ErrFull] and everything else goes on.
//
// An item is live while now <= Deadline, by the now that the caller passes. All methods but Close may be
// called concurrently; the zero Store is not usable, create one with [New].
package ttlstore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// ErrFull is returned by [Store.Update] for a new key when a limit is reached.
var ErrFull = errors.New("store is full")

// Key identifies an item. Keys are expected to be outputs of a keyed hash.
type Key struct{ Hi, Lo uint64 }

// Compare orders keys by Hi, then Lo.
func (k Key) Compare(o Key) int {
	switch {
	case k.Hi < o.Hi || k.Hi == o.Hi && k.Lo < o.Lo:
		return -1
	case k == o:
		return 0
	}
	return 1
}

// Item is what the store holds under a key. It is live while now <= Deadline (Unix seconds).
type Item struct {
	Key
	Deadline uint32
	Data     [3]uint64
}

// Config configures a [Store]. Zero fields mean the defaults.
type Config struct {
	MaxItems int   // most items held, expired but unswept ones included; default 100 million
	MaxBytes int64 // most memory for items and their lookup structure; default 8 GiB
	Reserve  int   // by how many items the limit is lower for limited callers; default none
	Shards   int   // a power of two; default chosen by MaxItems
	Heap     bool  // keep everything on the Go heap
}

// Store holds items. Create it with [New].
type Store struct {
	cfg Config

	mu    sync.RWMutex
	items map[Key]Item
	stats Stats
}

// New returns an empty store.
func New(cfg Config) (*Store, error) {
	if cfg.MaxItems < 0 || cfg.MaxBytes < 0 || cfg.Reserve < 0 || cfg.Shards < 0 {
		return nil, fmt.Errorf("ttlstore: negative limit in %+v", cfg)
	}
	if cfg.MaxItems == 0 {
		cfg.MaxItems = 100_000_000
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 8 << 30
	}
	return &Store{cfg: cfg, items: map[Key]Item{}}, nil
}

// Close frees the memory. Nobody may use the store any more.
func (s *Store) Close() error { return nil }

// Lookup returns the live item held under a key.
func (s *Store) Lookup(k Key, now uint32) (Item, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	it, ok := s.items[k]
	if !ok || now > it.Deadline {
		return Item{}, false
	}
	return it, true
}

// Has reports whether a live item is held under a key.
func (s *Store) Has(k Key, now uint32) bool {
	_, ok := s.Lookup(k, now)
	return ok
}

// Probe is a lookup whose memory is on its way. It belongs to the store that made it.
type Probe struct{ key Key }

// Prepare requests the memory that looking up a key needs.
func (s *Store) Prepare(k Key) Probe { return Probe{key: k} }

// HasProbe is Has for a prepared key.
func (s *Store) HasProbe(p *Probe, now uint32) bool { return s.Has(p.key, now) }

// HasBatch sets out[i] to Has(keys[i], now); out must be at least as long as keys.
func (s *Store) HasBatch(keys []Key, now uint32, out []bool) {
	for i, k := range keys {
		out[i] = s.Has(k, now)
	}
}

// Update calls f with the live item held under k and stores what f returns if its second result is true.
// f runs under a lock: it must be brief and must not call the store. A new key is refused with
// [ErrFull] when a limit is reached, for limited callers Reserve items earlier; an update of a live item is never refused.
func (s *Store) Update(k Key, now uint32, limited bool, f func(old Item, ok bool) (Item, bool)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, held := s.items[k]
	ok := held && now <= old.Deadline
	if !ok {
		old = Item{}
	}
	it, store := f(old, ok)
	if !store {
		return nil
	}
	limit := s.cfg.MaxItems
	if limited {
		limit -= s.cfg.Reserve
	}
	if !held && len(s.items) >= limit {
		return ErrFull
	}
	it.Key = k
	s.items[k] = it
	return nil
}

// SweepStats counts what a sweep did.
type SweepStats struct {
	Scanned int // items looked at
	Expired int // items freed
	Rebuilt int // filters rebuilt
}

// Sweep frees items that expired before now.
func (s *Store) Sweep(now uint32) SweepStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SweepStats{Scanned: len(s.items)}
	for k, it := range s.items {
		if now > it.Deadline {
			delete(s.items, k)
			st.Expired++
		}
	}
	s.stats.Expired += uint64(st.Expired)
	s.stats.Sweeps++
	return st
}

// SweepShard is Sweep for one of Stats().Shards shards.
func (s *Store) SweepShard(_ int, now uint32) SweepStats { return s.Sweep(now) }

// Range calls fn for the items held, in key order from a key on, until fn returns false.
func (s *Store) Range(from Key, fn func(Item) bool) {
	s.mu.RLock()
	var list []Item
	for _, it := range s.items {
		if it.Compare(from) >= 0 {
			list = append(list, it)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b Item) int { return a.Compare(b.Key) })
	for _, it := range list {
		if !fn(it) {
			return
		}
	}
}

// Stats counts what a store holds and has done.
type Stats struct {
	Items       int   // held, expired but unswept ones included
	Limit       int   // MaxItems
	Bytes       int64 // memory for everything
	BytesLimit  int64 // MaxBytes
	LookupBytes int64 // of Bytes, what negative lookups touch: slots and filters
	Shards      int

	Expired  uint64 // items freed since the store was made
	Sweeps   uint64
	Rebuilds uint64 // of a shard's filter
	Grows    uint64 // of a shard's table

	FilterBits int64   // size of all filters
	Saturation float64 // share of filter bits that are set, about
}

// Stats returns counters; it is cheap.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st := s.stats
	st.Items, st.Limit, st.BytesLimit, st.Shards = len(s.items), s.cfg.MaxItems, s.cfg.MaxBytes, 1
	return st
}
