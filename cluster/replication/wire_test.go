package replication

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What a scan sends arrives as it was, whatever is the same as in the record before; a piece of it is an error.
func TestScannedRoundTrip(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var entries []byte
		var last Record
		for range rng.IntN(20) {
			for i := 0; i < RecordSize; i += 8 {
				if rng.IntN(2) == 0 {
					for j := i; j < i+8; j++ {
						last[j] = byte(rng.Uint32() >> rng.IntN(9))
					}
				}
			}
			d := MakeDot(rng.Uint32()>>(8+rng.IntN(24)), rng.Uint64()>>(24+rng.IntN(40)))
			entries = putDot(append(entries, last[:]...), d)
		}
		var w writer
		w.scanned(frameScanned, 7, entries)
		in := reader{b: w.b}
		kind, f, ok := in.next()
		if !ok || kind != frameScanned || f.uint() != 7 {
			t.Fatal("no frame")
		}
		content := f.b
		if got := f.scanned(nil); f.err != nil || !bytes.Equal(got, entries) {
			t.Fatalf("%x became %x, %v", entries, got, f.err)
		}
		if n := len(content); n > 0 {
			cut := reader{b: content[:n-1]}
			if got := cut.scanned(nil); cut.err == nil && bytes.Equal(got, entries) {
				t.Fatal("a byte is missing and nothing is")
			}
		}
	}
}
