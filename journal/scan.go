package journal

import (
	"encoding/binary"
	"errors"
	"io"
)

const (
	scanChunk = 1 << 20
	ioBlock   = 4096
)

// gap is a part of a file that holds no valid frame.
type gap struct {
	offset, bytes int64
	tail          bool  // nothing valid follows
	err           error // the file could not even be read there
}

// scanner reads the frames of a file. It never trusts a length before it has compared it with what the file has left.
type scanner struct {
	file       io.ReaderAt
	limit      int64 // read no further
	segment    uint64
	recordSize int

	buf    []byte // window of the file
	at     int64  // its offset
	failed error  // a read failed since the last gap
}

// scan passes every valid frame of the first limit bytes in order to fn, and returns what lies between them.
// The error is fn's. fn must not keep the frame.
func (s *scanner) scan(fn func(offset int64, f frame) error) ([]gap, error) {
	var gaps []gap
	for off := int64(0); off < s.limit; {
		f, ok := s.frame(off)
		if !ok {
			next := s.resync(off + frameAlign)
			gaps = append(gaps, gap{offset: off, bytes: next - off, tail: next == s.limit, err: s.failed})
			s.failed = nil
			off = next
			continue
		}
		if err := fn(off, f); err != nil {
			return gaps, err
		}
		off += int64(f.size)
	}
	return gaps, nil
}

// first returns the first frame, for its metadata.
func (s *scanner) first() (frame, bool) { return s.frame(0) }

func (s *scanner) frame(off int64) (frame, bool) {
	b := s.window(off, headerSize)
	h, err := parseHeader(b, s.recordSize)
	if err != nil || h.segment != s.segment || int64(h.length) > s.limit-off-headerSize {
		return frame{}, false
	}
	f, err := parseFrame(s.window(off, headerSize+h.length), s.recordSize, s.segment, off)
	return f, err == nil
}

// resync returns the offset of the first valid frame at or after off, or limit. Frames are aligned.
func (s *scanner) resync(off int64) int64 {
	for ; off <= s.limit-headerSize; off += frameAlign {
		b := s.window(off, headerSize)
		if binary.LittleEndian.Uint32(b) != frameMagic {
			continue
		}
		if _, ok := s.frame(off); ok {
			return off
		}
	}
	return s.limit
}

// window returns n bytes at off, less at the limit.
func (s *scanner) window(off int64, n int) []byte {
	n = int(min(int64(n), s.limit-off))
	if off < s.at || off+int64(n) > s.at+int64(len(s.buf)) {
		size := int(min(int64(max(n, scanChunk)), s.limit-off))
		if cap(s.buf) < size {
			s.buf = make([]byte, size)
		}
		s.buf, s.at = s.buf[:size], off
		s.fill()
	}
	return s.buf[off-s.at:][:n]
}

// fill reads the window. What cannot be read is zero, which is never a frame.
func (s *scanner) fill() {
	n, err := s.file.ReadAt(s.buf, s.at)
	if n == len(s.buf) {
		return
	}
	clear(s.buf[n:])
	if errors.Is(err, io.EOF) {
		return
	}
	s.failed = err
	for i := n; i < len(s.buf); {
		end := min(len(s.buf), i+ioBlock-int((s.at+int64(i))%ioBlock))
		if k, err := s.file.ReadAt(s.buf[i:end], s.at+int64(i)); err != nil {
			clear(s.buf[i+k : end])
		}
		i = end
	}
}
