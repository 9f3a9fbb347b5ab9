package ttlstore

import (
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/revokd/revokd/bloom"
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
	MaxBytes int64 // most memory for items and their lookup structure; default 8 GiB, at least 16 MiB
	Reserve  int   // by how many items the limit is lower for limited callers; default none
	Shards   int   // a power of two up to 65536; default: one for each 100 000 of MaxItems, 16 to 1024
	Heap     bool  // keep everything on the Go heap
}

const (
	defaultItems = 100_000_000
	defaultBytes = 8 << 30
	minBytes     = 16 << 20
	maxShards    = 1 << 16
)

func (c *Config) validate() error {
	if c.MaxItems == 0 {
		c.MaxItems = defaultItems
	}
	if c.MaxBytes == 0 {
		c.MaxBytes = defaultBytes
	}
	if c.Shards == 0 {
		c.Shards = min(1024, max(16, 1<<bits.Len(uint(c.MaxItems/100_000))))
	}
	switch {
	case c.MaxItems < 0:
		return fmt.Errorf("ttlstore: MaxItems %d is negative", c.MaxItems)
	case c.MaxBytes < minBytes:
		return fmt.Errorf("ttlstore: MaxBytes %d is less than %d", c.MaxBytes, minBytes)
	case c.Reserve < 0 || c.Reserve > c.MaxItems:
		return fmt.Errorf("ttlstore: Reserve %d is not between 0 and MaxItems, %d", c.Reserve, c.MaxItems)
	case c.Shards < 1 || c.Shards > maxShards || c.Shards&(c.Shards-1) != 0:
		return fmt.Errorf("ttlstore: Shards %d is not a power of two up to %d", c.Shards, maxShards)
	}
	return nil
}

// Store holds items. Create it with [New].
type Store struct {
	cfg    Config
	shift  uint // of a key's high half, to the number of its shard
	memory memory
	tables []place // what readers use, by shard
	shards []shard

	items  atomic.Int64
	sweeps atomic.Uint64
}

// shard is what writers of a shard share. seq is odd while an item is changed.
type shard struct {
	seq  atomic.Uint64
	room atomic.Uintptr // where the next new item will probably lie; a hint that is never followed
	mu   sync.Mutex     // guards what follows, and who may store into slots, filter, chunks and the pointer to the table

	used    int    // items
	next    uint32 // the first number that was never given
	free    uint32 // head of the list of numbers that were given back, + 1
	stale   int    // items freed since the filter was made
	soonest uint32 // no item has an earlier deadline

	expired, rebuilds, grows uint64

	_ [64]byte // a cache line of its own
}

// New returns an empty store. It needs about a kilobyte for each shard.
func New(cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, shift: uint(64 - bits.TrailingZeros(uint(cfg.Shards))),
		tables: make([]place, cfg.Shards), shards: make([]shard, cfg.Shards),
	}
	s.memory.init(cfg.MaxBytes, cfg.Heap)
	for i := range s.tables {
		t, err := s.newTable(1)
		if err != nil {
			return nil, errors.Join(err, s.memory.close())
		}
		s.tables[i].set(t)
		s.shards[i].soonest = ^uint32(0)
	}
	return s, nil
}

// Close frees the memory. Nobody may use the store any more.
func (s *Store) Close() error { return s.memory.close() }

func (s *Store) shardOf(k Key) int { return int(k.Hi >> s.shift) }

// Has reports whether a live item is held under a key.
func (s *Store) Has(k Key, now uint32) bool {
	n := s.shardOf(k)
	t := s.tables[n].Load()
	if !t.mayHave(k) {
		runtime.KeepAlive(t)
		return false
	}
	it, ok := s.find(n, t, k)
	return ok && now <= it.Deadline
}

// Lookup returns the live item held under a key.
func (s *Store) Lookup(k Key, now uint32) (Item, bool) {
	return s.LookupProbe(&Probe{Key: k, table: s.tables[s.shardOf(k)].Load()}, now)
}

// maxTries is how often a lookup reads an item that is being changed before it waits for the shard's lock.
const maxTries = 100

