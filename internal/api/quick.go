package api

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// A million revocations come as a million small messages, which the general decoder makes by reflection, with sixteen allocations each. What
// nearly all of them look like is decoded here: by a match of strings, with times, a reason and a comment, each field once. For anything else, and for whatever
// is malformed, the answer is false, and the general decoder has to say what it is.

// quickMessage decodes the messages that hold many items.
func quickMessage(b []byte, m proto.Message) bool {
	q := quick{text: string(b)}
	switch m := m.(type) {
	case *revokdv1.RevokeStreamRequest:
		if !q.message(b) {
			return false
		}
		m.Items, m.Options = q.list, q.options
	case *revokdv1.RevokeBatchRequest:
		if !q.message(b) {
			return false
		}
		m.Items, m.Options = q.list, q.options
	default:
		return false
	}
	return true
}

// quick holds what the items of a message are made of, each kind in one piece.
type quick struct {
	text    string   // the message: values are parts of it
	names   []string // of claims: not parts of it, since shapes keep them
	list    []*revokdv1.RevokeRequest
	options *revokdv1.WriteOptions

	items   []revokdv1.RevokeRequest
	targets []revokdv1.RevokeRequest_Match
	matches []revokdv1.Match
	times   []timestamppb.Timestamp
}

// next takes a slab's next element.
func next[T any](slab *[]T) *T {
	v := &(*slab)[0]
	*slab = (*slab)[1:]
	return v
}

// field is one field of a message: a varint, or where its bytes lie in the text.
type field struct {
	number   protowire.Number
	varint   uint64
	from, to int
	bytes    bool
}

// each calls fn for the fields between two places of the message, until it says no. Fields of other types than varint and bytes are for the general decoder.
func each(b []byte, from, to int, fn func(field) bool) bool {
	for from < to {
		number, kind, n := protowire.ConsumeTag(b[from:to])
		if n < 0 {
			return false
		}
		from += n
		f := field{number: number}
		switch kind {
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(b[from:to])
		case protowire.BytesType:
			var inner []byte
			inner, n = protowire.ConsumeBytes(b[from:to])
			f.bytes, f.to = true, from+n
			f.from = f.to - len(inner)
		default:
			return false
		}
		if n < 0 || !fn(f) {
			return false
		}
		from += n
	}
	return true
}

func (q *quick) message(b []byte) bool {
	n := 0
	if !each(b, 0, len(b), func(f field) bool {
		n++
		return f.bytes && n <= maxItems+1
	}) {
		return false
	}
	q.list = make([]*revokdv1.RevokeRequest, 0, n)
	q.items, q.targets = make([]revokdv1.RevokeRequest, n), make([]revokdv1.RevokeRequest_Match, n)
	q.matches, q.times = make([]revokdv1.Match, n), make([]timestamppb.Timestamp, 2*n)
	return each(b, 0, len(b), func(f field) bool {
		switch {
		case f.number == 1:
			item := next(&q.items)
			q.list = append(q.list, item)
			return q.item(b, f, item)
		case f.number == 2 && q.options == nil:
			q.options = new(revokdv1.WriteOptions)
			return proto.Unmarshal(b[f.from:f.to], q.options) == nil
		}
		return false
	})
}

func (q *quick) item(b []byte, in field, m *revokdv1.RevokeRequest) bool {
	seen := 0 // a bit for each field
	return each(b, in.from, in.to, func(f field) bool {
		if f.number > 9 || seen&(1<<f.number) != 0 {
			return false
		}
		seen |= 1 << f.number
		switch {
		case f.number == 2 && f.bytes:
			target := next(&q.targets)
			target.Match, m.Target = next(&q.matches), target
			return q.match(b, f, target.Match)
		case f.number == 5 && f.bytes:
			m.IssuedBefore = next(&q.times)
			return when(b, f, m.IssuedBefore)
		case f.number == 6 && f.bytes:
			m.ExpiresAt = next(&q.times)
			return when(b, f, m.ExpiresAt)
		case f.number == 8 && !f.bytes:
			m.Reason = revokdv1.Reason(int32(f.varint))
			return true
		case f.number == 9 && f.bytes:
			m.Comment = q.text[f.from:f.to]
			return utf8.ValidString(m.Comment)
		}
		return false
	})
}

// match decodes a match of strings, of no more than a few claims.
func (q *quick) match(b []byte, in field, m *revokdv1.Match) bool {
	const most = 8
	n := 0
	return each(b, in.from, in.to, func(f field) bool {
		if n++; f.number != 1 || !f.bytes || n > most {
			return false
		}
		var name, value string
		seen := 0
		ok := each(b, f.from, f.to, func(f field) bool {
			seen++
			switch {
			case f.number == 1 && f.bytes && seen == 1:
				name = q.name(q.text[f.from:f.to])
			case f.number == 2 && f.bytes && seen == 2:
				value = q.text[f.from:f.to]
			default:
				return false
			}
			return true
		})
		if !ok || seen != 2 || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return false
		}
		if m.Claims == nil {
			m.Claims = make(map[string]string, 2)
		}
		m.Claims[name] = value
		return true
	})
}

// name returns a copy of a name, the same for all that are equal as long as there are few.
func (q *quick) name(text string) string {
	if i := slices.Index(q.names, text); i >= 0 {
		return q.names[i]
	}
	text = strings.Clone(text)
	if len(q.names) < 8 {
		q.names = append(q.names, text)
	}
	return text
}

func when(b []byte, in field, t *timestamppb.Timestamp) bool {
	last := protowire.Number(0) // in order, so each once
	return each(b, in.from, in.to, func(f field) bool {
		switch {
		case f.bytes || f.number <= last:
			return false
		case f.number == 1:
			t.Seconds = int64(f.varint)
		case f.number == 2 && f.varint <= math.MaxInt32:
			t.Nanos = int32(f.varint)
		default:
			return false
		}
		last = f.number
		return true
	})
}
