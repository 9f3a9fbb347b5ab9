package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
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
	if err := protojson.Unmarshal(b, msg); err != nil {
		mark(msg, flawOf(err))
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
	if err := proto.Unmarshal(b, msg); err != nil {
		mark(msg, flaw{what: notProto})
	}
	return nil
}

// flaw says what is wrong with a message and where, without a byte of it.
type flaw struct{ what, line, column uint64 }

const (
	notProto uint64 = iota
	notJSON
	unknownMember
)

var position = regexp.MustCompile(`\(line (\d+):(\d+)\)`)

func flawOf(err error) flaw {
	text := err.Error()
	f := flaw{what: notJSON}
	if strings.Contains(text, ": unknown field \"") {
		f.what = unknownMember
	}
	if at := position.FindStringSubmatch(text); at != nil {
		f.line, _ = strconv.ParseUint(at[1], 10, 32)
		f.column, _ = strconv.ParseUint(at[2], 10, 32)
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
	return bad("body", "malformed", "", flaw{parts[0], parts[1], parts[2]}.String())
}
