package api

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// BenchmarkItems: what one message of a stream, a thousand revocations by claims, takes on the node that receives it, without network and disk.
func BenchmarkItems(b *testing.B) {
	f := start(b, func(s *setup) { s.node.Store.MaxItems = 100_000_000; s.node.Store.MaxBytes = 4 << 30 })
	const items = 1000
	var messages [][]byte
	for m := range 200 {
		req := &revokdv1.RevokeStreamRequest{}
		for i := range items {
			req.Items = append(req.Items, plainItem(m*items+i))
		}
		raw, err := proto.Marshal(req)
		if err != nil {
			b.Fatal(err)
		}
		messages = append(messages, raw)
	}
	c := &call{}
	ctx := context.WithValue(b.Context(), callKey{}, c)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		msg := new(revokdv1.RevokeStreamRequest)
		if err := (protoCodec{}).Unmarshal(messages[n%len(messages)], msg); err != nil {
			b.Fatal(err)
		}
		n++
		_, _, err := f.server.writeItems(ctx, msg.GetItems(), node.WriteOptions{Ack: node.AckLocal, Bulk: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := f.server.trail(ctx, streamProcedure, "id", "from").items(ctx, msg.GetItems(), 0, c.wrote, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*items), "ns/item")
}