// find looks for a key that the filter has let through.
func (s *Store) find(n int, t *table, k Key) (Item, bool) {
	sh := &s.shards[n]
	for range maxTries {
		seq := sh.seq.Load()
		it, slot := t.get(k)
		runtime.KeepAlive(t)
		if slot < 0 {
			return Item{}, false // an item that is held cannot be missed: it does not move within a table
		}
		if seq&1 == 0 && sh.seq.Load() == seq {
			return it, true
		}
		t = s.tables[n].Load()
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	it, slot := s.tables[n].Load().get(k)
	return it, slot >= 0
}

// place is where a shard's table is. filter and lines repeat what the table says, so that both are requested at once. They
// are a hint and may belong to the table before or after: nobody reads what filter points to but by way of the table.
type place struct {
	table  atomic.Pointer[table]
	filter atomic.Uintptr
	lines  atomic.Uint64
	_      uint64 // two places lie in a cache line
}

func (p *place) Load() *table { return p.table.Load() }

func (p *place) set(t *table) {
	p.table.Store(t)
	p.filter.Store(uintptr(unsafe.Pointer(unsafe.SliceData(t.filter))))
	p.lines.Store(t.lines)
}

// Probe is a lookup whose memory is on its way: see [Store.Prepare].
type Probe struct {
	Key   Key
	table *table
	line  uintptr // of the filter; a hint
}

// Announce requests what Prepare will read for a key. It does not wait: the next key can be made meanwhile.
func (s *Store) Announce(k Key) {
	at := uintptr(unsafe.Pointer(&s.tables[s.shardOf(k)]))
	prefetch(at, at)
}

// Prepare requests the memory that looking up the probes' keys needs first, all of it together, and does not wait for it.
func (s *Store) Prepare(probes []Probe) {
	for i := range probes {
		p := &probes[i]
		at := &s.tables[s.shardOf(p.Key)]
		p.table = at.Load()
		p.line = at.filter.Load() + uintptr(bloom.SegmentIndex(p.Key.Lo, at.lines.Load()))*8
	}
	for i := range probes {
		prefetch(uintptr(unsafe.Pointer(probes[i].table)), probes[i].line)
	}
}

// LookupProbe is Lookup for a prepared probe: it finds what the store held when the probe was prepared, and may find what
// has been added since.
func (s *Store) LookupProbe(p *Probe, now uint32) (Item, bool) {
	t := p.table
	if !t.mayHave(p.Key) {
		runtime.KeepAlive(t)
		return Item{}, false
	}
	it, ok := s.find(s.shardOf(p.Key), t, p.Key)
	if !ok || now > it.Deadline {
		return Item{}, false
	}
	return it, true
}

// batch is how many lookups HasBatch has under way.
const batch = 16

// HasBatch sets out[i] to Has(keys[i], now); out must be at least as long as keys.
func (s *Store) HasBatch(keys []Key, now uint32, out []bool) {
	var probes [batch]Probe
	for len(keys) > 0 {
		n := min(batch, len(keys))
		for i, k := range keys[:n] {
			probes[i].Key = k
		}
		s.Prepare(probes[:n])
		for i := range probes[:n] {
			_, out[i] = s.LookupProbe(&probes[i], now)
		}
		keys, out = keys[n:], out[n:]
	}
}

// MaxRun is how many keys [Store.Ahead] is best given at once: what is requested for more has left the nearest cache before it is used.
const MaxRun = 32

// Ahead requests the memory that an Update of each key will read and write, all of it together, and does not wait for it. It changes nothing: a
// run of updates is quicker behind it.
func (s *Store) Ahead(keys []Key) {
	// Each loop reads what the one before it has requested.
	for _, k := range keys {
		n := s.shardOf(k)
		prefetch(uintptr(unsafe.Pointer(&s.tables[n])), uintptr(unsafe.Pointer(&s.shards[n])))
	}
	for _, k := range keys {
		n := s.shardOf(k)
		t := uintptr(unsafe.Pointer(s.tables[n].Load()))
		prefetch(t, t+lineBytes)
		room := s.shards[n].room.Load()
		prefetch(room, room+itemWords*8-1)
	}
	for _, k := range keys {
		t := s.tables[s.shardOf(k)].Load()
		prefetch(uintptr(unsafe.Pointer(&t.slots[t.bucket(k)*perBucket])), uintptr(unsafe.Pointer(&t.filter[bloom.SegmentIndex(k.Lo, t.lines)])))
		if n := len(t.chunks); n > 0 {
			at := uintptr(unsafe.Pointer(&t.chunks[n-1]))
			prefetch(at, at)
		}
	}
}

// Update calls f with the live item held under k and stores what f returns if its second result is true.
// f runs under a lock: it must be brief and must not call the store. A new key is refused with
// [ErrFull] when a limit is reached, for limited callers Reserve items earlier; an update of a live item is never refused.
func (s *Store) Update(k Key, now uint32, limited bool, f func(old Item, ok bool) (Item, bool)) error {
	n := s.shardOf(k)
	sh := &s.shards[n]
	err := s.update(n, sh, k, now, limited, f)
	s.memory.reclaim()
	return err
}

func (s *Store) update(n int, sh *shard, k Key, now uint32, limited bool, f func(old Item, ok bool) (Item, bool)) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	t := s.tables[n].Load()
	held, slot := t.get(k)
	old, live := held, slot >= 0 && now <= held.Deadline
	if !live {
		old = Item{}
	}
	it, store := f(old, live)
	if !store {
		return nil
	}
	it.Key = k
	if slot >= 0 {
		sh.seq.Add(1)
		t.item(t.number(slot)).set(it)
		sh.seq.Add(1)
	} else if err := s.insert(n, sh, it, now, limited); err != nil {
		return err
	}
	sh.soonest = min(sh.soonest, it.Deadline) // last: making room may have swept
	return nil
}

