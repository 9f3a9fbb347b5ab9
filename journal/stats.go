package journal

import (
	"fmt"
	"time"
)

// Stats describes a journal at one moment.
type Stats struct {
	Bytes       int64 // of the files that count
	Files       int   // that count: Segments and ExpiryFiles
	Segments    int   // of wal/
	ExpiryFiles int   // of exp/
	MetaBytes   int   // of all metadata
	Cut         int64 // bytes behind the last valid frame that the start left out: torn, or the last commit damaged

	Commits uint64 // frames written
	Batches uint64 // acknowledged
	Records uint64 // acknowledged
	Written uint64 // bytes written to files, those of Expire included
	Busy    uint64 // batches refused because the queue was full

	Failures  uint64 // writes, syncs and new files that failed
	LastError error  // the last of them, also when the journal has gone on since
	Failed    error  // what Err returns
	Latched   bool   // until the journal is opened again

	QueueBatches int
	QueueBytes   int

	Commit Histogram // from the write to the end of the sync

	Partitioned uint64 // segments that were sorted by expiry and removed
	Kept        uint64 // records written again by that
	Compacted   uint64 // expiry files written again because most of their records had expired
	Released    uint64 // expiry files removed because all of their records had expired
}

// Histogram counts durations. Bucket i holds those up to [Histogram.Bound](i), the last one all longer ones.
type Histogram struct {
	Count   uint64
	Sum     time.Duration
	Buckets [22]uint64
}

// Bound is the upper bound of a bucket: 16 us for the first, twice as much for each further one.
func (Histogram) Bound(i int) time.Duration { return 16 * time.Microsecond << i }

func (h *Histogram) add(d time.Duration) {
	h.Count++
	h.Sum += d
	i := 0
	for i < len(h.Buckets)-1 && d > h.Bound(i) {
		i++
	}
	h.Buckets[i]++
}

// Quantile returns an upper bound of the q-quantile, 0 < q <= 1, at most twice too large; 0 without durations.
func (h Histogram) Quantile(q float64) time.Duration {
	need := uint64(q*float64(h.Count) + 0.999999)
	for i, n := range h.Buckets {
		if n >= need && h.Count > 0 {
			return h.Bound(i)
		}
		need -= n
	}
	return 0
}

// counters are the running part of Stats; Journal.mu guards them.
type counters struct {
	commits, batches, records, written, busy uint64
	failures                                 uint64
	lastError                                error
	latency                                  Histogram
	partitioned, kept, compacted, released   uint64
}

func (c *counters) commit(batches, records, bytes int, took time.Duration) {
	c.commits++
	c.batches += uint64(batches)
	c.records += uint64(records)
	c.written += uint64(bytes)
	c.latency.add(took)
}

func (c *counters) segment(bytes int, took time.Duration) {
	c.written += uint64(bytes)
	c.latency.add(took)
}

// Stats may be called at any time.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := &j.stats
	s := Stats{
		Cut: j.cut, MetaBytes: j.meta.size, Commits: c.commits, Batches: c.batches, Records: c.records, Written: c.written, Busy: c.busy,
		Failures: c.failures, LastError: c.lastError, Failed: j.failure, Latched: j.latched, QueueBatches: j.waiting, QueueBytes: j.queued, Commit: c.latency,
		Partitioned: c.partitioned, Kept: c.kept, Compacted: c.compacted, Released: c.released,
		Segments: len(j.sealed), ExpiryFiles: len(j.files), Bytes: j.active.end,
	}
	if j.active.seq != 0 {
		s.Segments++
	}
	for _, g := range j.sealed {
		s.Bytes += g.end
	}
	for _, f := range j.files {
		s.Bytes += f.length
	}
	s.Files = s.Segments + s.ExpiryFiles
	return s
}

// Progress is how far a replay is.
type Progress struct {
	Files, FilesTotal int
	Bytes, BytesTotal int64
	Records           int64
}

func (p Progress) String() string {
	percent := int64(100)
	if p.BytesTotal > 0 {
		percent = p.Bytes * 100 / p.BytesTotal
	}
	return fmt.Sprintf("%d %% of %d bytes, %d records", percent, p.BytesTotal, p.Records)
}

// ReplayStats is what a replay found.
type ReplayStats struct {
	Files   int
	Frames  int64
	Records int64 // passed to fn
	Bytes   int64
	// Cut is the length of a torn tail: what a commit left that nobody was told of.
	Cut int64
}
