package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
)

// BenchmarkStart: from New to ready, with so many records in the journal and the files in the page cache.
func BenchmarkStart(b *testing.B) {
	for _, records := range []int{1_000_000, 10_000_000} {
		if testing.Short() && records > 1_000_000 {
			continue
		}
		b.Run(fmt.Sprint(records), func(b *testing.B) {
			cfg := Config{Name: "n1", Key: testKey, Dir: b.TempDir(), Clock: clocktest.New(start)}
			n, stop := benchNode(b, cfg)
			write(b, n, deny(b, "j1"))
			stop()
			multiply(b, cfg.Dir, records)
			b.ResetTimer()
			for range b.N {
				n, stop := benchNode(b, cfg)
				b.StopTimer()
				if got := n.Status().Table.Items; got < records {
					b.Fatalf("%d records", got)
				}
				stop()
				b.StartTimer()
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/start")
		})
	}
}

// multiply adds records like the one in a journal, each with a fingerprint of its own.
func multiply(b *testing.B, dir string, records int) {
	b.Helper()
	j, err := journal.Open(journal.Config{Dir: dir, RecordSize: entrySize, KeyID: uint64(testKey.ID())})
	if err != nil {
		b.Fatal(err)
	}
	var one []byte
	if _, err := j.Replay(b.Context(), func(r []byte) error { one = append([]byte{}, r[:entrySize]...); return nil }, nil); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	rng := rand.NewChaCha8([32]byte{1})
	const batch = 10_000
	for range records / batch {
		all := make([]byte, 0, batch*entrySize)
		for range batch {
			all = append(all, one...)
			_, _ = rng.Read(all[len(all)-entrySize:][:16]) // the fingerprint
		}
		if err := j.Append(ctx, &journal.Batch{Records: all}); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if err := j.Close(); err != nil {
		b.Fatal(err)
	}
}

// benchNode returns a node that is ready.
func benchNode(b *testing.B, cfg Config) (*Node, func()) {
	b.Helper()
	n, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	for len(n.Ready()) > 0 {
		select {
		case err := <-done:
			b.Fatalf("Run: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	return n, func() {
		cancel()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		if err := n.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
