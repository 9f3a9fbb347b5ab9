package bloom

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
)

// What is wrong with an envelope. Errors of [ReadFrom] match one of these, or are those of the reader.
var (
	// ErrFormat: this is no filter, or not all of one.
	ErrFormat = errors.New("bloom: not a filter")
	// ErrNewerVersion: a later release has written it.
	ErrNewerVersion = errors.New("bloom: written by a newer version")
	// ErrTooLarge: the filter is larger than the caller allows, or than any may be.
	ErrTooLarge = errors.New("bloom: filter too large")
	// ErrChecksum: the filter was damaged on its way.
	ErrChecksum = errors.New("bloom: checksum mismatch")
)

const (
	magic   = "rvkbloom"
	version = 1

	headerSize   = 48 // before the payload
	sizesSize    = 24 // m, k, m at the begin of the payload
	checksumSize = 4
	overhead     = headerSize + sizesSize + checksumSize

	chunk = 16 << 10 // bytes that are read or written at once
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// EncodedSize returns how many bytes WriteTo writes.
func (f *Filter) EncodedSize() int64 { return overhead + int64(f.m/8) }

// WriteTo writes the filter in its envelope; see the package comment. Keys that are added meanwhile
// may be in it or not.
func (f *Filter) WriteTo(w io.Writer) (int64, error) {
	if f.m == 0 {
		return 0, fmt.Errorf("%w: the zero Filter cannot be written", ErrSize)
	}
	meta := f.Meta() // before the bits: what is counted is there
	b := make([]byte, 0, chunk)
	b = append(b, magic...)
	for _, v := range [...]uint64{version, meta.KeyID, meta.Count, uint64(meta.AsOf), sizesSize + f.m/8, f.m, f.k, f.m} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	var written int64
	var sum uint32
	flush := func() error {
		sum = crc32.Update(sum, castagnoli, b)
		n, err := w.Write(b)
		written += int64(n)
		b = b[:0]
		return err
	}
	for i := range f.words {
		if len(b)+8 > chunk {
			if err := flush(); err != nil {
				return written, fmt.Errorf("write filter: %w", err)
			}
		}
		b = binary.BigEndian.AppendUint64(b, atomic.LoadUint64(&f.words[i]))
	}
	if err := flush(); err != nil {
		return written, fmt.Errorf("write filter: %w", err)
	}
	n, err := w.Write(binary.BigEndian.AppendUint32(b, sum))
	written += int64(n)
	if err != nil {
		return written, fmt.Errorf("write filter: %w", err)
	}
	return written, nil
}

// ReadFrom reads a filter of at most limit bytes, envelope included, and nothing beyond its end. It checks all sizes
// before it reads the bits, and allocates in proportion to what it has read, not to what the header says. Errors match
// [ErrFormat], [ErrNewerVersion], [ErrTooLarge] or [ErrChecksum], or are those of r.
func ReadFrom(r io.Reader, limit int64) (*Filter, error) {
	in := reader{r: r}
	f, size, err := in.header()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, size, limit)
	}
	if err := in.words(f); err != nil {
		return nil, err
	}
	want := in.sum
	var sum [checksumSize]byte
	if err := in.read(sum[:]); err != nil {
		return nil, err
	}
	if binary.BigEndian.Uint32(sum[:]) != want {
		return nil, ErrChecksum
	}
	return f, nil
}

// reader keeps the checksum of what it has read.
type reader struct {
	r   io.Reader
	sum uint32
}

func (in *reader) read(b []byte) error {
	n, err := io.ReadFull(in.r, b)
	in.sum = crc32.Update(in.sum, castagnoli, b[:n])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", ErrFormat, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return fmt.Errorf("read filter: %w", err)
	}
	return nil
}

// header returns a filter without bits, and the size of the whole envelope.
func (in *reader) header() (f *Filter, size int64, err error) {
	var b [headerSize + sizesSize]byte
	field := func(i int) uint64 { return binary.BigEndian.Uint64(b[8*i:]) }
	// The version comes first: a later one may be shorter.
	if err := in.read(b[:16]); err != nil {
		return nil, 0, err
	}
	if string(b[:8]) != magic || field(1) == 0 {
		return nil, 0, ErrFormat
	}
	if field(1) > version {
		return nil, 0, fmt.Errorf("%w: %d, known is %d", ErrNewerVersion, field(1), version)
	}
	if err := in.read(b[16:]); err != nil {
		return nil, 0, err
	}
	length, m, k := field(5), field(6), field(7)
	if m > MaxBits {
		return nil, 0, fmt.Errorf("%w: %d bits, limit %d", ErrTooLarge, m, uint64(MaxBits))
	}
	if err := checkSize(m, k); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if field(8) != m || length != sizesSize+m/8 {
		return nil, 0, fmt.Errorf("%w: %d bits in a set of %d and a payload of %d bytes", ErrFormat, m, field(8), length)
	}
	f = &Filter{m: m, k: k}
	f.SetLabel(field(2), int64(field(4)))
	f.count.Store(field(3))
	return f, f.EncodedSize(), nil
}

// words reads the bits of f.
func (in *reader) words(f *Filter) error {
	total := int(f.m / 64)
	words := make([]uint64, 0, min(total, chunk/8))
	b := make([]byte, min(total*8, chunk))
	for len(words) < total {
		b = b[:min(len(b), 8*(total-len(words)))]
		if err := in.read(b); err != nil {
			return err
		}
		if len(words)+len(b)/8 > cap(words) {
			words = append(make([]uint64, 0, min(total, 2*cap(words))), words...)
		}
		for i := 0; i < len(b); i += 8 {
			words = append(words, binary.BigEndian.Uint64(b[i:]))
		}
	}
	f.words = words
	return nil
}
