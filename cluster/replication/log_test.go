package replication

import (
	"testing"
)

func logRecords(from uint64, n int) []byte {
	var b []byte
	for i := range n {
		r := testRecord(from+uint64(i), 0)
		b = append(b, r[:]...)
	}
	return b
}

// The log gives back what it was given, in runs, from any number above the floor, and nothing below.
func TestLogReads(t *testing.T) {
	l := hotLog{limit: 3 * chunkRecords * RecordSize}
	a, b := &origin{}, &origin{floor: 70}
	l.append(a, 1, logRecords(1, 700))
	l.append(b, 71, logRecords(71, 10))
	l.append(a, 701, logRecords(701, 600))
	a.applied, b.applied = 1300, 80
	for n := uint64(1); n <= 1300; n++ {
		got := a.read(n, 1)
		if n <= a.floor {
			if got != nil {
				t.Fatalf("number %d below the floor %d", n, a.floor)
			}
			continue
		}
		if want := testRecord(n, 0); string(got) != string(want[:]) {
			t.Fatalf("number %d is %x", n, got)
		}
	}
	if got := b.read(75, 100); len(got) != 6*RecordSize {
		t.Errorf("%d bytes", len(got))
	}
	if a.read(1301, 1) != nil || b.read(70, 1) != nil || b.read(0, 1) != nil {
		t.Error("what is not there")
	}
}

// The oldest go first, whoever they belong to, and the floor says so.
func TestLogIsBounded(t *testing.T) {
	const limit = 2 * chunkRecords * RecordSize
	l := hotLog{limit: limit}
	a, b := &origin{}, &origin{}
	for n := uint64(1); n <= 3000; n++ {
		l.append(a, n, logRecords(n, 1))
		if n%3 == 0 {
			l.append(b, n/3, logRecords(n/3, 1))
		}
		if l.bytes > limit {
			t.Fatalf("%d bytes", l.bytes)
		}
	}
	a.applied, b.applied = 3000, 1000
	held := 0
	for _, o := range []*origin{a, b} {
		if o.floor == 0 || o.read(o.floor, 1) != nil || o.read(o.floor+1, 1) == nil {
			t.Errorf("floor %d", o.floor)
		}
		held += int(o.applied-o.floor) * RecordSize
	}
	if held != l.bytes {
		t.Errorf("%d bytes are counted, %d held", l.bytes, held)
	}
}

// After a scan the log has a hole, so it begins anew.
func TestLogForgets(t *testing.T) {
	l := hotLog{limit: 1 << 20}
	a := &origin{}
	l.append(a, 1, logRecords(1, 600))
	a.applied = 900
	l.forget(a)
	if l.bytes != 0 || a.floor != 900 || a.read(5, 1) != nil {
		t.Errorf("%d bytes, floor %d", l.bytes, a.floor)
	}
	l.append(a, 901, logRecords(901, 5))
	if got := a.read(901, 9); len(got) != 5*RecordSize {
		t.Errorf("%d bytes", len(got))
	}
	l.limit = 3 * RecordSize
	l.append(a, 906, logRecords(906, 600))
	if a.floor < 900 {
		t.Errorf("the floor has gone back to %d", a.floor)
	}
}
