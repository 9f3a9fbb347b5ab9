package ttlstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// key is a stand-in for a keyed hash (SplitMix64).
func key(i int) Key {
	x := uint64(i) * 0x9e3779b97f4a7c15
	next := func() uint64 {
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	return Key{next(), next()}
}

func newStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(s *Store, k Key, deadline, now uint32, limited bool, data uint64) error {
	return s.Update(k, now, limited, func(Item, bool) (Item, bool) {
		return Item{Deadline: deadline, Data: [3]uint64{data, data, data}}, true
	})
}

func mustPut(t testing.TB, s *Store, k Key, deadline, now uint32, data uint64) {
	t.Helper()
	if err := put(s, k, deadline, now, false, data); err != nil {
		t.Fatal(err)
	}
}

// check verifies what must hold between any two operations.
func (s *Store) check(t interface {
	Helper()
	Fatalf(string, ...any)
},
) {
	t.Helper()
	items := 0
	for n := range s.shards {
		sh := &s.shards[n]
		sh.mu.Lock()
		table := s.tables[n].Load()
		if sh.seq.Load()%2 != 0 {
			t.Fatalf("shard %d: seq is odd at rest", n)
		}
		seen := make(map[uint32]bool)
		for i, w := range table.slots {
			if w&numberMask == 0 {
				continue
			}
			number := uint32(w&numberMask) - 1
			k := table.key(w)
			if seen[number] || number >= sh.next || !table.item(number).used() {
				t.Fatalf("shard %d: number %d twice, never given, or free", n, number)
			}
			seen[number] = true
			if s.shardOf(k) != n || !table.mayHave(k) {
				t.Fatalf("shard %d: a key of another shard, or one that the filter denies", n)
			}
			if it, slot := table.get(k); slot != i || it.Deadline < sh.soonest {
				t.Fatalf("shard %d: slot %d is found at %d, deadline %d before %d", n, i, slot, it.Deadline, sh.soonest)
			}
		}
		free := 0
		for at := sh.free; at != 0; at = uint32(table.item(at - 1)[0]) {
			if free++; seen[at-1] || free > int(sh.next) {
				t.Fatalf("shard %d: the list of free numbers is wrong", n)
			}
		}
		if len(seen) != sh.used || sh.used+free != int(sh.next) || sh.used > table.capacity() {
			t.Fatalf("shard %d: %d slots, %d used, %d free, %d given, room for %d", n, len(seen), sh.used, free, sh.next, table.capacity())
		}
		items += sh.used
		sh.mu.Unlock()
	}
	if got := int(s.items.Load()); got != items {
		t.Fatalf("%d items counted, %d held", got, items)
	}
}

// Random operations against a plain map, with a clock that also goes back.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 300).Draw(t, "limit")
		reserve := rapid.IntRange(0, limit).Draw(t, "reserve")
		s, err := New(Config{MaxItems: limit, Reserve: reserve, Shards: 1 << rapid.IntRange(0, 2).Draw(t, "shards"), Heap: true})
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer s.Close()
		model := make(map[Key]Item) // what is held: an expired item may be there or not
		live := func(k Key, now uint32) (Item, bool) {
			it, ok := model[k]
			return it, ok && now <= it.Deadline
		}
		now, latest := uint32(1000), uint32(1000)
		keys := rapid.IntRange(0, 400)
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0:
				now = uint32(max(0, int(now)+rapid.IntRange(-30, 60).Draw(t, "time")))
				latest = max(latest, now)
			case 1:
				s.Sweep(now)
				for k, it := range model {
					if it.Deadline < now {
						delete(model, k)
					}
				}
			default:
				k, deadline := key(keys.Draw(t, "key")), now+uint32(rapid.IntRange(0, 50).Draw(t, "ttl"))
				limited, keep := rapid.Bool().Draw(t, "limited"), rapid.IntRange(0, 9).Draw(t, "keep") > 0
				want, held := live(k, now)
				made := Item{Key: k, Deadline: deadline, Data: [3]uint64{rapid.Uint64().Draw(t, "data")}}
				err := s.Update(k, now, limited, func(old Item, ok bool) (Item, bool) {
					if ok && (!held || old != want) || !ok && held && want.Deadline >= latest {
						t.Fatalf("f saw %+v, %v; want %+v, %v", old, ok, want, held)
					}
					return made, keep
				})
				switch {
				case errors.Is(err, ErrFull):
					if !keep || held && want.Deadline >= latest {
						t.Fatalf("an update of a live item, or of nothing, is full")
					}
					room := limit
					if limited {
						room -= reserve
					}
					if s.items.Load() < int64(room) {
						t.Fatalf("full at %d of %d", s.items.Load(), room)
					}
				case err != nil:
					t.Fatalf("%v", err)
				case keep:
					model[k] = made
				}
			}
			s.check(t)
			if s.items.Load() > int64(limit) {
				t.Fatalf("%d items, limit %d", s.items.Load(), limit)
			}
		}
		// Nothing live is missed and nothing is invented. What had expired at the latest time may be gone, even if the clock went back.
		for i := range 401 {
			k := key(i)
			it, ok := s.Lookup(k, now)
			want, held := live(k, now)
			if ok && (!held || it != want) || !ok && held && want.Deadline >= latest {
				t.Fatalf("key %d: %+v, %v; want %+v, %v", i, it, ok, want, held)
			}
			if s.Has(k, now) != ok {
				t.Fatalf("key %d: Has and Lookup differ", i)
			}
		}
		var ranged []Item
		s.Range(Key{}, func(it Item) bool { ranged = append(ranged, it); return true })
		if !slices.IsSortedFunc(ranged, func(a, b Item) int { return a.Compare(b.Key) }) || len(ranged) != int(s.items.Load()) {
			t.Fatalf("Range gave %d items of %d, or not in order", len(ranged), s.items.Load())
		}
	})
}

