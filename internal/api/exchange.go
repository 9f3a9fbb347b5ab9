package api

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Headers of Exchange: who calls. A node's certificate has to agree.
const (
	HeaderNode   = "Revokd-Node"
	HeaderClient = "Revokd-Client"
)

const exchangeProcedure = revokdv1connect.ReplicationServiceExchangeProcedure

// sendTimeout is how long a peer may take to accept a message.
const sendTimeout = 10 * time.Second

// renewEvery is how often that is set anew: each time it has to be told to the goroutine of the connection.
const renewEvery = time.Second

// replicas serves ReplicationService.
type replicas struct{ *Server }

var _ revokdv1connect.ReplicationServiceHandler = replicas{}

// Exchange holds a session with another replica.
func (s replicas) Exchange(ctx context.Context, stream *connect.BidiStream[revokdv1.ExchangeMessage, revokdv1.ExchangeMessage]) error {
	peer := node.SessionPeer{Name: stream.RequestHeader().Get(HeaderNode)}
	if name := stream.RequestHeader().Get(HeaderClient); name != "" {
		peer = node.SessionPeer{Name: name, Client: true}
	}
	if err := mayExchange(ctx, peer); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // ends with the handler, by ctx
		select {
		case <-s.stopping:
			cancel(errStopping)
		case <-ctx.Done():
		}
	}()
	call := callFrom(ctx)
	_ = call.control.SetReadDeadline(time.Time{})
	_ = call.control.SetWriteDeadline(time.Time{})
	// The headers go now, so that the other side knows that there is a session.
	if err := stream.Send(&revokdv1.ExchangeMessage{}); err != nil {
		return err
	}
	err := s.node.Session(ctx, &exchange{call: call, stream: stream}, peer)
	_ = call.control.SetWriteDeadline(time.Now().Add(s.cfg.Limits.Read)) // for the end of the stream
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// exchange is a stream of messages on the side of the server.
type exchange struct {
	call   *call
	stream *connect.BidiStream[revokdv1.ExchangeMessage, revokdv1.ExchangeMessage]
	once   sync.Once
	renew  time.Time // when the time limit of sending is due to be set again; for Send
}

func (e *exchange) Send(message []byte) error {
	if now := time.Now(); now.After(e.renew) {
		_ = e.call.control.SetWriteDeadline(now.Add(sendTimeout))
		e.renew = now.Add(renewEvery)
	}
	return e.stream.Send(&revokdv1.ExchangeMessage{Frames: message})
}

func (e *exchange) Receive() ([]byte, error) {
	m, err := e.stream.Receive()
	if err != nil {
		return nil, err
	}
	e.call.body.release(e.call.body.take())
	if len(m.GetFrames()) > replication.MaxMessage {
		return nil, fmt.Errorf("%w: %d bytes", replication.ErrProtocol, len(m.GetFrames()))
	}
	return m.GetFrames(), nil
}

// Close wakes both directions.
func (e *exchange) Close() {
	e.once.Do(func() {
		_ = e.call.control.SetReadDeadline(time.Unix(1, 0))
		_ = e.call.control.SetWriteDeadline(time.Unix(1, 0))
	})
}
