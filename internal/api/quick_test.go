package api

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/internal/alloctest"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func encoded(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// plainItem is an item as nearly all of them are.
func plainItem(i int) *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://issuer.example", "jti": fmt.Sprint("bulk-", i)}}},
		ExpiresAt: timestamppb.New(noon.Add(time.Hour)),
	}
}

// What is decoded quickly is what the general decoder makes of it, and what should be quick is.
func TestQuickMessage(t *testing.T) {
	with := func(fn func(*revokdv1.RevokeRequest)) *revokdv1.RevokeRequest {
		m := plainItem(1)
		fn(m)
		return m
	}
	options := &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_QUORUM, IdempotencyKey: "k"}
	many := func(n int) (list []*revokdv1.RevokeRequest) {
		for i := range n {
			list = append(list, plainItem(i))
		}
		return list
	}
	entry := func(fields ...string) []byte { // a match with one entry of these fields: 1 for the key, 2 for the value, in turns
		var b []byte
		for i, f := range fields {
			b = protowire.AppendString(protowire.AppendTag(b, protowire.Number(i%2+1), protowire.BytesType), f)
		}
		b = protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
		b = protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), b)
		return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
	}
	for name, c := range map[string]struct {
		raw   []byte
		quick bool
	}{
		"plain":         {encoded(t, &revokdv1.RevokeStreamRequest{Items: many(maxItems)}), true},
		"with options":  {encoded(t, &revokdv1.RevokeStreamRequest{Items: many(3), Options: options}), true},
		"nothing":       {nil, true},
		"an empty item": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{{}}}), true},
		"all of it": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{with(func(m *revokdv1.RevokeRequest) {
			m.IssuedBefore, m.Reason, m.Comment = &timestamppb.Timestamp{Seconds: 5, Nanos: 999_999_999}, revokdv1.Reason_REASON_LOGOUT, "why"
		})}}), true},
		"an empty match": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{with(func(m *revokdv1.RevokeRequest) {
			m.Target = &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{}}
		})}}), true},
		"an integer": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{with(func(m *revokdv1.RevokeRequest) {
			m.GetMatch().Integers = map[string]int64{"version": 1}
		})}}), false},
		"a token": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{{Target: &revokdv1.RevokeRequest_Token{Token: "t"}}}}), false},
		"nine claims": {encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{with(func(m *revokdv1.RevokeRequest) {
			for i := range 9 {
				m.GetMatch().GetClaims()[fmt.Sprint(i)] = ""
			}
		})}}), false},
		"too many":             {encoded(t, &revokdv1.RevokeStreamRequest{Items: many(maxItems + 2)}), false},
		"a name twice":         {append(entry("a", "1"), entry("a", "2")...), true},
		"an entry without key": {entry(), false},
		"a value twice":        {entry("a", "1", "b", "2"), false},
		"a value alone":        {entry("a"), false},
		"no UTF-8":             {entry("a", "\xff"), false},
		"cut off":              {encoded(t, &revokdv1.RevokeStreamRequest{Items: many(1)})[:20], false},
		"an unknown field":     {protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1), false},
		"a match twice": {protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType),
			append(encoded(t, plainItem(1)), encoded(t, plainItem(2))...)), false},
	} {
		got := new(revokdv1.RevokeStreamRequest)
		if quickMessage(c.raw, got) != c.quick {
			t.Errorf("%s: quick is %v", name, !c.quick)
		}
		sameAsGeneral(t, name, c.raw)
	}
	batch := encoded(t, &revokdv1.RevokeBatchRequest{Items: many(3), Options: options})
	got := new(revokdv1.RevokeBatchRequest)
	if !quickMessage(batch, got) || len(got.GetItems()) != 3 || !proto.Equal(got.GetOptions(), options) {
		t.Errorf("a batch: %v", got)
	}
	if quickMessage(nil, new(revokdv1.RevokeRequest)) {
		t.Error("another message")
	}
}

// The names of claims go into shapes, which are kept: they must not hold on to the message.
func TestQuickNamesAreCopies(t *testing.T) {
	raw := encoded(t, &revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{plainItem(1), plainItem(2)}})
	q := quick{text: string(raw)}
	if !q.message(raw) {
		t.Fatal("not quick")
	}
	begin := uintptr(unsafe.Pointer(unsafe.StringData(q.text)))
	for _, item := range q.list {
		for name := range item.GetMatch().GetClaims() {
			if at := uintptr(unsafe.Pointer(unsafe.StringData(name))); at >= begin && at < begin+uintptr(len(q.text)) {
				t.Errorf("%q is a part of the message", name)
			}
		}
	}
}

func sameAsGeneral(t testing.TB, name string, raw []byte) {
	t.Helper()
	var got *revokdv1.RevokeStreamRequest
	var quick bool
	// An item of two bytes takes 400 in memory with its times and its match, which has a map if it is of nine.
	alloctest.AtMost(t, 256*len(raw)+64<<10, func() {
		got = new(revokdv1.RevokeStreamRequest)
		quick = quickMessage(raw, got)
	})
	if !quick {
		return
	}
	want := new(revokdv1.RevokeStreamRequest)
	if partsProto(raw, want.ProtoReflect().Descriptor(), partsOfMany, maxNesting) < 0 {
		t.Errorf("%s: more parts than allowed", name)
	}
	if err := proto.Unmarshal(raw, want); err != nil {
		t.Errorf("%s: %v", name, err)
	} else if !proto.Equal(got, want) {
		t.Errorf("%s: %v, want %v", name, got, want)
	}
}

// FuzzQuick: whatever is decoded quickly the general decoder decodes to the same, and it costs what it is worth.
func FuzzQuick(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 4 {
		m := &revokdv1.RevokeStreamRequest{}
		for i := range n {
			m.Items = append(m.Items, plainItem(i))
			m.GetItems()[i].Reason = revokdv1.Reason(rng.IntN(5))
			m.GetItems()[i].Comment = strings.Repeat("x", rng.IntN(5))
		}
		f.Add(encoded(f, m))
	}
	f.Add(encoded(f, &revokdv1.RevokeStreamRequest{Options: &revokdv1.WriteOptions{IdempotencyKey: "k"}}))
	f.Fuzz(func(t *testing.T, raw []byte) { sameAsGeneral(t, "message", raw) })
}
