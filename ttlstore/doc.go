// Package ttlstore holds fixed-size items by 128-bit key until their deadlines pass. It never drops a live
// item to make room: when it is full, [Store.Update] answers [ErrFull] and everything else goes on.
//
// # What it knows
//
// Keys, deadlines and three words of data. An item is live while now <= Deadline, by the now that the caller passes.
// Keys are expected to be outputs of a keyed hash: their bits choose shard, bucket and filter line as they are.
//
// # What it promises
//
//   - An item whose Update has returned is found by every lookup that begins afterwards, until its deadline, whatever
//     writes, sweeps, growth and rebuilds go on: there is no window.
//   - A lookup says yes only after it has compared all 128 bits of the key. The filter only rejects.
//   - A lookup that finds nothing is wait-free: it takes no lock and never repeats. One that finds its item
//     repeats if the shard was written at that moment, and takes the shard's lock after [maxTries] such moments. No lookup
//     allocates or returns an item that is half old and half new.
//   - Memory is bounded by MaxBytes, items by MaxItems. Nothing is for the garbage collector to scan but a few
//     words for each shard and each 64 items.
//
// # Layout
//
// The top bits of a key's high half choose a shard. A shard publishes its table, an immutable header, through one atomic pointer:
//
//	filter   bloom segment, 12 bits an item: one cache line decides most lookups
//	slots    buckets of 8 words, one cache line each
//	           63..25 tag: the top 39 bits of the key's low half
//	           24     in the first word: a key of this bucket, or one that passed it, went on to the next
//	           23..0  number of the item + 1; 0: empty
//	chunks   of 64 items, 5 words each
//	           0      the key's high half
//	           1      the rest of its low half 25 | deadline 32 | flags 7
//	           2..4   data
//
// An item keeps its number and its slot for as long as it is there, so a scan cannot miss it. Growing, shrinking and
// renewing a filter are one operation: a new header with slots and filter of its own is made aside, under the shard's lock,
// and published. Readers finish with the header they have.
//
// # Memory
//
// Slots, filters and chunks lie in anonymous mappings outside the Go heap (GOGC and GOMEMLIMIT do not see them; [Stats] does), or on it
// where Config.Heap says so, under the race detector and where there is no mmap. The slots of a replaced header are used
// again when the garbage collector has shown that no reader holds the header: nothing else is proof. Chunks stay with their shard.
//
// # Concurrency
//
// All methods of [Store] but Close may be called concurrently. The zero Store is not usable: see [New].
package ttlstore
