package ttlstore

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

const (
	lineBytes = 64
	lineWords = lineBytes / 8

	minRegion = hugeBytes // the first mapping; later ones are a 32nd of what there is
	maxRegion = 64 << 20

	// gcBytes is how much replaced memory may wait for the garbage collector before it is asked to run.
	gcBytes = 8 << 20
)

// memory hands out memory in whole cache lines, outside the Go heap unless told otherwise.
type memory struct {
	heap    bool
	limit   int64
	size    atomic.Int64 // bytes mapped, or allocated on the heap
	retired atomic.Int64 // bytes of blocks that were replaced and not shown to be unused yet
	running atomic.Bool  // a collection

	mu      sync.Mutex
	closed  bool
	regions [][]byte
	rest    []uint64              // of the last region
	free    map[uint64][][]uint64 // by lines
}

// block is memory that is used again when nobody can reach the block any more.
type block struct{ words []uint64 }

func (m *memory) init(limit int64, heap bool) {
	m.limit, m.heap, m.free = limit, heap || raceEnabled || !canMap, make(map[uint64][][]uint64)
}

func (m *memory) bytes() int64 { return m.size.Load() }

// class rounds lines up so that there are at most eight sizes for each doubling: replaced blocks fit new ones.
func class(lines uint64) uint64 {
	if lines <= 16 {
		return lines
	}
	step := uint64(1) << (bits.Len64(lines-1) - 4)
	return (lines + step - 1) / step * step
}

// block returns zeroed memory that its holders share.
func (m *memory) block(lines uint64) (*block, error) {
	p, err := m.allocate(lines)
	if err != nil {
		return nil, err
	}
	b := &block{words: unsafe.Slice((*uint64)(p), lines*lineWords)}
	runtime.AddCleanup(b, m.give, b.words)
	return b, nil
}

// retire notes that a block has been replaced.
func (m *memory) retire(b *block) { m.retired.Add(int64(len(b.words) * 8)) }

// wantsGC reports, once for each time, that much replaced memory waits.
func (m *memory) wantsGC() bool {
	r := m.retired.Load()
	return r > gcBytes && r > m.size.Load()/16 && !m.running.Load() && m.retired.CompareAndSwap(r, 0)
}

// reclaim lets the garbage collector show which tables nobody reads any more, if much waits for that. The caller may hold locks of his own, so he
// does not wait.
func (m *memory) reclaim() {
	if !m.wantsGC() || !m.running.CompareAndSwap(false, true) {
		return
	}
	go func() { // ends by itself
		runtime.GC()
		m.running.Store(false)
	}()
}

// give takes back a block that nobody can reach.
func (m *memory) give(words []uint64) {
	if m.heap {
		m.size.Add(-int64(len(words) * 8))
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.put(words)
	}
}

// allocate returns zeroed memory of so many lines.
func (m *memory) allocate(lines uint64) (unsafe.Pointer, error) {
	n := int64(lines * lineBytes)
	if m.heap {
		if m.size.Add(n) > m.limit {
			m.size.Add(-n)
			return nil, m.full()
		}
		return unsafe.Pointer(unsafe.SliceData(make([]uint64, lines*lineWords))), nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if words := m.reuse(lines); words != nil {
		clear(words)
		return unsafe.Pointer(unsafe.SliceData(words)), nil
	}
	if uint64(len(m.rest)) < lines*lineWords {
		if err := m.mapRegion(n); err != nil {
			return nil, err
		}
	}
	p := unsafe.Pointer(unsafe.SliceData(m.rest))
	m.rest = m.rest[lines*lineWords:]
	return p, nil
}

// reuse takes the smallest free piece that is large enough, and gives back what is left of it. Tables that grow leave pieces that are
// too small for the next table: chunks are cut from them.
func (m *memory) reuse(lines uint64) []uint64 {
	best := uint64(math.MaxUint64)
	for size := range m.free {
		if size >= lines && size < best {
			best = size
		}
	}
	list := m.free[best]
	if len(list) == 0 {
		return nil
	}
	words := list[len(list)-1]
	if m.free[best] = list[:len(list)-1]; len(list) == 1 {
		delete(m.free, best)
	}
	m.put(words[lines*lineWords:])
	return words[:lines*lineWords]
}

// put makes a piece free; mu is held.
func (m *memory) put(words []uint64) {
	if lines := uint64(len(words) / lineWords); lines > 0 {
		m.free[lines] = append(m.free[lines], words)
	}
}

// mapRegion gets a region that has room for n bytes.
func (m *memory) mapRegion(n int64) error {
	have := m.size.Load()
	size := max(n, min(max(have/32, minRegion), maxRegion))
	if have+size > m.limit {
		size = n
	}
	size = (size + hugeBytes - 1) / hugeBytes * hugeBytes
	if have+size > m.limit {
		return m.full()
	}
	whole, b, err := mapMemory(int(size))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	m.regions = append(m.regions, whole)
	m.put(m.rest)
	m.rest = unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
	m.size.Add(size)
	return nil
}

// hugeBytes is the size and alignment of a huge page on the common machines.
const hugeBytes = 2 << 20

func (m *memory) full() error { return fmt.Errorf("%w: %d bytes", ErrFull, m.limit) }

func (m *memory) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	var errs []error
	for _, b := range m.regions {
		errs = append(errs, unmapMemory(b))
	}
	m.regions, m.rest, m.free = nil, nil, nil
	return errors.Join(errs...)
}
