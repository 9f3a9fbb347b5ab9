package api

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// readAhead is how many messages of a stream wait while one is being written.
const readAhead = 4

// received is a message of a stream, or the reason why there are no more.
type received struct {
	msg   *revokdv1.RevokeStreamRequest
	bytes int64 // that it occupies until it has been dealt with
	err   error // io.EOF: the caller is done
}

// RevokeStream writes what comes, in order: one goroutine reads ahead, this one writes and answers. Messages
// that are waiting go into one durable write, up to its limit.
func (s revocations) RevokeStream(ctx context.Context, stream *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]) error {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return errStreams
	}
	call := callFrom(ctx)
	call.paced = true
	_ = call.control.SetWriteDeadline(time.Time{}) // that of the server is for a whole call; see answer
	messages := make(chan received, readAhead)
	quit := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.receive(call, stream, messages, quit)
	}()
	defer func() {
		// Whatever ended the stream here, the reader is woken and awaited: it must not outlive the handler.
		close(quit)
		_ = call.control.SetReadDeadline(time.Unix(1, 0))
		<-ended
		_ = call.control.SetWriteDeadline(time.Now().Add(s.cfg.Limits.Read)) // for the end of the stream
	}()
	w := &streaming{revocations: s, call: call, stream: stream, id: newRequestID(), reached: make(map[replication.OriginID]uint64)}
	stream.ResponseHeader().Set(headerRequestID, w.id)
	for {
		select {
		case <-s.stopping:
			return errStopping
		case <-ctx.Done():
			return ctx.Err()
		case m := <-messages:
			done, err := w.take(ctx, m, messages)
			if err != nil || done {
				return err
			}
		}
	}
}

// receive reads messages until the caller is done, an error, or quit.
func (s revocations) receive(call *call, stream *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse], out chan<- received, quit <-chan struct{}) {
	for {
		_ = call.control.SetReadDeadline(time.Now().Add(s.cfg.Limits.Idle))
		select {
		case <-quit: // it may have set a deadline before the line above did
			return
		default:
		}
		msg, err := stream.Receive()
		switch {
		case err == nil:
			err = decoded(msg)
		case errors.Is(err, io.EOF):
			err = io.EOF
		case errors.Is(err, errSlow):
			err = errIdle
		case connect.CodeOf(err) == connect.CodeResourceExhausted && !errors.Is(err, errOverload):
			err = errTooLarge // by connect, which knows the length of one message
		}
		select {
		case out <- received{msg: msg, bytes: call.body.take(), err: err}:
		case <-quit:
			return
		}
		if err != nil {
			return
		}
	}
}

// streaming is the writing half of a stream.
type streaming struct {
	revocations
	call   *call
	stream *connect.BidiStream[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]
	id     string // of the call

	options node.WriteOptions
	begun   bool
	totals  revokdv1.RevokeStreamResponse // errors and receipt are of the answer that is due
	receipt *revokdv1.Receipt
	reached map[replication.OriginID]uint64 // by what was written, or covers what was asked for
}

// take writes a message and those that wait behind it, and answers.
func (w *streaming) take(ctx context.Context, m received, more <-chan received) (done bool, err error) {
	var items []*revokdv1.RevokeRequest
	var bytes int64
	defer func() { w.call.body.release(bytes) }()
	for {
		bytes += m.bytes
		if m.err == nil {
			m.err = w.admit(m.msg)
		}
		if m.err != nil {
			break
		}
		items = append(items, m.msg.GetItems()...)
		if len(items) >= maxItems {
			break
		}
		select {
		case m = <-more:
			continue
		default:
		}
		break
	}
	// What came before the end, or before an error, is written first.
	for len(items) > 0 {
		n := min(len(items), maxItems)
		if err := w.write(ctx, items[:n]); err != nil {
			return false, err
		}
		items = items[n:]
	}
	if errors.Is(m.err, io.EOF) {
		return true, w.finish(ctx)
	}
	return false, m.err
}

