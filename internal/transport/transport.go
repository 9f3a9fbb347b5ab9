// Package transport is how this program reaches the API of a node: HTTP/2, which streams in both directions need.
//
// It knows how Connect lays messages into a stream and promises that each of them leaves in one piece: Connect writes the five bytes before a message by
// themselves, which would be a frame, a record of TLS, a packet and a wake-up at the other end of their own. A transport may be used concurrently; there
// is no zero value of use.
package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	// idleTimeout is how long a connection without calls is kept: less than nodes keep it, so that no call is sent into one that is just being closed.
	idleTimeout = 90 * time.Second
	// frameBytes is the largest frame that is taken: one message of replication, mostly. The default, 16 KiB, would cut it into pieces.
	frameBytes = 256 << 10
)

// Transport sends streams message by message. Its connections end with it, which those of [http.Transport] do not: what is being dialed, or has just lost its last
// stream, is not idle when that is told to close what is.
type Transport struct {
	*http.Transport
	secure bool // net/http makes a configuration of TLS also where there is none

	mu     sync.Mutex
	open   map[*conn]struct{}
	closed bool
}

// New returns a transport that shows who it is by cfg, or uses no TLS if cfg is nil. It notices a dead connection in a few seconds. dial makes connections; nil: a
// dialer that gives up after 3 s.
func New(cfg *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Transport {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	t := &Transport{secure: cfg != nil, open: map[*conn]struct{}{}}
	// A copy: the transport adds the protocols it speaks, and callers may share one.
	t.Transport = &http.Transport{
		Protocols: new(http.Protocols), TLSClientConfig: cfg.Clone(), TLSHandshakeTimeout: 5 * time.Second, IdleConnTimeout: idleTimeout,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return t.add(c)
		},
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second, MaxReadFrameSize: frameBytes},
	}
	t.Protocols.SetUnencryptedHTTP2(cfg == nil)
	t.Protocols.SetHTTP2(cfg != nil)
	return t
}

// RoundTrip is that of [http.RoundTripper].
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.ContentLength < 0 { // a stream
		r = r.WithContext(r.Context()) // a copy: the caller's is not to be changed
		e := &envelopes{ReadCloser: r.Body}
		// net/http sees that the context has ended when it next reads or writes, and a stream on which nothing is said would go on.
		e.forget = context.AfterFunc(r.Context(), func() { _ = e.ReadCloser.Close() })
		r.Body = e
	}
	return t.Transport.RoundTrip(r)
}

// Refused tells whether a call to the server at addr, host:port, failed because the server refuses our certificate: it returns the alert of TLS ([net.OpError] "remote error"),
// or nil. A server of TLS 1.3 judges the certificate when the client has made its handshake and may have sent a request already, and net/http does not always say then
// why the connection has ended: if the failure leaves it open, Refused connects once more, for 3 s at most, and asks the server for nothing.
func (t *Transport) Refused(ctx context.Context, addr string, failure error) error {
	op, _ := errors.AsType[*net.OpError](failure)
	switch {
	case !t.secure || errors.Is(failure, context.DeadlineExceeded) || op != nil && op.Op == "dial": // not so far
		return nil
	case op != nil && op.Op == "remote error":
		return op
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := t.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	cfg := t.TLSClientConfig.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	cfg.NextProtos = []string{"h2"}
	c := tls.Client(raw, cfg)
	if err = c.HandshakeContext(ctx); err == nil {
		_, err = c.Read(make([]byte, 1)) // who accepts us sends its settings
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return op
	}
	return nil
}

// Close ends all connections, whatever goes on over them, and lets none be made any more.
func (t *Transport) Close() error {
	t.CloseIdleConnections() // says goodbye where it can
	t.mu.Lock()
	t.closed = true
	open := slices.Collect(maps.Keys(t.open))
	t.mu.Unlock()
	for _, c := range open {
		_ = c.Close() // whatever it says, it is not used any more
	}
	return nil
}

func (t *Transport) add(c net.Conn) (net.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close() // nothing has been sent
		return nil, net.ErrClosed
	}
	held := &conn{c, t}
	t.open[held] = struct{}{}
	return held, nil
}

// conn is a connection that its transport knows of until it is closed.
type conn struct {
	net.Conn
	of *Transport
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.open, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// headBytes stand before each message: flags 1, length 4.
const headBytes = 5

// envelopes reads a stream of messages so that no read ends between what stands before a message and the message, which its writer writes right behind.
type envelopes struct {
	io.ReadCloser
	left   uint32 // of the message
	forget func() bool
}

func (e *envelopes) Close() error {
	e.forget()
	return e.ReadCloser.Close()
}

func (e *envelopes) Read(p []byte) (n int, err error) {
	if e.left == 0 {
		if len(p) <= headBytes {
			return 0, io.ErrShortBuffer
		}
		if n, err = io.ReadFull(e.ReadCloser, p[:headBytes]); err != nil {
			return n, err
		}
		if e.left = binary.BigEndian.Uint32(p[1:]); e.left == 0 {
			return n, nil
		}
	}
	m, err := e.ReadCloser.Read(p[n:][:min(len(p)-n, int(e.left))])
	e.left -= uint32(m)
	return n + m, err
}
