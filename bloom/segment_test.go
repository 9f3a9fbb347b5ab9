package bloom

import (
	"math/rand/v2"
	"testing"
)

func line(segment []uint64, lo uint64) *[SegmentLine]uint64 {
	return (*[SegmentLine]uint64)(segment[SegmentIndex(lo, uint64(len(segment)/SegmentLine)):])
}

// A key that was added is never denied, and others are let through about as rarely as the comment says.
func TestSegment(t *testing.T) {
	const keys = 20_000
	segment := make([]uint64, (keys*SegmentBits+511)/512*SegmentLine)
	r := rand.New(rand.NewPCG(1, 2))
	added := make([][2]uint64, keys)
	for i := range added {
		added[i] = [2]uint64{r.Uint64(), r.Uint64()}
		SegmentAdd(line(segment, added[i][1]), added[i][0])
	}
	for _, k := range added {
		if !SegmentHas(line(segment, k[1]), k[0]) {
			t.Fatal("a key that was added is denied")
		}
	}
	const probes = 200_000
	maybe := 0
	for range probes {
		if SegmentHas(line(segment, r.Uint64()), r.Uint64()) {
			maybe++
		}
	}
	if rate := float64(maybe) / probes; rate > 1.0/180 || rate < 1.0/400 {
		t.Fatalf("one false maybe in %.0f", 1/rate)
	}
}

// Any half that is given ends inside the segment.
func TestSegmentIndex(t *testing.T) {
	for _, lines := range []uint64{1, 2, 3, 1000} {
		for _, lo := range []uint64{0, 1, 1 << 63, ^uint64(0)} {
			if i := SegmentIndex(lo, lines); i%SegmentLine != 0 || i/SegmentLine >= lines {
				t.Fatalf("word %d of %d lines", i, lines)
			}
		}
	}
}