// admit checks a message as a whole.
func (w *streaming) admit(m *revokdv1.RevokeStreamRequest) (err error) {
	if len(m.GetItems()) > maxItems {
		return node.ErrTooMany
	}
	o := m.GetOptions()
	switch {
	case o == nil:
	case w.begun:
		return bad("options", "not_allowed", "", "in the first message of a stream only")
	case o.GetIdempotencyKey() != "":
		return bad("options.idempotency_key", "not_allowed", "string", "not in a stream: state issued_before in its items and resume at acknowledged")
	default:
		w.options, err = writeOptions(o)
	}
	w.begun = true
	return err
}

// write makes up to maxItems items durable and tells the caller.
func (w *streaming) write(ctx context.Context, items []*revokdv1.RevokeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Limits.Deadline)
	defer cancel()
	if err := w.auditor.ready(); err != nil {
		return err
	}
	o := w.options
	o.Ack, o.Bulk = node.AckLocal, true
	w.call.wrote = nil
	ctx, traced := w.traced(ctx, streamProcedure, time.Now()) // a span for each message: a stream may go on for hours
	results, receipt, err := w.writeItems(ctx, items, o)
	unaudited := w.trail(ctx, streamProcedure, w.id, w.call.from).items(ctx, items, w.totals.GetAcknowledged(), w.call.wrote, err)
	err = cmp.Or(err, unaudited)
	traced(w.id, codeText(err))
	if err != nil {
		return err
	}
	if receipt != nil {
		w.receipt = receipt
		for _, p := range receipt.GetPositions() {
			id := replication.OriginID(p.GetOrigin())
			w.reached[id] = max(w.reached[id], p.GetNumber())
		}
	}
	t := &w.totals
	for i, r := range results {
		switch {
		case r.Err != nil:
			t.Refused++
			t.Errors = append(t.Errors, &revokdv1.IndexedError{Index: t.GetAcknowledged() + int64(i), Error: w.itemError(r.Err, streamProcedure)})
		case r.Outcome == node.OutcomeCovered:
			t.Covered++
		case r.Outcome == node.OutcomeAlreadyExpired:
			t.AlreadyExpired++
		default:
			t.Revoked++
		}
	}
	t.Acknowledged += int64(len(items))
	err = w.answer(nil)
	t.Errors = nil
	return err
}

// finish waits until as many nodes as were asked for hold all of it, and sends the receipt. On its way through the stream an item is
// acknowledged when this node holds it: waiting for the others after each message would take a round trip for each.
func (w *streaming) finish(ctx context.Context) error {
	if w.receipt == nil {
		return w.answer(nil)
	}
	positions := make([]node.Position, 0, len(w.reached))
	for id, number := range w.reached {
		positions = append(positions, node.Position{Origin: id, Number: number})
	}
	receipt, err := w.node.Confirm(ctx, positions, w.options.Ack, w.options.AckTimeout)
	unaudited := w.trail(ctx, streamProcedure, w.id, w.call.from).receipt(ctx, receipt, w.totals.GetAcknowledged(), err)
	if err != nil && !errors.Is(err, node.ErrAck) {
		return err
	}
	if unaudited != nil {
		return unaudited
	}
	return errors.Join(withReceipt(err, receipt), w.answer(receiptAnswer(receipt)))
}

// answer sends the totals. A caller who does not read is cut off.
func (w *streaming) answer(receipt *revokdv1.Receipt) error {
	_ = w.call.control.SetWriteDeadline(time.Now().Add(w.cfg.Limits.Read))
	defer func() { _ = w.call.control.SetWriteDeadline(time.Time{}) }() // else it would end the stream when it passes
	t := &w.totals
	return w.stream.Send(&revokdv1.RevokeStreamResponse{
		Acknowledged: t.GetAcknowledged(), Revoked: t.GetRevoked(), Covered: t.GetCovered(), AlreadyExpired: t.GetAlreadyExpired(),
		Refused: t.GetRefused(), Errors: t.GetErrors(), Receipt: receipt,
	})
}
