package view

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/revokd/revokd/bloom"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/revocation"
)

// ErrFilter: what was read is no [Filtered], or not one that can be used.
var ErrFilter = errors.New("no usable filter of records")

// A filter has 16 bits for each record, of which a record sets 11: what was not added passes with a chance of 1 in 2000.
const (
	filterBits   = 16
	filterHashes = 11
	filterRoom   = 1 << 16 // bits at least

	maxDescription = 8 << 20
	scanPiece      = 20_000
)

// Filtered is a filter of all live records of a replica, with what a client needs to follow on from there: every record that
// Origins covers is in Filter, or has expired.
type Filtered struct {
	KeyID   uint64               // the name of the ring
	Keys    []revocation.RingKey // that records in it may be made under
	Guarded int64                // Unix milliseconds, before the records were read
	Origins []FilteredOrigin
	Live    []revocation.LiveClass
	Filter  *bloom.Filter
}

// FilteredOrigin is an origin, and up to which number of it the filter has everything.
type FilteredOrigin struct {
	replication.Origin
	Number uint64
}

// Filter reads a table. origins and vector must have been taken before.
func Filter(ctx context.Context, table *revocation.Table, keyID uint64, origins []replication.Origin, vector []replication.VectorEntry, guarded int64) (*Filtered, error) {
	records, _ := table.Size()
	bits := max(uint64(records+records/16)*filterBits, filterRoom)
	filter, err := bloom.FromSize((bits+63)&^63, filterHashes)
	if err != nil {
		return nil, err
	}
	filter.SetLabel(keyID, guarded)
	f := &Filtered{KeyID: keyID, Guarded: guarded, Filter: filter}
	numbers := make(map[uint32]uint64, len(vector))
	for _, v := range vector {
		numbers[v.Index] = v.Number
	}
	for _, o := range origins {
		f.Origins = append(f.Origins, FilteredOrigin{o, numbers[o.Index]})
	}
	var from revocation.Fingerprint
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		from, more = table.Each(from, scanPiece, guarded, func(r revocation.Record, _ uint64) {
			filter.Add(r.Fingerprint.Hi, r.Fingerprint.Lo)
		})
	}
	f.Keys = table.Ring().Keys()
	f.Live = table.LiveClasses(guarded) // behind the scan: whatever it has seen is in here
	return f, nil
}

// described is what precedes the filter, as JSON. Numbers beyond 53 bits are strings.
type described struct {
	Version int               `json:"version"`
	KeyID   uint64            `json:"key_id,string"`
	Keys    []describedKey    `json:"keys,omitempty"`
	Guarded int64             `json:"guarded_ms"`
	Origins []describedOrigin `json:"origins"`
	Live    []describedLive   `json:"live"`
}

type describedOrigin struct {
	ID      uint64 `json:"id,string"`
	Node    string `json:"node"`
	Sealed  uint64 `json:"sealed,omitempty"`
	Expires uint32 `json:"expires,omitempty"`
	Number  uint64 `json:"number"`
}

type describedKey struct {
	ID     uint64 `json:"id,string"`
	Number uint8  `json:"number"`
}

type describedLive struct {
	Shape []byte `json:"shape"` // its definition
	Class uint8  `json:"class"`
	Key   uint8  `json:"key,omitempty"` // its number
	Until uint32 `json:"until"`
}

const filteredVersion = 1

// WriteTo writes the length of a JSON document, four bytes big-endian, the document, and the filter in its envelope.
func (f *Filtered) WriteTo(w io.Writer) (int64, error) {
	d := described{Version: filteredVersion, KeyID: f.KeyID, Guarded: f.Guarded}
	for _, k := range f.Keys {
		d.Keys = append(d.Keys, describedKey{uint64(k.ID), k.Number})
	}
	for _, o := range f.Origins {
		d.Origins = append(d.Origins, describedOrigin{uint64(o.ID), o.Node, o.Sealed, o.Expires, o.Number})
	}
	for _, l := range f.Live {
		b, _ := l.Shape.AppendBinary(nil)
		d.Live = append(d.Live, describedLive{b, uint8(l.Class), l.Key, l.Until})
	}
	text, err := json.Marshal(d)
	if err != nil {
		return 0, err
	}
	if len(text) > maxDescription {
		return 0, fmt.Errorf("%w: the description has %d bytes, limit %d", ErrFilter, len(text), maxDescription)
	}
	n, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	if err != nil {
		return int64(n), err
	}
	m, err := f.Filter.WriteTo(w)
	return int64(n) + m, err
}

// ReadFiltered reads what WriteTo has written, a filter of at most limit bytes. Errors match [ErrFilter], or are those of
// [bloom.ReadFrom] and of r.
func ReadFiltered(r io.Reader, limit int64) (*Filtered, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var size [4]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return nil, fmt.Errorf("read filter: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxDescription {
		return nil, fmt.Errorf("%w: the description has %d bytes, limit %d", ErrFilter, n, maxDescription)
	}
	text, err := io.ReadAll(io.LimitReader(in, int64(n)))
	if err != nil {
		return nil, fmt.Errorf("read filter: %w", err)
	}
	var d described
	if err := json.Unmarshal(text, &d); err != nil || len(text) != int(n) {
		return nil, fmt.Errorf("%w: malformed description", ErrFilter)
	}
	if d.Version != filteredVersion || len(d.Origins) > replication.MaxOrigins {
		return nil, fmt.Errorf("%w: version %d with %d origins, limit %d", ErrFilter, d.Version, len(d.Origins), replication.MaxOrigins)
	}
	f := &Filtered{KeyID: d.KeyID, Guarded: d.Guarded}
	if len(d.Keys) > 2 {
		return nil, fmt.Errorf("%w: %d keys", ErrFilter, len(d.Keys))
	}
	for _, k := range d.Keys {
		f.Keys = append(f.Keys, revocation.RingKey{ID: revocation.KeyID(k.ID), Number: k.Number})
	}
	for i, o := range d.Origins {
		if o.Number > replication.MaxNumber || o.Sealed > replication.MaxNumber {
			return nil, fmt.Errorf("%w: an origin's number is out of range", ErrFilter)
		}
		f.Origins = append(f.Origins, FilteredOrigin{replication.Origin{
			Index: uint32(i + 1), ID: replication.OriginID(o.ID), Node: o.Node, Sealed: o.Sealed, Expires: o.Expires,
		}, o.Number})
	}
	for _, l := range d.Live {
		shape, err := revocation.ParseShape(l.Shape)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFilter, err)
		}
		f.Live = append(f.Live, revocation.LiveClass{Shape: shape, Class: revocation.Class(l.Class), Key: l.Key, Until: l.Until})
	}
	if f.Filter, err = bloom.ReadFrom(in, limit); err != nil {
		return nil, err
	}
	if f.Filter.Meta().KeyID != f.KeyID {
		return nil, fmt.Errorf("%w: filter and description have different keys", ErrFilter)
	}
	return f, nil
}
