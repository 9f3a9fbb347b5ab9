package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The format of frames: see the package comment. All numbers are little-endian.
const (
	frameMagic   = 0x0a46ab7f // first byte 0x7f, last a newline: text is never a frame
	frameVersion = 1
	headerSize   = 32
	frameAlign   = 8
	maxFrame     = 48 << 20 // bytes of a payload: a head holds all metadata and the records of one commit
	entryHeader  = 8
	deletedEntry = ^uint32(0)
)

type frameType uint8

// The types of frames. The numbers are append-only.
const (
	frameHead    frameType = 1 // first in a segment: where the log comes from, all metadata
	frameData    frameType = 2 // one commit
	frameEnd     frameType = 3 // last in a segment that was closed in an orderly way
	frameExpiry  frameType = 4 // in a file of exp/
	frameBackup  frameType = 5 // first in a backup
	frameTrailer frameType = 6 // last in a backup
)

// Keys that begin with a zero byte belong to the journal itself.
const (
	keyFormat = "\x00format" // in heads: what FORMAT says
	keyPrev   = "\x00prev"   // in heads: number and valid length of the segment before
	keyFiles  = "\x00files"  // which files of exp/ hold records, and how long they are
	keyTotal  = "\x00total"  // in trailers: how many records and frames the backup has
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errFrame = errors.New("not a valid frame")

// frame is a decoded frame; its slices point into the bytes it was decoded from.
type frame struct {
	typ     frameType
	segment uint64
	records []byte
	entries []byte
	count   uint32 // of entries
	size    int    // with the header
}

// header is the first 32 bytes of a frame, plausible but not verified.
type header struct {
	typ              frameType
	length           int
	records, entries uint32
	segment          uint64
}

func parseHeader(b []byte, recordSize int) (header, error) {
	le := binary.LittleEndian
	if len(b) < headerSize || le.Uint32(b) != frameMagic || b[4] != frameVersion || b[6] != 0 || b[7] != 0 {
		return header{}, errFrame
	}
	h := header{
		typ: frameType(b[5]), length: int(le.Uint32(b[8:])), records: le.Uint32(b[12:]), segment: le.Uint64(b[16:]), entries: le.Uint32(b[24:]),
	}
	if h.length > maxFrame || h.length%frameAlign != 0 ||
		uint64(h.records)*uint64(recordSize)+uint64(h.entries)*entryHeader > uint64(h.length) {
		return header{}, errFrame
	}
	return h, nil
}

// parseFrame decodes the frame at the start of b, which stands at an offset of a segment. It accepts
// exactly what [frameBuilder] makes, and allocates nothing.
func parseFrame(b []byte, recordSize int, segment uint64, offset int64) (frame, error) {
	h, err := parseHeader(b, recordSize)
	if err != nil || h.segment != segment || h.length > len(b)-headerSize {
		return frame{}, errFrame
	}
	b = b[:headerSize+h.length]
	if binary.LittleEndian.Uint32(b[28:]) != checksum(b, offset) {
		return frame{}, errFrame
	}
	split := headerSize + int(h.records)*recordSize
	f := frame{typ: h.typ, segment: segment, records: b[headerSize:split], entries: b[split:], count: h.entries, size: len(b)}
	rest := f.entries
	for range f.count {
		if _, _, rest, err = nextEntry(rest); err != nil {
			return frame{}, err
		}
	}
	if len(rest) >= frameAlign {
		return frame{}, errFrame
	}
	for _, pad := range rest {
		if pad != 0 {
			return frame{}, errFrame
		}
	}
	f.entries = f.entries[:len(f.entries)-len(rest)]
	return f, nil
}

// checksum is the CRC of a frame without the field that holds it. The offset goes into it, so that a frame is valid
// only where it was written.
func checksum(b []byte, offset int64) uint32 {
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(offset))
	crc := crc32.Update(0, castagnoli, at[:])
	crc = crc32.Update(crc, castagnoli, b[:28])
	return crc32.Update(crc, castagnoli, b[headerSize:])
}

// nextEntry splits the first metadata entry off b. A nil value deletes.
func nextEntry(b []byte) (key, value, rest []byte, err error) {
	if len(b) < entryHeader {
		return nil, nil, nil, errFrame
	}
	k, v := int(binary.LittleEndian.Uint32(b)), binary.LittleEndian.Uint32(b[4:])
	deleted := v == deletedEntry
	if deleted {
		v = 0
	}
	b = b[entryHeader:]
	if k > len(b) || int64(v) > int64(len(b)-k) {
		return nil, nil, nil, errFrame
	}
	key = b[:k]
	if !deleted {
		value = b[k : k+int(v) : k+int(v)]
	}
	return key, value, b[k+int(v):], nil
}

// meta lists the metadata entries of a frame; values point into it.
func (f frame) meta() []Meta {
	list := make([]Meta, 0, min(f.count, 1024))
	for rest := f.entries; len(rest) > 0; {
		key, value, after, _ := nextEntry(rest) // parseFrame has checked it
		list = append(list, Meta{Key: string(key), Value: value})
		rest = after
	}
	return list
}

func (f frame) find(key string) []byte {
	for _, m := range f.meta() {
		if m.Key == key {
			return m.Value
		}
	}
	return nil
}

// frameBuilder encodes frames into a buffer that it reuses: begin, all records, all entries, finish.
type frameBuilder struct {
	recordSize int
	buf        []byte
	records    int
	entries    uint32
}

func (b *frameBuilder) begin(t frameType, segment uint64) {
	var h [headerSize]byte
	binary.LittleEndian.PutUint32(h[:], frameMagic)
	h[4], h[5] = frameVersion, byte(t)
	binary.LittleEndian.PutUint64(h[16:], segment)
	b.buf = append(b.buf[:0], h[:]...)
	b.records, b.entries = 0, 0
}

func (b *frameBuilder) addRecords(records []byte) {
	b.buf = append(b.buf, records...)
	b.records += len(records) / b.recordSize
}

func (b *frameBuilder) addEntry(key string, value []byte) {
	v := uint32(len(value))
	if value == nil {
		v = deletedEntry
	}
	b.buf = binary.LittleEndian.AppendUint32(b.buf, uint32(len(key)))
	b.buf = binary.LittleEndian.AppendUint32(b.buf, v)
	b.buf = append(append(b.buf, key...), value...)
	b.entries++
}

// finish returns the frame for an offset; it is valid until the next begin.
func (b *frameBuilder) finish(offset int64) ([]byte, error) {
	for len(b.buf)%frameAlign != 0 {
		b.buf = append(b.buf, 0)
	}
	length := len(b.buf) - headerSize
	if length > maxFrame {
		return nil, fmt.Errorf("%w: a frame of %d bytes, limit %d", ErrInvalid, length, maxFrame)
	}
	le := binary.LittleEndian
	le.PutUint32(b.buf[8:], uint32(length))
	le.PutUint32(b.buf[12:], uint32(b.records))
	le.PutUint32(b.buf[24:], b.entries)
	le.PutUint32(b.buf[28:], checksum(b.buf, offset))
	return b.buf, nil
}

// shrink lets go of a buffer that one large frame made.
func (b *frameBuilder) shrink() {
	if cap(b.buf) > 4<<20 {
		b.buf = nil
	}
}
