package history

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// delays counts how old what a majority had acknowledged was in checks that still called it active; 0 in those that called it revoked. It may be used concurrently.
type delays struct {
	counts [4 * 64]atomic.Int64 // four buckets for each power of two, in microseconds
	worst  atomic.Int64
}

func bucket(d time.Duration) int {
	us := uint64(d / time.Microsecond)
	if us < 4 {
		return int(us)
	}
	n := bits.Len64(us)
	return 4*(n-2) + int(us>>(n-3))&3
}

// upTo is the end of a bucket.
func upTo(b int) time.Duration {
	if b < 4 {
		return time.Duration(b) * time.Microsecond
	}
	return time.Duration((uint64(4+b%4)+1)<<(b/4-1)) * time.Microsecond
}

func (d *delays) note(by time.Duration) {
	d.counts[bucket(by)].Add(1)
	for {
		old := d.worst.Load()
		if int64(by) <= old || d.worst.CompareAndSwap(old, int64(by)) {
			return
		}
	}
}

// Delay says how long what a majority had acknowledged could still be called active: by so many of the checks that began afterwards, no longer than that, within a quarter; and by none
// longer than Max. In calm it is the way from the writer to whoever checks; cut off, it is bounded by MaxStaleness.
type Delay struct{ P50, P95, P99, P999, Max time.Duration }

func (d *delays) read() (q Delay) {
	var counts [len(d.counts)]int64
	total := int64(0)
	for i := range counts {
		counts[i] = d.counts[i].Load()
		total += counts[i]
	}
	q.Max = time.Duration(d.worst.Load())
	for _, want := range []struct {
		share float64
		into  *time.Duration
	}{{0.50, &q.P50}, {0.95, &q.P95}, {0.99, &q.P99}, {0.999, &q.P999}} {
		left := int64(float64(total) * want.share)
		for i, n := range counts {
			if left -= n; left < 0 {
				*want.into = min(upTo(i), q.Max)
				break
			}
		}
	}
	return q
}
