package replication

import (
	"encoding/binary"
	"fmt"
)

// A message is a sequence of frames: type 1, length of the content (uvarint), content. Numbers are uvarints unless they say
// otherwise; ref is the sender's index of an origin, which it has defined earlier in the session.
type frameType byte

const (
	frameHello     frameType = 1  // see hello
	frameOrigin    frameType = 2  // ref, id 8, sealed, expires, node, and whether the sender gives its numbers now 1: older ones leave that out
	frameVector    frameType = 3  // n, n times ref, applied, durable
	frameRecords   frameType = 4  // ref, first, records
	frameDefine    frameType = 5  // a definition
	framePull      frameType = 6  // ref, from
	frameBelow     frameType = 7  // id 8 of the origin, floor: the log begins above it
	frameScan      frameType = 8  // scan, from 16, to 16
	frameScanBegin frameType = 9  // scan, accepted 1, vector: n, n times ref, applied
	frameScanned   frameType = 10 // scan, n times a record: see scanned
	frameScanEnd   frameType = 11 // scan
	frameProbe     frameType = 12 // probe
	frameAnswer    frameType = 13 // probe, wall, guarded time, n, n times age of the view of a voter in milliseconds + 1, 0: none, and how many records the sender holds: older ones leave that out
	frameControl   frameType = 14 // of the host
	frameAudit     frameType = 15 // audit, horizon, cut: n, n times id 8, number
	frameSums      frameType = 16 // audit, node+1 or 0 for the top, 256 times sum 8
	frameLeaf      frameType = 17 // audit, leaf, last 1, answer 1, n times record and dot 8
	frameAuditEnd  frameType = 18 // audit
	frameWindow    frameType = 19 // records of scans that have been taken in, in all
	frameEarly     frameType = 21 // scan, n times a record as in frameScanned, ahead of its place there
	frameVoters    frameType = 20 // from here on: hash 8 of the configuration, whether the sender votes 1, number, n, n names
	frameKeys      frameType = 22 // length, what the host knows the keys of records by: of nodes only, ahead of records under keys that are in it
	frameUnknown   frameType = 23 // and all above: of later versions, skipped
)

// Limits of the format.
const (
	maxName       = 128
	maxMessage    = 1 << 20
	maxControl    = 64 << 10
	maxDefinition = 4 << 10
	maxKeys       = 1 << 10
	// MaxMessage is the size of the largest message that Fill writes or Received takes.
	MaxMessage = maxMessage
)

// hello opens a session.
type hello struct {
	version     uint64
	keyID       uint64
	name        string
	incarnation Incarnation
	boot        uint64
	client      bool
	keys        bool // it understands frameKeys; versions that know of one key leave that out
}

// writer builds messages.
type writer struct {
	b     []byte
	start int // of the content of the open frame
}

// frame opens a frame whose content is at most 2^28 bytes: four bytes are left for its length.
func (w *writer) frame(t frameType) {
	w.b = append(w.b, byte(t), 0, 0, 0, 0)
	w.start = len(w.b)
}

func (w *writer) end() {
	n := len(w.b) - w.start
	// A uvarint of fixed length.
	w.b[w.start-4] = byte(n) | 0x80
	w.b[w.start-3] = byte(n>>7) | 0x80
	w.b[w.start-2] = byte(n>>14) | 0x80
	w.b[w.start-1] = byte(n >> 21)
}

func (w *writer) uint(v uint64)    { w.b = binary.AppendUvarint(w.b, v) }
func (w *writer) fixed(v uint64)   { w.b = binary.BigEndian.AppendUint64(w.b, v) }
func (w *writer) bytes(v ...byte)  { w.b = append(w.b, v...) }
func (w *writer) key(k Key)        { w.fixed(k.Hi); w.fixed(k.Lo) }
func (w *writer) flag(v bool)      { w.b = append(w.b, bit(v)) }
func (w *writer) string(s string)  { w.uint(uint64(len(s))); w.b = append(w.b, s...) }
func (w *writer) records(b []byte) { w.b = append(w.b, b...) }

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// reader takes messages apart. The first error stays; values behind it are zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrProtocol, what)
	}
	r.b = nil
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail("truncated")
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail("number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

// limited reads a number up to a limit.
func (r *reader) limited(limit uint64) uint64 {
	v := r.uint()
	if v > limit {
		r.fail("number out of range")
		return 0
	}
	return v
}

func (r *reader) fixed() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) flag() bool { return r.byte() != 0 }
func (r *reader) key() Key   { return Key{r.fixed(), r.fixed()} }

func (r *reader) string(limit int) string { return string(r.take(int(r.limited(uint64(limit))))) }

// count reads how many items of at least size bytes follow; what it allows is in the message already.
func (r *reader) count(size int) int { return int(r.limited(uint64(len(r.b) / size))) }

// next opens the next frame of a message; ok is false at the end or after an error.
func (r *reader) next() (t frameType, content reader, ok bool) {
	if len(r.b) == 0 || r.err != nil {
		return 0, reader{}, false
	}
	t = frameType(r.byte())
	b := r.take(int(r.limited(maxMessage)))
	return t, reader{b: b}, r.err == nil
}

func (w *writer) hello(h hello) {
	w.frame(frameHello)
	w.uint(h.version)
	w.fixed(h.keyID)
	w.string(h.name)
	w.bytes(h.incarnation[:]...)
	w.fixed(h.boot)
	w.flag(h.client)
	w.flag(h.keys)
	w.end()
}

// hello reads what this version knows; a later one may add to the end.
func (r *reader) hello() (h hello) {
	h.version = r.uint()
	h.keyID = r.fixed()
	h.name = r.string(maxName)
	copy(h.incarnation[:], r.take(len(h.incarnation)))
	h.boot = r.fixed()
	h.client = r.flag()
	h.keys = len(r.b) > 0 && r.flag()
	return h
}

func dotOf(b []byte) Dot { return Dot(binary.BigEndian.Uint64(b)) }

// entrySize is a record and its dot, as they lie side by side in memory.
const entrySize = RecordSize + 8

// scanned writes records of a scan with their dots. Of each there are 1 byte with a bit for each 8 bytes that are those of the record before it,
// the others, ref and number of its dot: less than it takes in the log.
func (w *writer) scanned(t frameType, id uint64, entries []byte) {
	w.frame(t)
	w.uint(id)
	for before := new(Record); len(entries) > 0; entries = entries[entrySize:] {
		at := len(w.b)
		w.b = append(w.b, 0)
		for i := 0; i < RecordSize; i += 8 {
			if [8]byte(before[i:]) == [8]byte(entries[i:]) {
				w.b[at] |= 1 << (i / 8)
			} else {
				w.b = append(w.b, entries[i:i+8]...)
			}
		}
		d := dotOf(entries[RecordSize:])
		w.uint(uint64(d.Index()))
		w.uint(d.Number())
		before = (*Record)(entries)
	}
	w.end()
}

// scanned appends the records that the rest of a frame holds, with their dots.
func (r *reader) scanned(b []byte) []byte {
	for rec := new(Record); len(r.b) > 0; {
		same := r.byte()
		for i := 0; i < RecordSize; i += 8 {
			if same&(1<<(i/8)) == 0 {
				copy(rec[i:i+8], r.take(8))
			}
		}
		index, number := r.limited(1<<24-1), r.limited(MaxNumber)
		b = putDot(append(b, rec[:]...), MakeDot(uint32(index), number))
	}
	return b
}
