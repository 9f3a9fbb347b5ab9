package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
)

// FuzzFrame: a frame whose checksum is right is accepted only if it is to the byte what the builder makes of its content.
func FuzzFrame(f *testing.F) {
	const size = 8 // of a record
	build := frameBuilder{recordSize: size}
	seed := func(typ frameType, records int, meta ...Meta) []byte {
		build.begin(typ, 3)
		build.addRecords(make([]byte, records*size))
		for _, m := range meta {
			build.addEntry(m.Key, m.Value)
		}
		b, err := build.finish(64)
		if err != nil {
			f.Fatal(err)
		}
		return slices.Clone(b)
	}
	head := seed(frameHead, 2, Meta{Key: "a", Value: []byte("1")}, Meta{Key: "b"}, Meta{Key: "", Value: []byte{}})
	for _, b := range [][]byte{head, head[:len(head)-1], seed(frameData, 0), seed(frameEnd, 0), seed(200, 1, Meta{Key: "long", Value: make([]byte, 100)})} {
		f.Add(b, int64(64))
	}
	f.Fuzz(func(t *testing.T, b []byte, offset int64) {
		b = slices.Clone(b)
		segment := uint64(3)
		if h, err := parseHeader(b, size); err == nil && h.length <= len(b)-headerSize {
			segment = h.segment
			binary.LittleEndian.PutUint32(b[28:], checksum(b[:headerSize+h.length], offset))
		}
		var got frame
		var err error
		alloctest.AtMost(t, 64<<10, func() { got, err = parseFrame(b, size, segment, offset) })
		if err != nil {
			if !errors.Is(err, errFrame) || got.size != 0 {
				t.Fatalf("%+v, %v", got, err)
			}
			return
		}
		var meta []Meta
		alloctest.AtMost(t, 20*len(b)+64<<10, func() { meta = got.meta() }) // an entry of 8 bytes is one of 40
		build := frameBuilder{recordSize: size}
		build.begin(got.typ, segment)
		build.addRecords(got.records)
		for _, m := range meta {
			build.addEntry(m.Key, m.Value)
		}
		if again, err := build.finish(offset); err != nil || !bytes.Equal(again, b[:got.size]) {
			t.Fatalf("%x becomes %x, %v", b, again, err)
		}
		b[headerSize-1] ^= 1
		if _, err := parseFrame(b, size, segment, offset); err == nil {
			t.Fatal("a checksum that is wrong is accepted")
		}
	})
}

// FuzzLayout: FORMAT, what heads and manifests hold and the names of files are accepted only as they are written.
func FuzzLayout(f *testing.F) {
	for _, b := range [][]byte{
		nil, format{recordSize: 56, keyID: 7, incarnation: Incarnation{1}}.encode(), format{recordSize: 56, keyID: 7}.marshal(), []byte("journal 2\n"), prev{3, 4}.marshal(),
		manifest{5, []expFile{{bucket{'h', 1}, 2, 3, 4}, {bucket{'f', maxFar}, 2, 3, 4}}}.marshal(), []byte(walName(12)), []byte("h-471-9.seg"), []byte("h-0471-9.seg"), []byte("0000000000000000.wal"),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte) {
			t.Helper()
			if !bytes.Equal(again, b) {
				t.Fatalf("%s: %q becomes %q", what, b, again)
			}
		}
		alloctest.AtMost(t, 16*len(b)+64<<10, func() {
			switch text, err := parseFormat(b); {
			case err == nil:
				same("FORMAT", text.encode())
			case !errors.Is(err, errFormat) && !errors.Is(err, ErrNewerFormat):
				t.Fatal(err)
			}
			if v := new(format); v.unmarshal(b) {
				same("format", v.marshal())
			}
			if m, ok := parseManifest(b); ok && b != nil {
				same("manifest", m.marshal())
			}
			if p, ok := parsePrev(b); ok {
				same("prev", p.marshal())
			}
			if seq, ok := parseWalName(string(b)); ok {
				same("segment", []byte(walName(seq)))
			}
			if e, ok := parseExpName(string(b)); ok {
				same("expiry file", []byte(e.name()))
			}
		})
	})
}
