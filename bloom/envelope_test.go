package bloom

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"math"
	"testing"
	"testing/iotest"

	library "github.com/bits-and-blooms/bloom/v3"

	"github.com/revokd/revokd/internal/alloctest"
)

// small returns a filter of two words with three keys, and its envelope.
func small(tb testing.TB) (*Filter, []byte) {
	tb.Helper()
	f := mustSize(tb, 128, 3)
	f.SetLabel(0x1122334455667788, 1_795_521_600_000)
	for i := range uint64(3) {
		f.Add(i, i+1)
	}
	return f, encode(tb, f)
}

func encode(tb testing.TB, f *Filter) []byte {
	tb.Helper()
	var b bytes.Buffer
	n, err := f.WriteTo(&b)
	if err != nil {
		tb.Fatal(err)
	}
	if n != int64(b.Len()) || n != f.EncodedSize() {
		tb.Fatalf("WriteTo says %d bytes, EncodedSize %d, written are %d", n, f.EncodedSize(), b.Len())
	}
	return b.Bytes()
}

// seal gives an envelope the checksum of its content.
func seal(b []byte) []byte {
	body := b[:len(b)-checksumSize]
	return binary.BigEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
}

func refused(err error) bool {
	return errors.Is(err, ErrFormat) || errors.Is(err, ErrNewerVersion) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrChecksum)
}

func TestRoundTrip(t *testing.T) {
	for _, n := range []uint64{1, 100, 20_000, 300_000} {
		f := mustNew(t, n, 0.01)
		f.SetLabel(42, -5)
		for i := range n {
			f.Add(n, i)
		}
		b := encode(t, f)
		// One byte at a time, and with another message behind it.
		rest := bytes.NewReader(append(bytes.Clone(b), "rest"...))
		in := io.Reader(rest)
		if n <= 100 {
			in = iotest.OneByteReader(rest)
		}
		g, err := ReadFrom(in, int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if rest.Len() != len("rest") {
			t.Errorf("%d keys: %d bytes behind the filter are left, want 4", n, rest.Len())
		}
		if g.Meta() != f.Meta() || g.Meta() != (Meta{KeyID: 42, AsOf: -5, Count: n}) {
			t.Errorf("%d keys: meta %+v", n, g.Meta())
		}
		for i := range n {
			if !g.Has(n, i) {
				t.Fatalf("%d keys: key %d is missing", n, i)
			}
		}
		if !bytes.Equal(encode(t, g), b) {
			t.Errorf("%d keys: another envelope after a round trip", n)
		}
	}
}

// The layout is a contract with programs in other languages.
func TestVector(t *testing.T) {
	_, b := small(t)
	want := "72766b626c6f6f6d" + "0000000000000001" + "1122334455667788" + "0000000000000003" + "000001a20d6d5a00" +
		"0000000000000028" + "0000000000000080" + "0000000000000003" + "0000000000000080" +
		"0000001000010005" + "0044040100000200" + "a48d3ddb"
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("envelope\n%s, want\n%s", got, want)
	}
}

func TestLibraryReadsThePayload(t *testing.T) {
	f := mustNew(t, 5000, 0.01)
	for i := range uint64(5000) {
		f.Add(i, ^i)
	}
	b := encode(t, f)
	var lib library.BloomFilter
	if _, err := lib.ReadFrom(bytes.NewReader(b[headerSize : len(b)-checksumSize])); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20_000) {
		if lib.Test(key(i, ^i)) != f.Has(i, ^i) {
			t.Fatalf("key %d: the library differs", i)
		}
		if i < 5000 && !lib.Test(key(i, ^i)) {
			t.Fatalf("key %d: the library misses it", i)
		}
	}
	if lib.Cap() != uint(f.M()) || lib.K() != uint(f.K()) {
		t.Errorf("the library reads m %d, k %d", lib.Cap(), lib.K())
	}
}