// Every item is found at every size on the way, before and after growth, through all ways to ask.
func TestGrowth(t *testing.T) {
	s := newStore(t, Config{Shards: 4})
	const n = 100_000
	for i := range n {
		mustPut(t, s, key(i), 100, 1, uint64(i))
		if j := rand.IntN(i + 1); !s.Has(key(j), 1) {
			t.Fatalf("%d is missing among %d", j, i)
		}
	}
	s.check(t)
	keys, out := make([]Key, 2*n), make([]bool, 2*n)
	for i := range keys {
		keys[i] = key(i)
	}
	s.HasBatch(keys, 100, out)
	for i, k := range keys {
		p := []Probe{{Key: k}}
		s.Prepare(p)
		it, ok := s.LookupProbe(&p[0], 100)
		if want := i < n; out[i] != want || ok != want || ok && it.Data[0] != uint64(i) || s.Has(k, 101) {
			t.Fatalf("key %d: batch %v, probe %v %v, expired %v", i, out[i], it, ok, s.Has(k, 101))
		}
	}
	st := s.Stats()
	if st.Items != n || st.Grows == 0 || st.LookupBytes > 16*n || st.Bytes < st.LookupBytes {
		t.Fatalf("%+v", st)
	}
	// A swept store is small again and takes as many once more in the memory it has.
	if got := s.Sweep(101); got.Expired != n || got.Rebuilt == 0 {
		t.Fatalf("%+v", got)
	}
	s.check(t)
	before := s.Stats()
	if before.Items != 0 || before.LookupBytes > 64<<10 {
		t.Fatalf("after the sweep: %+v", before)
	}
	for i := range n {
		mustPut(t, s, key(n+i), 200, 101, 1)
	}
	if after := s.Stats(); after.Bytes > before.Bytes*3/2 { // what was replaced waits for the collector
		t.Fatalf("%d bytes, %d before", after.Bytes, before.Bytes)
	}
}

