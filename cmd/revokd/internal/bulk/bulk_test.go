package bulk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// fakeNode is a handler of the generated interface that keeps what it was sent.
type fakeNode struct {
	revokdv1connect.UnimplementedRevocationServiceHandler

	mu      sync.Mutex
	jtis    map[string]int // how often each was sent
	streams int
	options *revokdv1.WriteOptions

	// fail is called before each message of a stream; an error ends the stream.
	fail func(stream, message int) error
	// end is what streams end with once everything has been acknowledged; nil: the receipt.
	end error
	// refuse judges an item.
	refuse func(jti string) *revokdv1.ItemError
}

func (n *fakeNode) RevokeStream(_ context.Context, s *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]) error {
	n.mu.Lock()
	n.streams++
	stream := n.streams
	n.mu.Unlock()
	var out revokdv1.RevokeStreamResponse
	for message := 0; ; message++ {
		in, err := s.Receive()
		if errors.Is(err, io.EOF) {
			if n.end != nil {
				return n.end
			}
			out.Errors = nil
			out.Receipt = &revokdv1.Receipt{Confirmed: []string{"n1"}}
			return s.Send(&out)
		}
		if err != nil {
			return err
		}
		if n.fail != nil {
			if err := n.fail(stream, message); err != nil {
				return err
			}
		}
		out.Errors = nil
		n.take(in, &out)
		if err := s.Send(&out); err != nil {
			return err
		}
	}
}

func (n *fakeNode) take(in *revokdv1.RevokeStreamRequest, out *revokdv1.RevokeStreamResponse) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if in.GetOptions() != nil {
		n.options = in.GetOptions()
	}
	for _, item := range in.GetItems() {
		jti := item.GetMatch().GetClaims()["jti"]
		index := out.GetAcknowledged()
		out.Acknowledged++
		if n.refuse != nil {
			if e := n.refuse(jti); e != nil {
				out.Refused++
				out.Errors = append(out.Errors, &revokdv1.IndexedError{Index: index, Error: e})
				continue
			}
		}
		if n.jtis[jti] > 0 {
			out.Covered++
		} else {
			out.Revoked++
		}
		n.jtis[jti]++
	}
}

func (n *fakeNode) client(t *testing.T) revokdv1connect.RevocationServiceClient {
	t.Helper()
	n.jtis = map[string]int{}
	mux := http.NewServeMux()
	mux.Handle(revokdv1connect.NewRevocationServiceHandler(n))
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	transport := &http.Transport{Protocols: srv.Config.Protocols}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		srv.Close()
	})
	return revokdv1connect.NewRevocationServiceClient(&http.Client{Transport: transport}, srv.URL)
}

func noPause(context.Context, int) {}

// file makes lines with ids; every hundredth is malformed. It returns the ids and the numbers of the bad lines.
func file(n int) (text []byte, ids []string, bad []int64) {
	var b bytes.Buffer
	for i := 1; i <= n; i++ {
		if i%100 == 0 {
			bad = append(bad, int64(i))
			b.WriteString([]string{`{"jti":7}`, `{"jti":"x","oops":1}`, `nonsense`, `{"match":{}}`}[i/100%4] + "\n")
			continue
		}
		id := fmt.Sprintf("id-%d", i)
		ids = append(ids, id)
		fmt.Fprintf(&b, `{"jti":%q,"iss":"https://id.example","exp":1900000000}`+"\n", id)
	}
	return b.Bytes(), ids, bad
}

func (n *fakeNode) missing(ids []string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	missing := 0
	for _, id := range ids {
		if n.jtis[id] == 0 {
			missing++
		}
	}
	return missing
}

