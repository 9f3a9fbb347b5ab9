package ttlstore

import (
	"math/bits"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/revokd/revokd/bloom"
)

// Fields of a slot; see the package comment.
const (
	tagMask    = 1<<64 - 1<<25
	overflow   = 1 << 24
	numberMask = 1<<24 - 1
	maxNumber  = numberMask // numbers are stored + 1
	perBucket  = 8
)

// Fields of an item's second word.
const (
	restShift     = 39
	restMask      = 1<<25 - 1
	deadlineShift = 7
	flagUsed      = 1
)

const (
	itemWords  = 5
	chunkItems = 64
	chunkLines = chunkItems * itemWords * 8 / lineBytes
)

type record [itemWords]uint64

type chunk [chunkItems]record

// table is an immutable header; the memory that it names is written under the shard's lock with atomic stores.
type table struct {
	filter  []uint64
	lines   uint64
	buckets uint64
	slots   []uint64
	// The first cache line ends here: it is all that a lookup needs which finds nothing.
	chunks []*chunk
	block  *block // owns filter and slots

	_ [32]byte // 128 bytes lie at a multiple of 64
}

// newTable returns a table of at least so many buckets that fills its block.
func (s *Store) newTable(buckets uint64) (*table, error) {
	lines := class(buckets + filterLines(buckets))
	b, err := s.memory.block(lines)
	if err != nil {
		return nil, err
	}
	for buckets+1+filterLines(buckets+1) <= lines {
		buckets++
	}
	t := &table{buckets: buckets, lines: lines - buckets, block: b}
	t.slots = b.words[: buckets*perBucket : buckets*perBucket]
	t.filter = b.words[buckets*perBucket:]
	return t, nil
}

// filterLines is the number of lines of the filter for a table of so many buckets.
func filterLines(buckets uint64) uint64 {
	return (capacity(buckets)*bloom.SegmentBits + lineBytes*8 - 1) / (lineBytes * 8)
}

// capacity leaves 15 % of the slots empty, so that a bucket rarely runs over.
func capacity(buckets uint64) uint64 { return max(buckets*perBucket*85/100, 1) }

func (t *table) capacity() int { return int(capacity(t.buckets)) }

// step is by how many buckets the table of a shard grows: a small one becomes four times as large, so that a store that fills is made anew a few times
// only, then it doubles; a large one grows by about a quarter, for each shard another, so that shards that fill together do not grow together.
func (t *table) step(n int) uint64 {
	switch {
	case t.buckets < 32:
		return 3 * t.buckets
	case t.buckets < 128:
		return t.buckets
	}
	return t.buckets * uint64(12+n%8) / 64
}

func (t *table) bucket(k Key) uint64 {
	// The top bits of the high half chose the shard; multiplying spreads the others.
	b, _ := bits.Mul64(k.Hi*0xff51afd7ed558ccd, t.buckets)
	return b
}

func (t *table) line(k Key) *[bloom.SegmentLine]uint64 {
	return (*[bloom.SegmentLine]uint64)(t.filter[bloom.SegmentIndex(k.Lo, t.lines):])
}

func (t *table) mayHave(k Key) bool { return bloom.SegmentHas(t.line(k), k.Hi) }

// item returns the item with a number. Numbers in slots lie within chunks, but for a header that is older than the slot.
func (t *table) item(number uint32) *record { return &t.chunks[number/chunkItems][number%chunkItems] }

func (t *table) number(slot int) uint32 {
	return uint32(atomic.LoadUint64(&t.slots[slot])&numberMask) - 1
}

// get looks for a key and returns what its item holds and its slot, -1 if it is not there. Without the shard's lock the
// item may be half old and half new.
func (t *table) get(k Key) (Item, int) {
	b := t.bucket(k)
	for range t.buckets {
		slots := (*[perBucket]uint64)(t.slots[b*perBucket:])
		for i := range slots {
			w := atomic.LoadUint64(&slots[i])
			if (w^k.Lo)&tagMask != 0 || w&numberMask == 0 {
				continue
			}
			number := uint32(w&numberMask) - 1
			if int(number/chunkItems) >= len(t.chunks) {
				continue // stored after this header was replaced: not by a write that had ended before
			}
			if it := t.item(number).get(); it.Hi == k.Hi && it.Lo&restMask == k.Lo&restMask {
				it.Key = k
				return it, int(b)*perBucket + i
			}
		}
		if atomic.LoadUint64(&slots[0])&overflow == 0 {
			break
		}
		if b++; b == t.buckets {
			b = 0
		}
	}
	return Item{}, -1
}