// A store that was told what to expect does not grow on the way, and holds what it held.
func TestExpect(t *testing.T) {
	const items = 20_000
	grows := func(expect int) (n uint64, bytes int64) {
		s, err := New(Config{MaxItems: 100_000, Shards: 16, Heap: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range uint64(items) {
			if i == 10 {
				s.Expect(expect)
			}
			k := Key{Hi: rng.Uint64(), Lo: rng.Uint64()}
			if err := s.Update(k, 1, false, func(Item, bool) (Item, bool) { return Item{Key: k, Deadline: 9}, true }); err != nil {
				t.Fatal(err)
			}
		}
		st := s.Stats()
		if st.Items != items {
			t.Fatalf("%d items", st.Items)
		}
		return st.Grows, st.Bytes
	}
	without, bytes := grows(0)
	with, more := grows(items * 11 / 10)
	if with >= without/4 || more > 2*bytes {
		t.Errorf("%d steps and %d bytes, %d and %d without", with, more, without, bytes)
	}
	if _, b := grows(-1); b > 2*bytes {
		t.Errorf("%d bytes", b)
	}
}

func TestDeadlineEdges(t *testing.T) {
	s := newStore(t, Config{})
	for i, deadline := range []uint32{0, 1, 1000, ^uint32(0)} {
		mustPut(t, s, key(i), deadline, 0, 0)
		if !s.Has(key(i), deadline) || deadline < ^uint32(0) && s.Has(key(i), deadline+1) {
			t.Fatalf("deadline %d", deadline)
		}
	}
	s.Sweep(1000)
	if s.Stats().Items != 2 {
		t.Fatalf("%d items; one expires at the end of 1000, one never", s.Stats().Items)
	}
	// The deadline can be lowered and raised; an expired item is not seen by an update.
	mustPut(t, s, key(2), 500, 400, 1)
	if s.Has(key(2), 501) {
		t.Fatal("a lowered deadline")
	}
	if err := s.Update(key(2), 501, false, func(_ Item, ok bool) (Item, bool) {
		if ok {
			t.Error("the update saw an expired item")
		}
		return Item{Deadline: 600}, true
	}); err != nil || s.Stats().Items != 2 {
		t.Fatalf("%v, %d items", err, s.Stats().Items)
	}
}

func TestFull(t *testing.T) {
	s := newStore(t, Config{MaxItems: 1000, Reserve: 100, Shards: 8})
	for i := range 900 {
		if err := put(s, key(i), 10, 1, true, 0); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := put(s, key(900), 10, 1, true, 0); !errors.Is(err, ErrFull) {
		t.Fatalf("limited caller at its limit: %v", err)
	}
	for i := range 100 {
		mustPut(t, s, key(900+i), 20, 1, 0)
	}
	if err := put(s, key(1000), 20, 1, false, 0); !errors.Is(err, ErrFull) {
		t.Fatalf("at the limit: %v", err)
	}
	for i := range 1000 {
		if !s.Has(key(i), 1) {
			t.Fatalf("%d was dropped", i)
		}
	}
	mustPut(t, s, key(5), 30, 1, 1) // an update needs no room
	if err := put(s, key(1000), 40, 11, true, 0); err != nil && !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	s.Sweep(11)
	if err := put(s, key(2000), 40, 11, true, 0); err != nil {
		t.Fatalf("after the sweep: %v", err)
	}
	s.check(t)
}

// At the limit of memory writes are refused, nothing is lost, and updates go on.
func TestFullOfBytes(t *testing.T) {
	for _, heap := range []bool{false, true} {
		s := newStore(t, Config{MaxBytes: minBytes, Heap: heap})
		n := 0
		for ; ; n++ {
			if err := put(s, key(n), 10, 1, false, uint64(n)); err != nil {
				if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				break
			}
		}
		if s.Stats().Bytes > minBytes || n < 100_000 {
			t.Fatalf("%d items in %d bytes", n, s.Stats().Bytes)
		}
		s.check(t)
		for i := range n {
			if it, ok := s.Lookup(key(i), 1); !ok || it.Data[0] != uint64(i) {
				t.Fatalf("%d of %d is lost", i, n)
			}
		}
		mustPut(t, s, key(0), 20, 1, 7)
	}
}

// All keys in one shard, and in one bucket: slow, but right and bounded.
func TestSkew(t *testing.T) {
	s := newStore(t, Config{Shards: 16})
	for i := range 20_000 {
		mustPut(t, s, Key{uint64(i), key(i).Lo}, 10, 1, 0)
	}
	for i := range 300 {
		mustPut(t, s, Key{1 << 60, uint64(i) << 30}, 10, 1, 0)
	}
	s.check(t)
	for i := range 20_000 {
		if !s.Has(Key{uint64(i), key(i).Lo}, 1) {
			t.Fatal(i)
		}
	}
}

// Keys that agree in everything but one bit are different keys.
func TestAllBitsDecide(t *testing.T) {
	s := newStore(t, Config{Shards: 1})
	k := key(1)
	mustPut(t, s, k, 10, 1, 0)
	for bit := range 64 {
		for _, other := range []Key{{k.Hi ^ 1<<bit, k.Lo}, {k.Hi, k.Lo ^ 1<<bit}} {
			if s.Has(other, 1) {
				t.Fatalf("bit %d does not count", bit)
			}
			mustPut(t, s, other, 10, 1, uint64(bit))
		}
	}
	s.check(t)
	if s.Stats().Items != 129 {
		t.Fatalf("%d items", s.Stats().Items)
	}
	// The same with a filter that lets everything through.
	table := s.tables[0].Load()
	for i := range table.filter {
		table.filter[i] = ^uint64(0)
	}
	if s.Has(Key{k.Hi ^ 3, k.Lo}, 1) || s.Has(Key{k.Hi, k.Lo ^ 3}, 1) {
		t.Fatal("the table took the word of the filter")
	}
}

// What has been acknowledged is found by every lookup that begins later, whole, while writers, sweeps, growth, rebuilds and
// the reuse of memory go on.
// Items that come in the order of their keys fill one shard after the other: each but the first grows once or twice, and none is larger for it.
func TestGrowthInOrder(t *testing.T) {
	const items, shards = 64_000, 16
	fill := func(order func([]Key)) Stats {
		s, err := New(Config{MaxItems: 100_000, Shards: shards, Heap: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		keys := make([]Key, items)
		for i := range keys {
			keys[i] = key(i)
		}
		order(keys)
		for _, k := range keys {
			mustPut(t, s, k, 9, 1, 1)
		}
		s.check(t)
		return s.Stats()
	}
	random := fill(func([]Key) {})
	ordered := fill(func(keys []Key) { slices.SortFunc(keys, Key.Compare) })
	if random.Grows < 8*shards || ordered.Grows > random.Grows/8+2*shards {
		t.Errorf("%d steps in order, %d without", ordered.Grows, random.Grows)
	}
	if ordered.LookupBytes > random.LookupBytes*5/4 {
		t.Errorf("%d bytes in order, %d without", ordered.LookupBytes, random.LookupBytes)
	}
}

func TestStress(t *testing.T) {
	s := newStore(t, Config{Shards: 4})
	rounds := 40_000
	if raceEnabled {
		rounds = 4_000
	}
	const writers = 2
	var acked [writers]atomic.Int64
	var wg, readers sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				k := key(w<<32 | i)
				s.Ahead([]Key{k, key(1<<50 | w<<32 | i)})
				if err := put(s, k, 1000, 3, false, uint64(i)); err != nil {
					t.Error(err)
					return
				}
				acked[w].Store(int64(i + 1))
				_ = put(s, key(1<<50|w<<32|i), 2, 1, false, 1) // soon swept
				if err := s.Update(k, 3, false, func(old Item, ok bool) (Item, bool) {
					if !ok {
						t.Error("an update missed its item")
					}
					old.Data = [3]uint64{uint64(i) + 1, uint64(i) + 1, uint64(i) + 1}
					return old, true
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for w := range writers {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				n := acked[w].Load()
				for range 100 {
					if n == 0 {
						break
					}
					i := rand.Int64N(n)
					it, ok := s.Lookup(key(w<<32|int(i)), 3)
					if !ok {
						t.Errorf("%d of %d was missed", i, n)
						return
					}
					if d := it.Data; d[0] != d[1] || d[1] != d[2] || d[0] != uint64(i) && d[0] != uint64(i)+1 {
						t.Errorf("half an item: %v", d)
						return
					}
				}
			}
		})
	}
	readers.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				s.Sweep(3)
				if n := rand.IntN(len(s.shards)); !raceEnabled { // a rebuild for no reason
					sh := &s.shards[n]
					sh.mu.Lock()
					_ = s.rebuild(n, sh, s.tables[n].Load().buckets)
					sh.mu.Unlock()
				}
				runtime.Gosched()
			}
		}
	})
	wg.Wait()
	close(done)
	readers.Wait()
	s.check(t)
}