func TestRunWithBadLines(t *testing.T) {
	text, ids, bad := file(20_000)
	n := &fakeNode{refuse: func(jti string) *revokdv1.ItemError {
		if strings.HasSuffix(jti, "7777") {
			return &revokdv1.ItemError{Code: "invalid_argument", Message: "refused by the node"}
		}
		return nil
	}}
	client := n.client(t)
	var refused []int64
	last := Progress{}
	done, err := Run(t.Context(), Config{
		Service: client, Input: bytes.NewReader(text),
		Options: &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_LOCAL},
		Refused: func(r Refusal) error { refused = append(refused, r.Line); return nil },
		Settled: func(p Progress) error {
			if p.Line < last.Line || p.Offset < last.Offset {
				t.Errorf("progress went back from %+v to %+v", last, p)
			}
			last = p
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Sorted(slices.Values(append(slices.Clone(bad), 7777, 17777)))
	if !slices.Equal(refused, want) {
		t.Errorf("refused %d lines, want %d in order", len(refused), len(want))
	}
	if missing := n.missing(ids); missing != 2 {
		t.Errorf("%d ids did not arrive, want the 2 that were refused", missing)
	}
	wantDone := Progress{Offset: int64(len(text)), Line: 20_000, Revoked: int64(20_000 - len(want)), Refused: int64(len(want))}
	if done != wantDone {
		t.Errorf("progress %+v, want %+v", done, wantDone)
	}
	if n.options.GetAck() != revokdv1.AckLevel_ACK_LEVEL_LOCAL {
		t.Error("the options did not arrive")
	}
}

// TestResume interrupts a run, takes its progress and goes on from there: nothing is lost and no line is reported twice.
func TestResume(t *testing.T) {
	text, ids, bad := file(20_000)
	n := &fakeNode{}
	client := n.client(t)
	ctx, cancel := context.WithCancel(t.Context())
	var refused []int64
	cfg := Config{
		Service: client, Input: bytes.NewReader(text),
		Refused: func(r Refusal) error { refused = append(refused, r.Line); return nil },
		Settled: func(p Progress) error {
			if p.Line > 7000 {
				cancel()
			}
			return nil
		},
	}
	first, err := Run(ctx, cfg)
	if !errors.Is(err, context.Canceled) || first.Line <= 7000 || first.Line >= 20_000 {
		t.Fatalf("interrupted at %+v with %v", first, err)
	}
	if bytes.Count(text[:first.Offset], []byte("\n")) != int(first.Line) {
		t.Fatalf("offset %d is not the end of line %d", first.Offset, first.Line)
	}
	cfg.Input, cfg.Start = bytes.NewReader(text[first.Offset:]), first
	done, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if missing := n.missing(ids); missing != 0 {
		t.Errorf("%d ids did not arrive", missing)
	}
	if !slices.Equal(refused, bad) {
		t.Errorf("refused lines %v, want %v", refused, bad)
	}
	if done.Line != 20_000 || done.Revoked+done.Covered+done.Refused != 20_000 {
		t.Errorf("progress %+v", done)
	}
}

// TestCancelWhileIdle: Run returns when its context ends although neither the input nor the node says anything.
func TestCancelWhileIdle(t *testing.T) {
	heard, release, settled := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	n := &fakeNode{fail: func(_, message int) error {
		if message > 0 {
			close(heard)
			<-release
		}
		return nil
	}}
	client := n.client(t)
	t.Cleanup(func() { close(release) })
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := Run(ctx, Config{Service: client, Input: in, Settled: func(Progress) error { settled <- struct{}{}; return nil }})
		result <- err
	}()
	fmt.Fprintln(out, `{"jti":"a"}`)
	<-settled
	fmt.Fprintln(out, `{"jti":"b"}`)
	<-heard
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestReconnect(t *testing.T) {
	text, ids, _ := file(10_000)
	n := &fakeNode{fail: func(stream, message int) error {
		if stream <= 4 && message == 1 {
			return connect.NewError(connect.CodeUnavailable, errors.New("going away"))
		}
		return nil
	}}
	client := n.client(t)
	done, err := Run(t.Context(), Config{Service: client, Input: bytes.NewReader(text), pause: noPause})
	if err != nil || done.Line != 10_000 {
		t.Fatalf("%+v, %v", done, err)
	}
	if missing := n.missing(ids); missing != 0 || n.streams != 5 {
		t.Errorf("%d ids did not arrive over %d streams, want 5", missing, n.streams)
	}
}

// TestUnconfirmed: lines that the node holds are not taken for lines that as many nodes hold as was asked for.
func TestUnconfirmed(t *testing.T) {
	text, _, _ := file(50)
	short := connect.NewError(connect.CodeDeadlineExceeded, errors.New("fewer than asked for"))
	for _, tc := range []struct {
		name string
		end  error
		ack  revokdv1.AckLevel
		want bool
	}{
		{"the default", short, revokdv1.AckLevel_ACK_LEVEL_UNSPECIFIED, true},
		{"quorum", short, revokdv1.AckLevel_ACK_LEVEL_QUORUM, true},
		{"the node went away", connect.NewError(connect.CodeUnavailable, errors.New("gone")), revokdv1.AckLevel_ACK_LEVEL_ALL, true},
		{"local", connect.NewError(connect.CodeUnavailable, errors.New("gone")), revokdv1.AckLevel_ACK_LEVEL_LOCAL, false},
		{"confirmed", nil, revokdv1.AckLevel_ACK_LEVEL_QUORUM, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &fakeNode{end: tc.end}
			var receipt *revokdv1.Receipt
			done, err := Run(t.Context(), Config{
				Service: n.client(t), Input: bytes.NewReader(text), Options: &revokdv1.WriteOptions{Ack: tc.ack}, pause: noPause,
				Confirmed: func(r *revokdv1.Receipt) { receipt = r },
			})
			if errors.Is(err, ErrUnconfirmed) != tc.want || (err == nil) == tc.want {
				t.Errorf("error %v, want ErrUnconfirmed: %v", err, tc.want)
			}
			if tc.want && connect.CodeOf(err) != connect.CodeOf(tc.end) {
				t.Errorf("error %v does not tell the node's %v", err, tc.end)
			}
			if done.Line != 50 || (receipt == nil) != (tc.end != nil) {
				t.Errorf("%+v, receipt %v", done, receipt)
			}
		})
	}
}

// TestGivesUp: without progress the attempts are bounded, and what could be said of the reason is.
func TestGivesUp(t *testing.T) {
	text, _, _ := file(50)
	for _, tc := range []struct {
		name    string
		node    *fakeNode
		streams int
		want    string
	}{
		{"node gone", &fakeNode{fail: func(int, int) error { return connect.NewError(connect.CodeUnavailable, errors.New("disk")) }}, maxAttempts, "disk"},
		{"not allowed", &fakeNode{fail: func(int, int) error { return connect.NewError(connect.CodePermissionDenied, errors.New("no writer")) }}, 1, "no writer"},
		{"full", &fakeNode{refuse: func(jti string) *revokdv1.ItemError {
			if jti == "id-20" {
				return &revokdv1.ItemError{Code: "resource_exhausted", Message: "table is full"}
			}
			return nil
		}}, maxAttempts, "line 20: table is full"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := tc.node
			client := n.client(t)
			done, err := Run(t.Context(), Config{Service: client, Input: bytes.NewReader(text), pause: noPause})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if n.streams != tc.streams {
				t.Errorf("%d streams, want %d", n.streams, tc.streams)
			}
			if done.Line >= 20 {
				t.Errorf("progress %+v covers a line that was not carried out", done)
			}
		})
	}
}