// insert stores an item under a key that is not held.
func (s *Store) insert(n int, sh *shard, it Item, now uint32, limited bool) error {
	limit := int64(s.cfg.MaxItems)
	if limited {
		limit -= int64(s.cfg.Reserve)
	}
	if s.items.Add(1) > limit {
		s.items.Add(-1)
		if sh.soonest < now {
			s.sweep(n, sh, now) // what has expired is room
		}
		if s.items.Add(1) > limit {
			s.items.Add(-1)
			return fmt.Errorf("%w: %d items", ErrFull, limit)
		}
	}
	number, err := s.place(n, sh, now)
	if err != nil {
		s.items.Add(-1)
		return err
	}
	t := s.tables[n].Load()
	r := t.item(number)
	sh.seq.Add(1) // a reader may still look at the item that had the number before
	r.set(it)
	sh.seq.Add(1)
	sh.room.Store(uintptr(unsafe.Pointer(r)) + unsafe.Sizeof(*r))
	t.link(it.Key, number)
	sh.used++
	return nil
}

// place makes room in the table and returns the number of a free item.
func (s *Store) place(n int, sh *shard, now uint32) (uint32, error) {
	t := s.tables[n].Load()
	// Sweeping pays if it makes room for many.
	if sh.used >= t.capacity() && (sh.soonest >= now || s.sweep(n, sh, now).Expired < t.capacity()/16+1) {
		if err := s.grow(n, sh, t.buckets+t.step(n)); err != nil {
			return 0, err
		}
		sh.grows++
		t = s.tables[n].Load()
	}
	if sh.free != 0 {
		number := sh.free - 1
		sh.free = uint32(atomic.LoadUint64(&t.item(number)[0]))
		return number, nil
	}
	if sh.next == maxNumber {
		return 0, fmt.Errorf("%w: %d items in one shard", ErrFull, maxNumber)
	}
	if int(sh.next/chunkItems) == len(t.chunks) {
		c, err := s.memory.allocate(chunkLines)
		if err != nil {
			return 0, err
		}
		grown := *t // shares slots and filter
		grown.chunks = append(t.chunks[:len(t.chunks):cap(t.chunks)], (*chunk)(c))
		s.tables[n].set(&grown)
	}
	sh.next++
	return sh.next - 1, nil
}

