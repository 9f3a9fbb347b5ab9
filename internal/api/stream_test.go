package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/revokd/revokd/internal/devissuer"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

func jti(i int) *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{
		Claims: map[string]string{"iss": "i", "jti": fmt.Sprintf("canary-%d", i)},
	}}}
}

func items(from, n int) []*revokdv1.RevokeRequest {
	list := make([]*revokdv1.RevokeRequest, n)
	for i := range list {
		list[i] = jti(from + i)
	}
	return list
}

func (f *fixture) stream() *connect.BidiStreamForClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse] {
	c := revokdv1connect.NewRevocationServiceClient(f.h2c(), f.url)
	return c.RevokeStream(f.Context())
}

// receiveAll reads to the end of a stream.
func receiveAll(s *connect.BidiStreamForClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]) (all []*revokdv1.RevokeStreamResponse, err error) {
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, m)
	}
}

// records waits for the table to hold n records.
func (f *fixture) records(n int) {
	f.Helper()
	if got := f.node.Status().Table.Items; got != n {
		f.Errorf("%d records, want %d", got, n)
	}
}

func TestStream(t *testing.T) {
	f := start(t)
	s := f.stream()
	const batches = 7
	go func() {
		for i := range batches {
			m := &revokdv1.RevokeStreamRequest{Items: items(i*300, 300)}
			if i == 2 {
				m.Items[17] = &revokdv1.RevokeRequest{}                  // refused
				m.Items[18] = jti(0)                                     // again
				m.Items[19].ExpiresAt = at(noon.UnixMilli() - 3600*1000) // expired
			}
			if s.Send(m) != nil {
				return
			}
		}
		_ = s.CloseRequest()
	}()
	all, err := receiveAll(s)
	if err != nil {
		t.Fatal(err)
	}
	var refused []*revokdv1.IndexedError
	acknowledged := int64(0)
	for i, m := range all {
		if m.GetAcknowledged() < acknowledged {
			t.Errorf("acknowledged falls from %d to %d", acknowledged, m.GetAcknowledged())
		}
		acknowledged = m.GetAcknowledged()
		refused = append(refused, m.GetErrors()...)
		if last := i == len(all)-1; last != (m.GetReceipt() != nil) {
			t.Errorf("message %d of %d: receipt %v", i, len(all), m.GetReceipt())
		}
	}
	last := all[len(all)-1]
	// What comes twice in one durable write is written twice.
	want := fmt.Sprintf("%d %d 1 1", batches*300, batches*300-2)
	if got := fmt.Sprint(last.GetAcknowledged(), last.GetRevoked()+last.GetCovered(), last.GetAlreadyExpired(), last.GetRefused()); got != want {
		t.Errorf("totals %s, want %s", got, want)
	}
	if len(refused) != 1 || refused[0].GetIndex() != 617 || refused[0].GetError().GetDetail().GetKind() != "missing" {
		t.Errorf("errors %v", refused)
	}
	f.records(batches*300 - 3)
	if n := f.server.pending.Load(); n != 0 {
		eventually(t, "all bytes are given back", func() bool { return f.server.pending.Load() == 0 })
	}
}