// An item that changes all the time is never read half old and half new.
func TestTorn(t *testing.T) {
	s := newStore(t, Config{Shards: 1})
	k := key(1)
	mustPut(t, s, k, 1000, 1, 0)
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-done:
				return
			default:
				if err := put(s, k, 1000+uint32(i%1000), 1, false, i); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 300_000 {
		it, ok := s.Lookup(k, 1)
		if d := it.Data; !ok || d[0] != d[1] || d[1] != d[2] || it.Deadline != 1000+uint32(d[0]%1000) {
			t.Errorf("half an item: %+v, %v", it, ok)
			break
		}
	}
	close(done)
	wg.Wait()
}

// A reader that stands still with an old header, through growth, sweeps and collections, finds what it began for: memory of a
// header is not used again while it can be reached.
func TestStalledReader(t *testing.T) {
	s := newStore(t, Config{Shards: 1})
	for i := range 100 {
		mustPut(t, s, key(i), 1000, 1, uint64(i))
	}
	old := s.tables[0].Load()
	for i := range 50_000 {
		mustPut(t, s, key(1000+i), 2, 1, 0)
		if i%10_000 == 0 {
			s.Sweep(3)
			runtime.GC()
		}
	}
	for range 3 {
		runtime.GC()
	}
	for i := range 20_000 {
		mustPut(t, s, key(100_000+i), 1000, 3, 0)
	}
	for i := range 100 {
		if !old.mayHave(key(i)) {
			t.Fatalf("the old filter has lost %d", i)
		}
		if it, slot := old.get(key(i)); slot < 0 || it.Data[0] != uint64(i) {
			t.Fatalf("the old table has lost %d", i)
		}
	}
	runtime.KeepAlive(old)
}