// grow replaces a shard's table by one of at least so many buckets. Keys are spread evenly: if the shard before it is much larger already, items come in the
// order of their keys, and this one will be as large.
func (s *Store) grow(n int, sh *shard, buckets uint64) error {
	if n > 0 {
		if before := s.tables[n-1].Load().buckets; before > 2*buckets && s.rebuild(n, sh, before) == nil {
			return nil
		}
	}
	return s.rebuild(n, sh, buckets)
}

// Expect makes the tables large enough for about so many items at once, which saves the steps by which they grow. It is a hint: what
// memory does not allow is left, and a table that stays too large shrinks when something in it has expired.
func (s *Store) Expect(items int) {
	each := uint64(max(min(items, s.cfg.MaxItems), 0) / len(s.shards))
	buckets := each * 100 / (85 * perBucket)
	for n := range s.shards {
		sh := &s.shards[n]
		sh.mu.Lock()
		var err error
		if s.tables[n].Load().buckets < buckets {
			err = s.rebuild(n, sh, buckets)
		}
		sh.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// rebuildAhead is how many slots ahead of the one that is copied its item is requested.
const rebuildAhead = 16

// rebuild replaces the shard's table by one of about so many buckets: slots and filter are made anew from the items.
func (s *Store) rebuild(n int, sh *shard, buckets uint64) error {
	old := s.tables[n].Load()
	t, err := s.newTable(buckets)
	if err != nil {
		return err
	}
	t.chunks = old.chunks
	for i := range old.slots {
		old.request(i + rebuildAhead)
		if w := atomic.LoadUint64(&old.slots[i]); w&numberMask != 0 {
			number := uint32(w&numberMask) - 1
			t.link(old.key(w), number)
		}
	}
	sh.stale = 0
	s.tables[n].set(t)
	s.memory.retire(old.block)
	return nil
}

// SweepStats counts what a sweep did.
type SweepStats struct {
	Scanned int // items looked at
	Expired int // items freed
	Rebuilt int // filters rebuilt
}

// Sweep frees items that expired before now, shard by shard.
func (s *Store) Sweep(now uint32) SweepStats {
	var total SweepStats
	for n := range s.shards {
		st := s.SweepShard(n, now)
		total.Scanned += st.Scanned
		total.Expired += st.Expired
		total.Rebuilt += st.Rebuilt
	}
	s.sweeps.Add(1)
	s.memory.reclaim()
	return total
}

// SweepShard is Sweep for one of Stats().Shards shards.
func (s *Store) SweepShard(n int, now uint32) SweepStats {
	sh := &s.shards[n]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.soonest >= now {
		return SweepStats{}
	}
	st := s.sweep(n, sh, now)
	t := s.tables[n].Load()
	// A filter that is stale by a fifth lets through what it should not; a table that is three quarters empty is too large.
	buckets := t.buckets
	if t.capacity() > 4*sh.used {
		buckets = uint64(sh.used)/6 + 1
	}
	if sh.stale > t.capacity()/5 || buckets < t.buckets/2 {
		if s.rebuild(n, sh, buckets) == nil { // without memory the old one stays right
			sh.rebuilds++
			st.Rebuilt++
		}
	}
	return st
}

// sweep frees the expired items of a shard; its lock is held.
func (s *Store) sweep(n int, sh *shard, now uint32) (st SweepStats) {
	t := s.tables[n].Load()
	soonest := ^uint32(0)
	for number := range sh.next {
		r := t.item(number)
		if !r.used() {
			continue
		}
		st.Scanned++
		it := r.get()
		if it.Deadline >= now {
			soonest = min(soonest, it.Deadline)
			continue
		}
		t.unlink(it.Key, number)
		sh.seq.Add(1)
		r.release(sh.free)
		sh.seq.Add(1)
		sh.free = number + 1
		sh.used--
		sh.stale++
		st.Expired++
	}
	sh.soonest = soonest
	sh.expired += uint64(st.Expired)
	s.items.Add(-int64(st.Expired))
	return st
}

// Range calls fn for the items held, in key order from a key on, until fn returns false. An item that is held from
// the beginning to the end is seen once; fn sees it as it was when Range came to its shard. fn may call the store.
func (s *Store) Range(from Key, fn func(Item) bool) {
	var list []Item
	for n := s.shardOf(from); n < len(s.shards); n++ {
		list, _ = s.collect(n, from, list[:0], nil)
		for _, it := range list {
			if !fn(it) {
				return
			}
		}
	}
}

// Select is Range over the items that keep says yes to, in pieces: it goes on until fn returns false or, at the end of a shard, it has looked at
// budget items, and returns the key to go on from; more is false at the end. keep runs under a lock: it must be
// brief and must not call the store; of the key's low half it sees only a part.
func (s *Store) Select(from Key, budget int, keep func(*Item) bool, fn func(Item) bool) (next Key, more bool) {
	var list []Item
	for n := s.shardOf(from); n < len(s.shards); n++ {
		var looked int
		list, looked = s.collect(n, from, list[:0], keep)
		budget -= looked
		for _, it := range list {
			if !fn(it) {
				return it.next()
			}
		}
		if budget <= 0 {
			return s.first(n + 1)
		}
	}
	return Key{}, false
}

// Each calls fn for the items held, in any order, shard by shard, until it has seen budget of them. It begins with
// the shard of from, which is zero or what an earlier call has returned; more is false at the end. fn runs under a lock: it must be brief and must not call the store.
func (s *Store) Each(from Key, budget int, fn func(*Item)) (next Key, more bool) {
	for n := s.shardOf(from); n < len(s.shards); n++ {
		s.each(n, func(it *Item) {
			budget--
			fn(it)
		})
		if budget <= 0 {
			return s.first(n + 1)
		}
	}
	return Key{}, false
}

// first is the first key of a shard; more is false behind the last one.
func (s *Store) first(n int) (k Key, more bool) {
	if n >= len(s.shards) {
		return Key{}, false
	}
	return Key{Hi: uint64(n) << s.shift}, true
}

// next is the key behind k; more is false behind the last one.
func (k Key) next() (n Key, more bool) {
	n = Key{k.Hi, k.Lo + 1}
	if n.Lo == 0 {
		n.Hi++
	}
	return n, n != Key{}
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
	Rebuilds uint64 // of a shard's filter, without growth
	Grows    uint64 // of a shard's table

	FilterBits int64   // size of all filters
	Saturation float64 // items that the filters hold, freed ones included, over those they are made for
}

// Stats returns counters. It looks at every shard.
func (s *Store) Stats() Stats {
	st := Stats{
		Items: int(s.items.Load()), Limit: s.cfg.MaxItems, Bytes: s.memory.bytes(), BytesLimit: s.cfg.MaxBytes,
		Shards: len(s.shards), Sweeps: s.sweeps.Load(),
	}
	held, room := 0, 0
	for n := range s.shards {
		sh := &s.shards[n]
		sh.mu.Lock()
		t := s.tables[n].Load()
		held += sh.used + sh.stale
		room += t.capacity()
		st.LookupBytes += 8 * int64(len(t.slots)+len(t.filter))
		st.FilterBits += 64 * int64(len(t.filter))
		st.Expired += sh.expired
		st.Rebuilds += sh.rebuilds
		st.Grows += sh.grows
		sh.mu.Unlock()
	}
	st.Saturation = float64(held) / float64(room)
	return st
}

// filterSample is how many keys FilterWrong looks for: a share of one in a hundred is told to within a tenth of that.
const filterSample = 1 << 14

// FilterWrong returns the share of absent keys that the filters cannot exclude, by looking for random ones. It takes about a millisecond.
func (s *Store) FilterWrong() float64 {
	wrong := 0
	for range filterSample {
		k := Key{rand.Uint64(), rand.Uint64()} // of 2^128 none is hit that is held
		t := s.tables[s.shardOf(k)].Load()
		if t.mayHave(k) {
			wrong++
		}
		runtime.KeepAlive(t)
	}
	return float64(wrong) / filterSample
}

// Size is a cheap part of Stats: it looks at no shard.
func (s *Store) Size() (items int, bytes int64) { return int(s.items.Load()), s.memory.bytes() }
