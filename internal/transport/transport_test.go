package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// written hands out one write for each read, as a pipe does.
type written struct{ parts [][]byte }

func (w *written) Read(p []byte) (int, error) {
	if len(w.parts) == 0 {
		return 0, io.EOF
	}
	n := copy(p, w.parts[0])
	if w.parts[0] = w.parts[0][n:]; len(w.parts[0]) == 0 {
		w.parts = w.parts[1:]
	}
	return n, nil
}
func (*written) Close() error { return nil }

func head(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)) }

// What is read is what was written, and no read ends between what stands before a message and the message.
func TestMessagesAreRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "sizes")
		buffer := make([]byte, rapid.IntRange(headBytes+1, 64).Draw(t, "buffer"))
		var in written
		var want []byte
		begins := map[int]bool{} // offsets at which a message follows
		for _, n := range sizes {
			message := bytes.Repeat([]byte{byte(n)}, n)
			want = append(want, head(n)...)
			in.parts = append(in.parts, head(n))
			if n > 0 {
				begins[len(want)] = true
				in.parts = append(in.parts, message)
			}
			want = append(want, message...)
		}
		e := &envelopes{ReadCloser: &in}
		var got []byte
		for {
			n, err := e.Read(buffer)
			got = append(got, buffer[:n]...)
			if begins[len(got)] {
				t.Fatalf("a read ends before the message at %d", len(got))
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("read %x, want %x", got, want)
		}
	})
	e := &envelopes{ReadCloser: &written{parts: [][]byte{head(1)[:3]}}}
	if _, err := e.Read(make([]byte, 100)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a head: %v", err)
	}
	if _, err := e.Read(make([]byte, headBytes)); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("a buffer without room: %v", err)
	}
}

// counting counts writes.
type counting struct {
	net.Conn
	writes *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// A message of a stream leaves in one write, and a call with a body of known length is left alone.
func TestOneWriteForAMessage(t *testing.T) {
	const message = 30_000
	took := make(chan int)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength >= 0 {
			b, _ := io.ReadAll(r.Body)
			_, _ = w.Write(b)
			return
		}
		_ = http.NewResponseController(w).Flush()
		b := make([]byte, headBytes+message)
		for {
			n, err := io.ReadFull(r.Body, b)
			if err != nil {
				return
			}
			took <- n
		}
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	var writes atomic.Int64
	c := http.Client{Transport: New(nil, func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return counting{conn, &writes}, err
	})}
	defer c.CloseIdleConnections()
	body := bytes.NewReader([]byte("hello"))
	res, err := c.Post(s.URL, "text/plain", body)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != "hello" {
		t.Errorf("%q", b)
	}
	_ = res.Body.Close()
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, in)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	res, err = c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	before := writes.Load()
	const count = 20
	for range count {
		for _, part := range [][]byte{head(message), make([]byte, message)} {
			if _, err := out.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		if n := <-took; n != headBytes+message {
			t.Fatalf("%d bytes", n)
		}
	}
	// Others acknowledge what the server says.
	if n := writes.Load() - before; n > count*3/2 {
		t.Errorf("%d writes for %d messages", n, count)
	}
	_ = out.Close()
	if req.Body != in {
		t.Error("the caller's request was changed")
	}
}

// A stream ends with its context, though nothing is said on it in either direction.
func TestStreamEndsWithContext(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush() // the client would say that it was not
		<-r.Context().Done()
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	defer s.Close()
	tr := New(nil, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	in, out := io.Pipe()
	defer out.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, in)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = -1
	res, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := res.Body.Read(make([]byte, 1))
		ended <- err
	}()
	cancel()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("it was read")
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (&http.Client{Transport: tr}).Get(s.URL); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestRefused(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshakes that it refuses
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	asked := func(addr string, cfg *tls.Config) error {
		tr := New(cfg, nil)
		defer tr.Close()
		return tr.Refused(t.Context(), addr, io.EOF)
	}

	stranger := server.Client().Transport.(*http.Transport).TLSClientConfig
	if err := asked(addr, stranger); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	} else if again := New(stranger, nil).Refused(t.Context(), "", err); !errors.Is(again, err) {
		t.Errorf("what says so itself: %v", again)
	}
	for _, other := range []error{&net.OpError{Op: "dial", Err: io.EOF}, context.DeadlineExceeded} {
		if err := New(stranger, nil).Refused(t.Context(), addr, other); err != nil {
			t.Errorf("asked after %v: %v", other, err)
		}
	}
	known := stranger.Clone()
	known.Certificates = server.TLS.Certificates // any will do
	if err := asked(addr, known); err != nil {
		t.Errorf("with one: %v", err)
	}
	plain := New(nil, nil)
	defer plain.Close()
	if res, err := (&http.Client{Transport: plain}).Get("http://" + addr); err == nil {
		res.Body.Close()
	}
	if err := plain.Refused(t.Context(), addr, io.EOF); err != nil {
		t.Errorf("without TLS: %v", err)
	}
	if err := asked(addr, &tls.Config{MinVersion: tls.VersionTLS13}); err != nil {
		t.Errorf("it is we who refuse: %v", err)
	}

	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	tr := New(known, nil)
	defer tr.Close()
	if err := tr.Refused(ctx, silent.Addr().String(), io.EOF); err != nil {
		t.Errorf("nobody answers: %v", err)
	}
	silent.Close()
	if err := asked(silent.Addr().String(), known); err != nil {
		t.Errorf("nobody is there: %v", err)
	}
}
