// Package transport is how this program reaches the API of a node: HTTP/2, which streams in both directions need.
//
// It knows how Connect lays messages into a stream and promises that each of them leaves in one piece: Connect writes the five bytes before a message by
// themselves, which would be a frame, a record of TLS, a packet and a wake-up at the other end of their own. A client may be used concurrently; there
// is no zero value of use.
package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	dialTimeout = 3 * time.Second
	// frameBytes is the largest frame that is taken: one message of replication, mostly. The default, 16 KiB, would cut it into pieces.
	frameBytes = 256 << 10
)

// New returns a client that shows who it is by cfg, or uses no TLS if cfg is nil. It notices a dead connection in a few seconds. dial makes connections; nil: a
// dialer that gives up after 3 s.
func New(cfg *tls.Config, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	// A copy: the transport adds the protocols it speaks, and callers may share one.
	t := &http.Transport{
		Protocols: new(http.Protocols), TLSClientConfig: cfg.Clone(), TLSHandshakeTimeout: 5 * time.Second,
		DialContext: dial,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second, MaxReadFrameSize: frameBytes},
	}
	t.Protocols.SetUnencryptedHTTP2(cfg == nil)
	t.Protocols.SetHTTP2(cfg != nil)
	return &http.Client{Transport: whole{t}}
}

// whole sends streams message by message.
type whole struct{ *http.Transport }

func (w whole) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.ContentLength < 0 { // a stream
		r = r.WithContext(r.Context()) // a copy: the caller's is not to be changed
		r.Body = &envelopes{ReadCloser: r.Body}
	}
	return w.Transport.RoundTrip(r)
}

// headBytes stand before each message: flags 1, length 4.
const headBytes = 5

// envelopes reads a stream of messages so that no read ends between what stands before a message and the message, which its writer writes right behind.
type envelopes struct {
	io.ReadCloser
	left uint32 // of the message
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
