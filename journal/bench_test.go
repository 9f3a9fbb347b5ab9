package journal_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/revokd/revokd/journal"
)

// Records of the size that the product has; the tests have smaller ones.
const benchRecord = 48

func benchConfig(dir string) journal.Config {
	cfg := config(dir, nil)
	cfg.RecordSize = benchRecord
	return cfg
}

// benchRecords makes n records with deadlines between now and so many seconds later.
func benchRecords(n int, first uint64, now, spread int64, rng *rand.Rand) []byte {
	b := make([]byte, 0, n*benchRecord)
	for i := range uint64(n) {
		b = append(b, record(first+i, now+rng.Int64N(spread))...)
		b = append(b, make([]byte, benchRecord-recordSize)...)
	}
	return b
}

func ignore([]byte) error { return nil }

func openBench(b *testing.B, cfg journal.Config) running {
	b.Helper()
	j, err := journal.Open(cfg)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := j.Replay(b.Context(), ignore, nil); err != nil {
		b.Fatal(err)
	}
	return run(j)
}

// BenchmarkAppend: acknowledged records a second, and how long their callers wait.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct{ writers, batch int }{{1, 1}, {64, 1}, {1024, 1}, {1, 100}, {1, 1000}, {8, 100}} {
		b.Run(fmt.Sprintf("writers=%d/batch=%d", c.writers, c.batch), func(b *testing.B) {
			j := openBench(b, benchConfig(b.TempDir()))
			records := benchRecords(c.batch, 0, 1e6, 3600, rand.New(rand.NewPCG(1, 1)))
			took := make([][]time.Duration, c.writers)
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range c.writers {
				share := b.N / c.writers
				if w < b.N%c.writers {
					share++
				}
				took[w] = make([]time.Duration, 0, share)
				wg.Go(func() {
					for range share {
						began := time.Now()
						if err := j.Append(context.Background(), &journal.Batch{Records: records}); err != nil {
							b.Error(err)
							return
						}
						took[w] = append(took[w], time.Since(began))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(took...)
			slices.Sort(all)
			b.ReportMetric(float64(len(all)*c.batch)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
			s := j.Stats()
			b.ReportMetric(float64(s.Written)/float64(s.Records), "written-B/record")
			j.end(b)
		})
	}
}

// BenchmarkReplay: a start on so many records, from the page cache; without the table that the product fills.
func BenchmarkReplay(b *testing.B) {
	for _, n := range []int{1_000_000, 10_000_000} {
		if n > 1_000_000 && testing.Short() {
			continue
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			cfg := benchConfig(b.TempDir())
			j := openBench(b, cfg)
			rng := rand.New(rand.NewPCG(1, 1))
			const batch = 10_000
			for i := 0; i < n; i += batch {
				j.append(b, &journal.Batch{Records: benchRecords(batch, uint64(i), 1e6, 86400, rng)})
			}
			j.end(b)
			b.ResetTimer()
			for range b.N {
				j, err := journal.Open(cfg)
				if err != nil {
					b.Fatal(err)
				}
				stats, err := j.Replay(b.Context(), ignore, nil)
				if err != nil || stats.Records < int64(n) {
					b.Fatalf("%+v, %v", stats, err)
				}
				b.StopTimer()
				b.ReportMetric(float64(stats.Bytes)/float64(stats.Records), "disk-B/record")
				if err := j.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/start")
		})
	}
}

// BenchmarkDay: a day of writes at a steady rate with Expire every minute. Most records live for minutes or an hour, some
// for days. It reports the bytes on disk for each live record, at the end and at most, and the bytes written for each
// byte of records that was acknowledged.
func BenchmarkDay(b *testing.B) {
	perMinute := 1500
	if testing.Short() {
		perMinute = 150
	}
	for range b.N {
		cfg := benchConfig(b.TempDir())
		cfg.SegmentBytes = 1 << 20
		j := openBench(b, cfg)
		rng := rand.New(rand.NewPCG(1, 1))
		const begin = int64(1_700_000_000)
		var deadlines []int64
		var acked, next uint64
		worst := 0.0
		var last journal.Stats
		live := 0
		for minute := range int64(24 * 60) {
			now := begin + minute*60
			for range perMinute / 50 {
				var records []byte
				for range 50 {
					spread := int64(15 * 60)
					switch rng.IntN(20) {
					case 0:
						spread = 30 * 86400
					case 1, 2, 3, 4:
						spread = 3600
					}
					one := benchRecords(1, next, now, spread, rng)
					deadlines = append(deadlines, deadlineOf(one))
					records = append(records, one...)
					next++
				}
				j.append(b, &journal.Batch{Records: records})
				acked += uint64(len(records))
			}
			if err := j.Expire(b.Context(), now); err != nil {
				b.Fatal(err)
			}
			if minute%10 == 9 {
				deadlines = slices.DeleteFunc(deadlines, func(d int64) bool { return d < now })
				live, last = len(deadlines), j.Stats()
				if minute >= 120 {
					worst = max(worst, float64(last.Bytes)/float64(live))
				}
			}
		}
		b.ReportMetric(float64(live), "live-records")
		b.ReportMetric(float64(last.Bytes)/float64(live), "disk-B/live")
		b.ReportMetric(worst, "disk-B/live-max")
		b.ReportMetric(float64(last.Written)/float64(acked), "write-amplification")
		b.ReportMetric(float64(last.Kept)/float64(next), "rewritten/record")
		j.end(b)
	}
}