// At constant size, through simulated weeks, nothing degrades: neither memory nor the share of filters nor the length of walks.
func TestChurn(t *testing.T) {
	s := newStore(t, Config{Shards: 2})
	const size, rounds = 5_000, 60
	// The memory of a table that was replaced counts until the collector has shown that nobody reads it, and a goroutine of the runtime has said so.
	settled := func() int64 {
		least := s.Stats().Bytes
		for range 20 {
			runtime.GC()
			time.Sleep(time.Millisecond) // for that goroutine
			least = min(least, s.Stats().Bytes)
		}
		return least
	}
	var bytes int64
	for round := range rounds {
		now := uint32(round * 10_000)
		for i := range size {
			mustPut(t, s, key(round*size+i), now+9_999, now, uint64(round))
		}
		if got := s.Sweep(now + 10_000); got.Expired != size {
			t.Fatalf("round %d: %+v", round, got)
		}
		if round == rounds/3 {
			bytes = settled()
		}
	}
	if got := settled(); got > bytes*3/2 || s.Stats().Items != 0 {
		t.Fatalf("%d bytes after %d rounds, %d after a third of them", got, rounds, bytes)
	}
	for n := range s.tables {
		for _, w := range s.tables[n].Load().slots {
			if w&numberMask != 0 {
				t.Fatal("a slot is in use")
			}
		}
	}
	s.check(t)
}