// The same through grpc-go.
func TestStreamGRPC(t *testing.T) {
	f := start(t)
	conn, err := grpc.NewClient(strings.TrimPrefix(f.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, streamProcedure)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.SendMsg(&revokdv1.RevokeStreamRequest{Items: items(i*1000, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var last *revokdv1.RevokeStreamResponse
	for {
		m := new(revokdv1.RevokeStreamResponse)
		if err := s.RecvMsg(m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		last = m
	}
	if last.GetAcknowledged() != 3000 || last.GetReceipt().GetDurability() != revokdv1.Durability_DURABILITY_MEMORY {
		t.Errorf("last message %v", last)
	}
	f.records(3000)
}

// An empty stream has a last message too.
func TestStreamEmpty(t *testing.T) {
	f := start(t)
	s := f.stream()
	if err := s.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	all, err := receiveAll(s)
	if err != nil || len(all) != 1 || all[0].GetAcknowledged() != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

// Progress comes while the stream is open: a caller may wait for it.
func TestStreamProgress(t *testing.T) {
	f := start(t)
	s := f.stream()
	for i := range 3 {
		if err := s.Send(&revokdv1.RevokeStreamRequest{Items: items(i, 1)}); err != nil {
			t.Fatal(err)
		}
		m, err := s.Receive()
		if err != nil || m.GetAcknowledged() != int64(i+1) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	if err := s.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if _, err := receiveAll(s); err != nil {
		t.Fatal(err)
	}
}

func TestStreamRefuses(t *testing.T) {
	small := func(c *setup) { c.api.Limits.Batch = 200_000 }
	key := &revokdv1.WriteOptions{IdempotencyKey: "k"}
	for _, c := range []struct {
		name               string
		messages           []*revokdv1.RevokeStreamRequest
		code, kind, field  string
		acknowledged, held int
	}{
		{"1001 items", []*revokdv1.RevokeStreamRequest{{Items: items(0, 1000)}, {Items: items(1000, 1001)}}, "invalid_argument", "out_of_range", "items", 1000, 1000},
		{"key", []*revokdv1.RevokeStreamRequest{{Items: items(0, 1), Options: key}}, "invalid_argument", "not_allowed", "options.idempotency_key", 0, 0},
		{"late options", []*revokdv1.RevokeStreamRequest{{Items: items(0, 1)}, {Options: &revokdv1.WriteOptions{}}}, "invalid_argument", "not_allowed", "options", 1, 1},
		{"options", []*revokdv1.RevokeStreamRequest{{Options: &revokdv1.WriteOptions{AckTimeout: durationpb.New(time.Hour)}}}, "invalid_argument", "out_of_range", "options.ack_timeout", 0, 0},
		{"bytes", []*revokdv1.RevokeStreamRequest{{Items: items(0, 1)}, {Items: []*revokdv1.RevokeRequest{{Comment: strings.Repeat("canary", 40_000)}}}}, "invalid_argument", "too_large", "body", 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, small)
			s := f.stream()
			go func() {
				for _, m := range c.messages {
					if s.Send(m) != nil {
						return
					}
				}
			}()
			all, err := receiveAll(s)
			if err == nil {
				t.Fatal("no error")
			}
			r := f.connectError(err)
			if r.code != c.code || r.detail.GetKind() != c.kind || r.detail.GetField() != c.field {
				t.Errorf("%s %v", r.code, r.detail)
			}
			acknowledged := 0
			if len(all) > 0 {
				acknowledged = int(all[len(all)-1].GetAcknowledged())
			}
			if acknowledged != c.acknowledged {
				t.Errorf("acknowledged %d, want %d", acknowledged, c.acknowledged)
			}
			f.records(c.held)
		})
	}
}

// A stream may wait for as long as Idle says, whatever the limits of its parts.
func TestStreamIdle(t *testing.T) {
	f := start(t, func(c *setup) {
		c.api.Limits.Read, c.api.Limits.Deadline, c.api.Limits.Idle = 30*time.Millisecond, 30*time.Millisecond, 200*time.Millisecond
	})
	s := f.stream()
	if err := s.Send(&revokdv1.RevokeStreamRequest{Items: items(0, 1)}); err != nil {
		t.Fatal(err)
	}
	all, err := receiveAll(s)
	if r := f.connectError(err); r.code != "deadline_exceeded" || r.detail.GetKind() != "timeout" || len(all) != 1 {
		t.Errorf("%s %v after %v", r.code, r.detail, all)
	}
}

func TestStreamLimit(t *testing.T) {
	f := start(t, func(c *setup) { c.api.Limits.Streams = 1 })
	first := f.stream()
	if err := first.Send(&revokdv1.RevokeStreamRequest{Items: items(0, 1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Receive(); err != nil {
		t.Fatal(err)
	}
	second := f.stream()
	_ = second.Send(&revokdv1.RevokeStreamRequest{})
	_, err := receiveAll(second)
	if r := f.connectError(err); r.code != "resource_exhausted" || r.detail.GetKind() != "busy" || r.retry == "" {
		t.Errorf("%s %v %q", r.code, r.detail, r.retry)
	}
	if err := first.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	if _, err := receiveAll(first); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the place is free", func() bool { return len(f.server.streams) == 0 })
}

// A caller who goes away leaves nothing behind; goleak sees to that.
func TestStreamCanceled(t *testing.T) {
	f := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := revokdv1connect.NewRevocationServiceClient(f.h2c(), f.url).RevokeStream(ctx)
	if err := s.Send(&revokdv1.RevokeStreamRequest{Items: items(0, 10)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(); err != nil {
		t.Fatal(err)
	}
	cancel()
	_ = s.CloseResponse()
	eventually(t, "the stream has ended", func() bool { return len(f.server.streams) == 0 && f.server.pending.Load() == 0 })
}

// The end of the server ends streams, with what was acknowledged.
func TestStreamStops(t *testing.T) {
	f := start(t)
	s := f.stream()
	if err := s.Send(&revokdv1.RevokeStreamRequest{Items: items(0, 10)}); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Receive(); err != nil || m.GetAcknowledged() != 10 {
		t.Fatalf("%v, %v", m, err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- f.stop() }()
	_, err := receiveAll(s)
	if r := f.connectError(err); r.code != "unavailable" || r.detail.GetKind() != "not_ready" {
		t.Errorf("%s %v", r.code, r.detail)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// HTTP/1.1 has no streams in both directions.
func TestStreamNeedsHTTP2(t *testing.T) {
	f := start(t)
	res, err := f.http.Post(f.url+streamProcedure, "application/connect+json", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("status %d", res.StatusCode)
	}
}

// Messages that do not decode end a stream after what came before.
func TestStreamMalformed(t *testing.T) {
	f := start(t)
	good := `{"items":[{"match":{"claims":{"iss":"i","jti":"canary-1"}}}]}`
	var body []byte
	for _, m := range []string{good, `{"items":[{"tokenn":"canary"}]}`} {
		body = append(body, 0, 0, 0, 0, byte(len(m)))
		body = append(body, m...)
	}
	res, err := f.h2c().Post(f.url+streamProcedure, "application/connect+json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	f.clean("the answer", string(b))
	for _, want := range []string{`"acknowledged":`, `"invalid_argument"`, "the message has no such member at line 1, column"} {
		if !strings.Contains(strings.ReplaceAll(string(b), " ", ""), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("no %s in %q", want, b)
		}
	}
	f.records(1)
}

// A stream by tokens verifies each.
func TestStreamTokens(t *testing.T) {
	f := start(t)
	s := f.stream()
	m := new(revokdv1.RevokeStreamRequest)
	for range 20 {
		m.Items = append(m.Items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: f.mint(devissuer.Params{Sub: "canary"})}})
	}
	m.Items[3].Target = &revokdv1.RevokeRequest_Token{Token: m.Items[4].GetToken() + "x"}
	if err := s.Send(m); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	all, err := receiveAll(s)
	if err != nil {
		t.Fatal(err)
	}
	last := all[len(all)-1]
	if last.GetRevoked() != 19 || last.GetRefused() != 1 || all[0].GetErrors()[0].GetIndex() != 3 {
		t.Errorf("%v", all)
	}
}
