package node

import (
	"bytes"
	"testing"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/revocation"
)

// FuzzDisk: an entry or an origin in the journal is accepted only as it is written.
func FuzzDisk(f *testing.F) {
	r := revocation.Record{Fingerprint: revocation.Fingerprint{Hi: 1, Lo: 2}, Value: start.UnixMilli(), Shape: 3, ExpiresAt: 4, Class: revocation.ClassDeny}
	b, err := appendEntry(nil, entry{record: r, dot: 5})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[1:])
	f.Add(make([]byte, entrySize))
	f.Add(appendOrigin(nil, replication.Origin{ID: 1, Sealed: 2, Expires: 3, Node: "n1", Partial: true, Fenced: true}))
	f.Add(appendOrigin(nil, replication.Origin{ID: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var e entry
		var o replication.Origin
		var err, errOrigin error
		alloctest.AtMost(t, 4*len(b)+64<<10, func() {
			e.record, e.dot, err = parseEntry(b)
			o, errOrigin = parseOrigin(b)
		})
		if err == nil {
			if again, err := appendEntry(nil, e); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("an entry %x becomes %x, %v", b, again, err)
			}
		} else if e.record != (revocation.Record{}) {
			t.Fatalf("%+v, %v", e, err)
		}
		if errOrigin == nil {
			if again := appendOrigin(nil, o); !bytes.Equal(again, b) {
				t.Fatalf("an origin %x becomes %x", b, again)
			}
		} else if o != (replication.Origin{}) {
			t.Fatalf("%+v, %v", o, errOrigin)
		}
	})
}