func TestRangeFrom(t *testing.T) {
	s := newStore(t, Config{Shards: 8})
	var keys []Key
	for i := range 1000 {
		keys = append(keys, key(i))
		mustPut(t, s, key(i), 10, 1, uint64(i))
	}
	slices.SortFunc(keys, Key.Compare)
	for _, from := range []int{0, 1, 500, 999} {
		var got []Key
		s.Range(keys[from], func(it Item) bool { got = append(got, it.Key); return true })
		if !slices.Equal(got, keys[from:]) {
			t.Fatalf("from %d: %d keys", from, len(got))
		}
	}
	n := 0
	s.Range(Key{}, func(it Item) bool {
		n++
		s.Has(it.Key, 1) // may call the store
		return n < 10
	})
	if n != 10 {
		t.Fatalf("%d calls", n)
	}
}

func TestConfig(t *testing.T) {
	for _, cfg := range []Config{
		{MaxItems: -1},
		{MaxBytes: 1},
		{Reserve: -1},
		{MaxItems: 5, Reserve: 6},
		{Shards: 3},
		{Shards: -1},
		{Shards: maxShards * 2},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
	if s := newStore(t, Config{}); s.Stats().Bytes > 4<<20 {
		t.Errorf("an empty store has %d bytes", s.Stats().Bytes)
	}
}

func TestNothingAllocates(t *testing.T) {
	s := newStore(t, Config{})
	for i := range 1000 {
		mustPut(t, s, key(i), 10, 1, 0)
	}
	keys, out := make([]Key, 128), make([]bool, 128)
	for i := range keys {
		keys[i] = key(i * 20)
	}
	for name, f := range map[string]func(){
		"Has":      func() { s.Has(keys[0], 1); s.Has(keys[100], 1) },
		"Lookup":   func() { s.Lookup(keys[0], 1) },
		"HasBatch": func() { s.HasBatch(keys, 1, out) },
		"Probes":   func() { p := [2]Probe{{Key: keys[0]}, {Key: keys[1]}}; s.Prepare(p[:]); s.LookupProbe(&p[1], 1) },
		"Update":   func() { _ = put(s, keys[0], 10, 1, false, 1) },
		"Sweep":    func() { s.Sweep(1) },
		"Ahead":    func() { s.Ahead(keys[:MaxRun]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// Bytes are operations: a short alphabet that a fuzzer can learn.
func FuzzOperations(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 250, 1, 255, 0, 251, 9})
	f.Add([]byte("a store that is swept while it grows"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		s, err := New(Config{MaxItems: 64, Shards: 2, Heap: true})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		model := make(map[Key]uint32)
		now := uint32(0)
		for _, op := range ops[:min(len(ops), 2000)] {
			switch {
			case op >= 250:
				now += uint32(op-249) * 3
				s.Sweep(now)
			default:
				k := key(int(op))
				if err := put(s, k, now+uint32(op%16), now, false, 0); err == nil {
					model[k] = now + uint32(op%16)
				} else if !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
			}
			s.check(t)
		}
		for k, deadline := range model {
			if s.Has(k, now) != (now <= deadline) {
				t.Fatalf("deadline %d at %d", deadline, now)
			}
		}
	})
}

func Example() {
	s, err := New(Config{MaxItems: 1000})
	if err != nil {
		panic(err)
	}
	defer s.Close()
	k := Key{Hi: 0x1234567890abcdef, Lo: 42} // the output of a keyed hash
	now := uint32(1_800_000_000)
	if err := s.Update(k, now, true, func(old Item, ok bool) (Item, bool) {
		old.Deadline = max(old.Deadline, now+60)
		return old, true
	}); err != nil {
		panic(err)
	}
	fmt.Println(s.Has(k, now+60), s.Has(k, now+61))
	// Output: true false
}