// link puts a number into the first free slot of its key's bucket, or of the next, and its key into the filter.
func (t *table) link(k Key, number uint32) {
	for b := t.bucket(k); ; {
		slots := (*[perBucket]uint64)(t.slots[b*perBucket:])
		for i := range slots {
			if w := atomic.LoadUint64(&slots[i]); w&numberMask == 0 {
				bloom.SegmentAdd(t.line(k), k.Hi)
				atomic.StoreUint64(&slots[i], k.Lo&tagMask|w&overflow|uint64(number+1))
				return
			}
		}
		atomic.OrUint64(&slots[0], overflow)
		if b++; b == t.buckets {
			b = 0
		}
	}
}

// unlink empties the slot of a number.
func (t *table) unlink(k Key, number uint32) {
	for b := t.bucket(k); ; {
		slots := (*[perBucket]uint64)(t.slots[b*perBucket:])
		for i := range slots {
			if w := atomic.LoadUint64(&slots[i]); w&numberMask == uint64(number+1) {
				atomic.StoreUint64(&slots[i], w&overflow)
				return
			}
		}
		if b++; b == t.buckets {
			b = 0
		}
	}
}

// tag returns what the slot of a number has of its key's low half.
func (t *table) tag(k Key, number uint32) uint64 {
	for b := t.bucket(k); ; {
		slots := (*[perBucket]uint64)(t.slots[b*perBucket:])
		for i := range slots {
			if w := atomic.LoadUint64(&slots[i]); w&numberMask == uint64(number+1) {
				return w & tagMask
			}
		}
		if b++; b == t.buckets {
			b = 0
		}
	}
}

// key returns the key of a slot that is not empty.
func (t *table) key(w uint64) Key {
	k := t.item(uint32(w&numberMask) - 1).get().Key
	k.Lo |= w & tagMask
	return k
}

// get reads an item. Its key has the whole high half and the rest of the low one: the slot has the tag.
func (r *record) get() Item {
	w := atomic.LoadUint64(&r[1])
	return Item{
		Key:      Key{atomic.LoadUint64(&r[0]), w >> restShift},
		Deadline: uint32(w >> deadlineShift),
		Data:     [3]uint64{atomic.LoadUint64(&r[2]), atomic.LoadUint64(&r[3]), atomic.LoadUint64(&r[4])},
	}
}

func (r *record) set(it Item) {
	atomic.StoreUint64(&r[0], it.Hi)
	atomic.StoreUint64(&r[1], it.Lo&restMask<<restShift|uint64(it.Deadline)<<deadlineShift|flagUsed)
	for i, d := range it.Data {
		atomic.StoreUint64(&r[2+i], d)
	}
}

func (r *record) used() bool { return atomic.LoadUint64(&r[1])&flagUsed != 0 }

// release makes an item free; next is the number + 1 of the free item after it.
func (r *record) release(next uint32) {
	atomic.StoreUint64(&r[0], uint64(next))
	atomic.StoreUint64(&r[1], 0)
}

// request asks for the memory of the item in a slot, if there is one.
func (t *table) request(slot int) {
	if slot >= len(t.slots) {
		return
	}
	if w := atomic.LoadUint64(&t.slots[slot]); w&numberMask != 0 {
		at := uintptr(unsafe.Pointer(t.item(uint32(w&numberMask) - 1)))
		prefetch(at, at)
	}
}

// each calls fn for the items of a shard, in any order; its lock is held.
func (s *Store) each(n int, fn func(*Item)) {
	sh := &s.shards[n]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	t := s.tables[n].Load()
	var it Item // one for all: it escapes
	for i := range t.slots {
		w := atomic.LoadUint64(&t.slots[i])
		if w&numberMask == 0 {
			continue
		}
		it = t.item(uint32(w&numberMask) - 1).get()
		it.Lo |= w & tagMask
		fn(&it)
	}
}

// choose is collect in the order in which items lie in memory: most are looked at and left.
func (s *Store) choose(n int, from Key, list []Item, keep func(*Item) bool) ([]Item, int) {
	sh := &s.shards[n]
	sh.mu.Lock()
	defer sh.mu.Unlock()
	t := s.tables[n].Load()
	looked := 0
	var it Item // one for all: it escapes
	for number := range sh.next {
		r := t.item(number)
		if !r.used() {
			continue
		}
		looked++
		it = r.get()
		if it.Hi < from.Hi || !keep(&it) {
			continue
		}
		it.Lo |= t.tag(it.Key, number)
		if it.Compare(from) >= 0 {
			list = append(list, it)
		}
	}
	return list, looked
}

// collect appends the items of a shard from a key on that keep, if it is not nil, says yes to, in order. It returns how many it has looked at.
// What keep sees has only a part of the key's low half.
func (s *Store) collect(n int, from Key, list []Item, keep func(*Item) bool) ([]Item, int) {
	looked := 0
	if keep == nil {
		s.each(n, func(it *Item) {
			looked++
			if it.Compare(from) >= 0 {
				list = append(list, *it)
			}
		})
	} else {
		list, looked = s.choose(n, from, list, keep)
	}
	slices.SortFunc(list, func(a, b Item) int { return a.Compare(b.Key) })
	return list, looked
}
