package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// The codecs replace those of connect for two reasons: its errors quote the message, tokens included, and its
// JSON ignores unknown members, so that a misspelled field would silently revoke less.
//
// A codec does not fail. Connect would answer before any interceptor runs, without an ErrorDetail; so what does not decode
// becomes an empty message with a mark that [decoded] finds.
type jsonCodec struct{ name string }

func (c jsonCodec) Name() string { return c.name }

// Marshal writes compact JSON: protojson alone puts blanks in here and there, differently in every build.
func (jsonCodec) Marshal(m any) ([]byte, error) {
	b, err := protojson.Marshal(m.(proto.Message))
	if err != nil {
		return nil, err
	}
	out := bytes.NewBuffer(make([]byte, 0, len(b)))
	err = json.Compact(out, b)
	return out.Bytes(), err
}

func (jsonCodec) Unmarshal(b []byte, m any) error {
	msg := m.(proto.Message)
	if partsJSON(b) > maxParts(msg) {
		mark(msg, flaw{what: tooManyParts})
	} else if err := protojson.Unmarshal(b, msg); err != nil {
		mark(msg, flawOf(err, b))
	}
	return nil
}

type protoCodec struct{}

func (protoCodec) Name() string { return "proto" }

func (protoCodec) Marshal(m any) ([]byte, error) { return proto.Marshal(m.(proto.Message)) }

func (protoCodec) MarshalAppend(b []byte, m any) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, m.(proto.Message))
}

func (protoCodec) Unmarshal(b []byte, m any) error {
	msg := m.(proto.Message)
	if quickMessage(b, msg) {
		return nil
	}
	if most := maxParts(msg); partsProto(b, msg.ProtoReflect().Descriptor(), most, maxNesting) < 0 {
		mark(msg, flaw{what: tooManyParts})
	} else if err := proto.Unmarshal(b, msg); err != nil {
		mark(msg, flaw{what: notProto})
	}
	return nil
}

// Two bytes can become a value of a hundred: the length of a message alone does not bound what it takes in memory, so its
// parts are counted before it is decoded. In JSON these are objects, arrays and what stands behind a comma, in the binary
// format messages within messages.
const (
	partsOfOne   = 4096    // in a message about one token
	partsOfMany  = 100_000 // in a batch: a hundred for each item
	maxNesting   = 128
	tooManyLimit = "at most 4096 values, 100000 in a batch, nested at most 128 deep"
)

func maxParts(m proto.Message) int {
	switch m.(type) {
	case *revokdv1.RevokeBatchRequest, *revokdv1.CheckBatchRequest, *revokdv1.RevokeStreamRequest:
		return partsOfMany
	}
	return partsOfOne
}

func partsJSON(b []byte) (n int) {
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == ',':
			n++
		case c == '{' || c == '[':
			n++
			if depth++; depth > maxNesting {
				return math.MaxInt
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return n
}

// partsProto returns how many of left remain, negative if they do not suffice. What is malformed counts as far as it can be read.
func partsProto(b []byte, d protoreflect.MessageDescriptor, left, nesting int) int {
	for len(b) > 0 && left >= 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return left
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return left
		}
		value := b[:n]
		b = b[n:]
		f := d.Fields().ByNumber(number)
		if kind != protowire.BytesType || f == nil || f.Message() == nil {
			continue
		}
		if nesting == 0 {
			return -1
		}
		inner, _ := protowire.ConsumeBytes(value)
		left = partsProto(inner, f.Message(), left-1, nesting-1)
	}
	return left
}

// flaw says what is wrong with a message and where, without a byte of it.
type flaw struct{ what, line, column uint64 }

const (
	notProto uint64 = iota
	notJSON
	unknownMember
	tooManyParts
)

var position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)

func flawOf(err error, b []byte) flaw {
	text := err.Error()
	f := flaw{what: notJSON}
	if strings.Contains(text, ": unknown field \"") {
		f.what = unknownMember
	}
	if at := position.FindStringSubmatch(text); at != nil {
		f.line, _ = strconv.ParseUint(at[1], 10, 32)
		f.column, _ = strconv.ParseUint(at[2], 10, 32)
		return f
	}
	// protojson does not say where a text ends too early, or which byte is no UTF-8.
	var syntax *json.SyntaxError
	if errors.As(json.Unmarshal(b, new(json.RawMessage)), &syntax) {
		before := b[:min(max(0, syntax.Offset-1), int64(len(b)))]
		if strings.Contains(syntax.Error(), "unexpected end") {
			before = b
		}
		f.line = uint64(bytes.Count(before, []byte("\n"))) + 1
		f.column = uint64(len(before)-(bytes.LastIndexByte(before, '\n')+1)) + 1
	}
	return f
}

func (f flaw) String() string {
	var s string
	switch f.what {
	case notJSON:
		s = "valid JSON of the message expected"
	case unknownMember:
		s = "the message has no such member"
	default:
		s = "the message in the binary format of Protobuf expected"
	}
	if f.line > 0 {
		s += fmt.Sprintf(" at line %d, column %d", f.line, f.column)
	}
	return s
}

// markNumber is the largest field number there is; no message of ours will have it.
const markNumber = protowire.Number(1<<29 - 1)

func mark(m proto.Message, f flaw) {
	proto.Reset(m)
	b := protowire.AppendTag(nil, markNumber, protowire.BytesType)
	b = protowire.AppendBytes(b, binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(nil, f.what), f.line), f.column))
	m.ProtoReflect().SetUnknown(b)
}

// decoded returns the error that a codec has left in a message. A caller who sends the mark himself is refused too.
func decoded(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	number, kind, n := protowire.ConsumeTag(msg.ProtoReflect().GetUnknown())
	if n < 0 || number != markNumber || kind != protowire.BytesType {
		return nil
	}
	b, _ := protowire.ConsumeBytes(msg.ProtoReflect().GetUnknown()[n:])
	var parts [3]uint64
	for i := range parts {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			break
		}
		parts[i], b = v, b[n:]
	}
	if parts[0] == tooManyParts {
		return bad("body", "too_large", "", tooManyLimit)
	}
	return bad("body", "malformed", "", flaw{parts[0], parts[1], parts[2]}.String())
}
