package journal

import (
	"encoding/binary"

	"github.com/revokd/revokd/internal/faults"
)

// Seal puts right the checksums of the frames in a file, as far as one leads to the next.
func Seal(file []byte, recordSize int) {
	for off := 0; ; {
		h, err := parseHeader(file[off:], recordSize)
		if err != nil || h.length > len(file)-off-headerSize {
			return
		}
		frame := file[off : off+headerSize+h.length]
		binary.LittleEndian.PutUint32(frame[28:], checksum(frame, int64(off)))
		off += len(frame)
	}
}

// WithMutant returns a configuration with a bug that the tests must notice. An unknown name is a panic: it would prove nothing.
func WithMutant(cfg Config, name string) Config {
	if !faults.Known(name) {
		panic("journal: no mutant is called " + name)
	}
	cfg.mutant = func(asked string) bool { return asked == name }
	return cfg
}

// WithSegments makes small segments.
func (c RepairConfig) WithSegments(bytes int64) RepairConfig {
	c.segmentBytes = bytes
	return c
}

// WithSegments makes small segments.
func (c RestoreConfig) WithSegments(bytes int64) RestoreConfig {
	c.segmentBytes = bytes
	return c
}
