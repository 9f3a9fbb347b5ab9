package view

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/revokd/revokd/bloom"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

const now = int64(1_800_000_000_000)

func filled(t *testing.T) *revocation.Table {
	t.Helper()
	key := revocation.Key{1}
	table, err := revocation.NewTable(revocation.TableConfig{Key: key, Store: ttlstore.Config{Heap: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"iss=a,jti=1", "iss=a,jti=2", "iss=a,sub=u"} {
		m, err := revocation.ParseMatch(text)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := table.Plan(revocation.Request{Match: m}, now, now)
		if err != nil {
			t.Fatal(err)
		}
		r := plan.Revocations[0]
		if _, err := table.Define(r.Shape, r.ExpiresAt, now, revocation.Unbound); err != nil {
			t.Fatal(err)
		}
		if _, err := table.Merge(key.Record(r), 1, now, false); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

func TestFilteredRoundTrip(t *testing.T) {
	table := filled(t)
	origins := []replication.Origin{{Index: 3, ID: 1 << 62, Node: "n1"}, {Index: 7, ID: 9, Node: "n2", Sealed: 5, Expires: 17}}
	f, err := Filter(t.Context(), table, 42, origins, []replication.VectorEntry{{Index: 3, Number: 1 << 39}}, now)
	if err != nil {
		t.Fatal(err)
	}
	table.Range(revocation.Fingerprint{}, now, func(r revocation.Record, _ uint64) bool {
		if !f.Filter.Has(r.Fingerprint.Hi, r.Fingerprint.Lo) {
			t.Errorf("%s is not in the filter", r.Class)
		}
		return true
	})
	var b bytes.Buffer
	if n, err := f.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatal(n, err)
	}
	got, err := ReadFiltered(bytes.NewReader(b.Bytes()), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if got.KeyID != 42 || got.Guarded != now || !reflect.DeepEqual(got.Live, f.Live) || len(got.Live) != 2 || got.Filter.Meta() != f.Filter.Meta() {
		t.Errorf("%+v", got)
	}
	if len(got.Keys) != 1 || got.Keys[0].ID != (revocation.Key{1}).ID() || got.Keys[0].Number != 0 {
		t.Errorf("%+v", got.Keys)
	}
	for i, o := range got.Origins { // indices are the reader's own
		want := f.Origins[i]
		want.Index = uint32(i + 1)
		if o != want {
			t.Errorf("%+v, want %+v", o, want)
		}
	}
	if got.Origins[0].Number != 1<<39 || got.Origins[1].Number != 0 {
		t.Errorf("%+v", got.Origins)
	}

	// What is cut off, damaged or too large is no filter.
	for n := range b.Len() {
		if _, err := ReadFiltered(bytes.NewReader(b.Bytes()[:n]), 1<<20); err == nil {
			t.Fatalf("%d bytes of %d are taken for a filter", n, b.Len())
		}
	}
	if _, err := ReadFiltered(bytes.NewReader(b.Bytes()), 100); !errors.Is(err, bloom.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	if _, err := ReadFiltered(bytes.NewReader([]byte{255, 255, 255, 255}), 1<<20); !errors.Is(err, ErrFilter) {
		t.Errorf("%v", err)
	}
	damaged := bytes.Replace(b.Bytes(), []byte(`"version":1`), []byte(`"version":2`), 1)
	if _, err := ReadFiltered(bytes.NewReader(damaged), 1<<20); !errors.Is(err, ErrFilter) {
		t.Errorf("%v", err)
	}
}

func TestFilterCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Filter(ctx, filled(t), 1, nil, nil, now); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func FuzzReadFiltered(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got *Filtered
		var err error
		alloctest.AtMost(t, 10*len(b)+256<<10, func() { got, err = ReadFiltered(bytes.NewReader(b), 1<<16) })
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := got.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
	})
}