func TestReadsWhatTheLibraryWrites(t *testing.T) {
	lib := library.From(make([]uint64, 1000), 7)
	for i := range uint64(5000) {
		lib.Add(key(i, ^i))
	}
	var payload bytes.Buffer
	if _, err := lib.WriteTo(&payload); err != nil {
		t.Fatal(err)
	}
	f := mustSize(t, 64000, 7)
	b := append(encode(t, f)[:headerSize], payload.Bytes()...)
	f, err := ReadFrom(bytes.NewReader(seal(append(b, 0, 0, 0, 0))), math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(20_000) {
		if lib.Test(key(i, ^i)) != f.Has(i, ^i) {
			t.Fatalf("key %d: the library differs", i)
		}
	}
	if again := encode(t, f); !bytes.Equal(again[headerSize:len(again)-checksumSize], payload.Bytes()) {
		t.Error("the payload is not what the library wrote")
	}
}

func TestTruncations(t *testing.T) {
	_, b := small(t)
	for n := range b {
		_, err := ReadFrom(bytes.NewReader(b[:n]), 1<<20)
		if !errors.Is(err, ErrFormat) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

func TestBitFlips(t *testing.T) {
	_, b := small(t)
	for i := range 8 * len(b) {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		f, err := ReadFrom(bytes.NewReader(c), 1<<20)
		if f != nil || !refused(err) {
			t.Errorf("bit %d of byte %d: %v", i%8, i/8, err)
		}
		if i/8 >= headerSize+sizesSize && !errors.Is(err, ErrChecksum) {
			t.Errorf("bit %d of byte %d: %v, want a checksum mismatch", i%8, i/8, err)
		}
	}
}

// Headers whose checksum is right: what the library would believe, to the harm of a lookup.
func TestInconsistentHeaders(t *testing.T) {
	const m, k, again, length = 48, 56, 64, 40
	for name, test := range map[string]struct {
		set  map[int]uint64 // offset: value
		want error
	}{
		"magic":               {map[int]uint64{0: 1}, ErrFormat},
		"version 0":           {map[int]uint64{8: 0}, ErrFormat},
		"version 2":           {map[int]uint64{8: 2}, ErrNewerVersion},
		"m 0":                 {map[int]uint64{m: 0, again: 0, length: 24}, ErrFormat},
		"m not in words":      {map[int]uint64{m: 127, again: 127}, ErrFormat},
		"k 0":                 {map[int]uint64{k: 0}, ErrFormat},
		"k 65":                {map[int]uint64{k: 65}, ErrFormat},
		"m beyond the bits":   {map[int]uint64{m: 1 << 20}, ErrFormat},
		"m larger, same bits": {map[int]uint64{m: 192, length: 48}, ErrFormat},
		"bits beyond m":       {map[int]uint64{again: 1 << 20}, ErrFormat},
		"payload too short":   {map[int]uint64{length: 39}, ErrFormat},
		"payload too long":    {map[int]uint64{length: 41}, ErrFormat},
		"far too many bits":   {map[int]uint64{m: 1 << 63, again: 1 << 63, length: 24 + 1<<60}, ErrTooLarge},
		"m wraps":             {map[int]uint64{m: math.MaxUint64, again: math.MaxUint64}, ErrTooLarge},
		"beyond the limit":    {map[int]uint64{m: 1 << 30, again: 1 << 30, length: 24 + 1<<27}, ErrTooLarge},
	} {
		_, b := small(t)
		for offset, value := range test.set {
			binary.BigEndian.PutUint64(b[offset:], value)
		}
		if f, err := ReadFrom(bytes.NewReader(seal(b)), 1<<20); f != nil || !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

func TestLimit(t *testing.T) {
	_, b := small(t)
	if _, err := ReadFrom(bytes.NewReader(b), int64(len(b))); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	for _, limit := range []int64{int64(len(b)) - 1, 0, -1} {
		if _, err := ReadFrom(bytes.NewReader(b), limit); !errors.Is(err, ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
}

// An error of the reader is no statement about the filter, and an error of the writer is passed on.
func TestErrorsPassThrough(t *testing.T) {
	f, b := small(t)
	broken := errors.New("broken")
	for n := range b {
		_, err := ReadFrom(io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken)), 1<<20)
		if !errors.Is(err, broken) || refused(err) {
			t.Errorf("the reader fails after %d bytes: %v", n, err)
		}
	}
	for _, after := range []int{0, 1} {
		w := &failingWriter{after: after, err: broken}
		if n, err := f.WriteTo(w); !errors.Is(err, broken) || n != w.taken {
			t.Errorf("the writer fails after %d calls: %d bytes, %v; %d bytes were taken", after, n, err, w.taken)
		}
	}
}

type failingWriter struct {
	after int
	err   error
	taken int64
}

func (w *failingWriter) Write(b []byte) (int, error) {
	if w.after == 0 {
		w.taken += int64(len(b) / 2)
		return len(b) / 2, w.err
	}
	w.after--
	w.taken += int64(len(b))
	return len(b), nil
}

// A header may promise a gigabyte: what is allocated follows what comes.
func TestAllocatesAsItReads(t *testing.T) {
	huge := mustSize(t, 64, 7)
	head := encode(t, huge)[:headerSize+sizesSize]
	for offset, value := range map[int]uint64{40: 24 + 1<<30, 48: 1 << 33, 64: 1 << 33} {
		binary.BigEndian.PutUint64(head[offset:], value)
	}
	for _, sent := range []int{0, 1000, 100_000, 10_000_000} {
		b := append(bytes.Clone(head), make([]byte, sent)...)
		var err error
		got := alloctest.Bytes(func() { _, err = ReadFrom(bytes.NewReader(b), math.MaxInt64) })
		if !errors.Is(err, ErrFormat) {
			t.Errorf("%d bytes of a gigabyte: %v", sent, err)
		}
		if limit := uint64(4*len(b) + 64<<10); got > limit {
			t.Errorf("%d bytes allocate %d, limit %d", len(b), got, limit)
		}
	}
}

func FuzzReadFrom(f *testing.F) {
	_, b := small(f)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(append(bytes.Clone(b), 1))
	f.Add([]byte(magic))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		try(t, b)
		if len(b) > checksumSize {
			try(t, seal(b)) // past the checksum, where the damage would be done
		}
	})
}

func try(t *testing.T, b []byte) {
	t.Helper()
	const limit = 1 << 16
	var filter *Filter
	var err error
	r := bytes.NewReader(b)
	got := alloctest.Bytes(func() { filter, err = ReadFrom(r, limit) })
	if allowed := uint64(4*len(b) + 256<<10); got > allowed { // the fuzzer itself allocates too
		t.Fatalf("%d bytes allocate %d, allowed %d", len(b), got, allowed)
	}
	if err != nil {
		if filter != nil || !refused(err) {
			t.Fatalf("refused with %v", err)
		}
		return
	}
	read := len(b) - r.Len()
	if read > limit {
		t.Fatalf("accepted %d bytes, limit %d", read, limit)
	}
	if again := encode(t, filter); !bytes.Equal(again, b[:read]) {
		t.Fatalf("%x reads as %x", b[:read], again)
	}
	filter.Add(1, 2)
	if !filter.Has(1, 2) {
		t.Fatal("a key that was added is missing")
	}
}
