package view

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/ttlstore"
)

func TestKeysRoundTrip(t *testing.T) {
	ring, err := revocation.NewRing(revocation.Key{1}).Add(revocation.Key{2})
	if err != nil {
		t.Fatal(err)
	}
	want := Keys{ring, 1 << 31}
	b := want.Append([]byte("x"))[1:]
	if got, err := ParseKeys(append(slices.Clone(b), "of a later version"...)); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range b {
		if _, err := ParseKeys(b[:n]); !errors.Is(err, revocation.ErrKey) {
			t.Errorf("%d bytes of %d: %v", n, len(b), err)
		}
	}
	b[0]++
	if _, err := ParseKeys(b); !errors.Is(err, revocation.ErrKey) {
		t.Errorf("%v", err)
	}
}

// What is told is until when there may be records of the key that is not in use.
func TestKeysOf(t *testing.T) {
	key, next := revocation.Key{1}, revocation.Key{2}
	table := filled(t)
	live := table.LiveUntil(0)
	if got := KeysOf(table); got.LiveUntil != 0 || live == 0 {
		t.Errorf("%+v, live until %d", got, live)
	}
	ring, err := revocation.NewRing(key).Add(next)
	if err == nil {
		ring, err = ring.Use(next.ID())
	}
	if err == nil {
		err = table.SetRing(ring, now)
	}
	if got := KeysOf(table); err != nil || got != (Keys{ring, live}) {
		t.Errorf("%+v, %v", got, err)
	}

	// A filter names the keys and has both kinds of records.
	f, err := Filter(t.Context(), table, 42, nil, nil, now)
	if err != nil || !slices.Equal(f.Keys, ring.Keys()) {
		t.Errorf("%+v, %v", f, err)
	}
	empty, err := revocation.NewTable(revocation.TableConfig{Key: key, Store: ttlstore.Config{Heap: true}})
	if err != nil {
		t.Fatal(err)
	}
	if got := KeysOf(empty); got.LiveUntil != 0 || !got.Ring.Single() {
		t.Errorf("%+v", got)
	}
}

func FuzzParseKeys(f *testing.F) {
	b := Keys{revocation.NewRing(revocation.Key{1}), 5}.Append(nil)
	f.Add(b)
	f.Add(append(slices.Clone(b), 1))
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		var k Keys
		var err error
		alloctest.AtMost(t, 64<<10, func() { k, err = ParseKeys(b) })
		switch {
		case err != nil && (!errors.Is(err, revocation.ErrKey) || k != Keys{}):
			t.Fatalf("%+v, %v", k, err)
		case err == nil && !bytes.HasPrefix(b, k.Append(nil)):
			t.Fatalf("%x becomes %x", b, k.Append(nil))
		}
	})
}