func TestOddInputs(t *testing.T) {
	line := `{"jti":"a"}`
	for _, tc := range []struct {
		name, text string
		want       Progress
	}{
		{"empty", "", Progress{}},
		{"blank lines", "\n  \n\r\n", Progress{}},
		{"no newline at the end", line + "\n" + `{"jti":"b"}`, Progress{Offset: 23, Line: 2, Revoked: 2}},
		{"windows line ends", line + "\r\n", Progress{Offset: 13, Line: 1, Revoked: 1}},
		{"only bad lines", "x\ny\n", Progress{Offset: 4, Line: 2, Refused: 2}},
		{"blank line between", "x\n\n" + line + "\n", Progress{Offset: 15, Line: 3, Revoked: 1, Refused: 1}},
		{"too long", `{"jti":"` + strings.Repeat("a", 100_000) + "\"}\n" + line + "\n", Progress{Offset: 100_023, Line: 2, Revoked: 1, Refused: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := &fakeNode{}
			done, err := Run(t.Context(), Config{Service: n.client(t), Input: strings.NewReader(tc.text), pause: noPause})
			if err != nil || done != tc.want {
				t.Errorf("%+v, %v; want %+v", done, err, tc.want)
			}
		})
	}
}

// brokenReader fails after its text.
type brokenReader struct{ text io.Reader }

func (r brokenReader) Read(p []byte) (int, error) {
	n, err := r.text.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("input/output error")
	}
	return n, err
}

func TestReadError(t *testing.T) {
	n := &fakeNode{}
	done, err := Run(t.Context(), Config{Service: n.client(t), Input: brokenReader{strings.NewReader("{\"jti\":\"a\"}\n")}, pause: noPause})
	if err == nil || !strings.Contains(err.Error(), "input/output error") || done.Revoked != 1 {
		t.Errorf("%+v, %v", done, err)
	}
}

func TestCallbackErrorStops(t *testing.T) {
	text, _, _ := file(500)
	full := errors.New("disk full")
	n := &fakeNode{}
	client := n.client(t)
	for _, cfg := range []Config{
		{Refused: func(Refusal) error { return full }},
		{Settled: func(Progress) error { return full }},
	} {
		cfg.Service, cfg.Input, cfg.pause = client, bytes.NewReader(text), noPause
		if _, err := Run(t.Context(), cfg); !errors.Is(err, full) {
			t.Errorf("error %v, want %v", err, full)
		}
	}
}

// TestSlowInput: lines are sent as they come, not when a message is full.
func TestSlowInput(t *testing.T) {
	n := &fakeNode{}
	client := n.client(t)
	in, out := io.Pipe()
	settled := make(chan Progress, 10)
	result := make(chan error, 1)
	go func() {
		_, err := Run(t.Context(), Config{Service: client, Input: in, Settled: func(p Progress) error { settled <- p; return nil }})
		result <- err
	}()
	for i := range 3 {
		fmt.Fprintf(out, "{\"jti\":\"%d\"}\n", i)
		if p := <-settled; p.Revoked != int64(i+1) {
			t.Errorf("after line %d: %+v", i+1, p)
		}
	}
	out.Close()
	if err := <-result; err != nil {
		t.Error(err)
	}
}
