package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Bounds of [Client.RevokeAll].
const (
	maxRun      = 16_384    // items that are sent before the level is waited for,
	maxRunBytes = 8 << 20   // and bytes of them,
	maxRunTime  = 1_000     // and milliseconds that a slow sequence is waited for
	maxMessage  = 1000      // items in one message,
	maxMsgBytes = 512 << 10 // and bytes of them, but one item at least
	// MaxRefused is how many refusals the result of RevokeAll lists; it counts all of them.
	MaxRefused = 1000
)

// Item is one revocation of [Client.RevokeAll]: a Token or a Match.
type Item struct {
	Token   string // signed; the node verifies it
	Session bool   // with Token: its session
	Match   Match
	// BelowClaim, with Match: tokens whose integer claim of this name is below BelowValue or missing.
	BelowClaim string
	BelowValue int64

	IssuedBefore time.Time // zero: as in [Client.Revoke]
	ExpiresAt    time.Time
	Reason       string // empty: that of the options
}

// Refusal is an item that was not carried out: the same item would be refused again.
type Refusal struct {
	Index int64  // in the sequence, from 0
	Code  string // such as invalid_argument
	Field string // and what of it, where that is known
	Limit string
}

func (r Refusal) Error() string {
	if r.Field == "" {
		return fmt.Sprintf("item %d: %s", r.Index, r.Code)
	}
	return fmt.Sprintf("item %d: %s: %s: %s", r.Index, r.Code, r.Field, r.Limit)
}

// Bulk says how far [Client.RevokeAll] has come.
type Bulk struct {
	// Acknowledged is how many items, from the first on, are settled: held at the level that was asked for, or refused. Who is interrupted goes on there.
	Acknowledged                     int64
	Revoked, Covered, AlreadyExpired int64
	Refused                          int64
	// Refusals are the first [MaxRefused] of Refused in what RevokeAll returns; in a call of progress all of those since the last one.
	Refusals []Refusal
	// Receipt of the last items.
	Receipt Receipt
}

// RevokeAll revokes any number of items, in order, and returns when all of them are settled. It calls progress, unless nil, after every few thousand of them.
//
// A refused item stops nothing. When a node goes away, another one is given again what was not acknowledged yet, which changes nothing where it was
// done already: a cutoff that an item leaves to the node is fixed for that. The error says why RevokeAll stopped early; what Bulk.Acknowledged covers is
// done. It matches [ErrNotConfirmed] when too few voters have confirmed in time (what was sent is durable on one node), and [ErrUnavailable].
// Of the options, [IssuedBefore], [ExpiresAt] and [IdempotencyKey] belong to items and are refused.
//
// items is called, and so is progress, by the goroutine that calls RevokeAll: while items waits, nothing is sent and ctx is not looked at.
func (c *Client) RevokeAll(ctx context.Context, items iter.Seq[Item], progress func(Bulk), o ...Option) (Bulk, error) {
	w, opts, reason, err := options(append([]Option{IdempotencyKey("")}, o...))
	if err == nil && (w.key != "" || !w.issuedBefore.IsZero() || !w.expiresAt.IsZero()) {
		err = fmt.Errorf("%w: IssuedBefore, ExpiresAt and IdempotencyKey are for items", ErrConfig)
	}
	if err != nil {
		return Bulk{}, err
	}
	opts.IdempotencyKey = ""
	b := &bulk{client: c, options: opts, reason: reason, comment: w.comment, progress: progress}
	for item := range items {
		b.add(item)
		if b.full() {
			if err := b.settle(ctx); err != nil {
				return b.total, err
			}
		}
	}
	return b.total, b.settle(ctx)
}

// bulk is one call of RevokeAll.
type bulk struct {
	client   *Client
	options  *revokdv1.WriteOptions
	reason   revokdv1.Reason
	comment  string
	progress func(Bulk)

	total Bulk
	run   run
}

// run is what is settled at once.
type run struct {
	began    time.Duration // on the monotonic clock: when its first item came,
	at       int64         // and the wall clock then, in Unix milliseconds: what a node that is tried later takes for now
	read     int64         // items
	requests []*revokdv1.RevokeRequest
	index    []int64 // of the requests in the sequence
	bytes    int
	refused  []Refusal // here
}

func (b *bulk) add(item Item) {
	r := &b.run
	if r.read == 0 {
		r.began, r.at = b.client.cfg.clock.Mono(), b.client.writeTime()
	}
	index := b.total.Acknowledged + r.read
	r.read++
	req, refusal := item.request(b.reason)
	if refusal != nil {
		refusal.Index = index
		r.refused = append(r.refused, *refusal)
		return
	}
	req.Comment = b.comment
	r.requests = append(r.requests, req)
	r.index = append(r.index, index)
	r.bytes += proto.Size(req)
}

func (b *bulk) full() bool {
	r := &b.run
	return r.read >= maxRun || r.bytes >= maxRunBytes || (b.client.cfg.clock.Mono()-r.began).Milliseconds() >= maxRunTime
}

// request turns an item into what is sent.
func (i Item) request(reason revokdv1.Reason) (*revokdv1.RevokeRequest, *Refusal) {
	bad := func(field, limit string) (*revokdv1.RevokeRequest, *Refusal) {
		return nil, &Refusal{Code: connect.CodeInvalidArgument.String(), Field: field, Limit: limit}
	}
	req := &revokdv1.RevokeRequest{Reason: reason, IssuedBefore: stamp(i.IssuedBefore), ExpiresAt: stamp(i.ExpiresAt)}
	if i.Reason != "" {
		var err error
		if req.Reason, err = reasonOf(i.Reason); err != nil {
			return bad("reason", "one of those of revocation.Reasons")
		}
	}
	switch {
	case (i.Token == "") == (i.Match == nil):
		return bad("target", "a token or a match")
	case i.Token != "":
		if i.BelowClaim != "" {
			return bad("below", "with a match only")
		}
		req.Target = &revokdv1.RevokeRequest_Token{Token: i.Token}
		if i.Session {
			req.Scope = revokdv1.Scope_SCOPE_SESSION
		}
		return req, nil
	case i.Session:
		return bad("session", "with a token only")
	}
	m, err := i.Match.proto()
	if err != nil {
		return bad("match", "values are string, int, int64 or bool")
	}
	req.Target = &revokdv1.RevokeRequest_Match{Match: m}
	if i.BelowClaim != "" {
		req.Below = &revokdv1.Below{Claim: i.BelowClaim, Value: i.BelowValue}
	}
	return req, nil
}

// settle sends the run until it is acknowledged, and counts it.
func (b *bulk) settle(ctx context.Context) error {
	if b.run.read == 0 {
		return ctx.Err()
	}
	step, err := b.send(ctx)
	if err != nil {
		return err
	}
	step.Refusals = append(step.Refusals, b.run.refused...)
	slices.SortFunc(step.Refusals, func(x, y Refusal) int { return int(x.Index - y.Index) })
	t := &b.total
	t.Acknowledged += b.run.read
	t.Revoked += step.Revoked
	t.Covered += step.Covered
	t.AlreadyExpired += step.AlreadyExpired
	t.Refused += int64(len(step.Refusals))
	t.Refusals = append(t.Refusals, step.Refusals[:min(len(step.Refusals), MaxRefused-len(t.Refusals))]...)
	if len(b.run.requests) > 0 {
		t.Receipt = step.Receipt
	}
	if b.progress != nil {
		now := *t
		now.Refusals = step.Refusals
		b.progress(now)
	}
	b.run = run{requests: b.run.requests[:0], index: b.run.index[:0]}
	return nil
}

// send tries nodes until one acknowledges the run.
func (b *bulk) send(ctx context.Context) (Bulk, error) {
	if len(b.run.requests) == 0 {
		return Bulk{}, ctx.Err()
	}
	c := b.client
	var step Bulk
	err := c.try(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, attempt int) (err error) {
		if attempt == 1 {
			for i, req := range b.run.requests {
				b.run.requests[i] = c.fixCutoff(req, b.run.at)
			}
		}
		step, err = b.stream(ctx, s)
		return err
	})
	if err != nil {
		if r, ok := receiptIn(err); ok {
			b.total.Receipt = r
			return Bulk{}, notConfirmed(r)
		}
		return Bulk{}, err
	}
	return step, c.seen(ctx, step.Receipt)
}

// stream sends the run over one stream, and returns what the node says at its end.
func (b *bulk) stream(ctx context.Context, s revokdv1connect.RevocationServiceClient) (Bulk, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream := s.RevokeStream(ctx)
	sent := make(chan error, 1)
	go func() { sent <- b.write(stream) }()
	step, err := b.read(stream)
	if err != nil {
		cancel() // while it could still send, the sender would not notice
	}
	writeErr := <-sent
	cancel()
	_ = stream.CloseResponse()
	if err == nil {
		err = writeErr
	}
	return step, err
}

type revokeStream = connect.BidiStreamForClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]

func (b *bulk) write(stream *revokeStream) error {
	requests, options := b.run.requests, b.options
	for len(requests) > 0 {
		n, size := 0, 0
		for n < len(requests) && n < maxMessage && (n == 0 || size < maxMsgBytes) {
			size += proto.Size(requests[n])
			n++
		}
		err := stream.Send(&revokdv1.RevokeStreamRequest{Items: requests[:n], Options: options})
		if errors.Is(err, io.EOF) {
			return nil // the node has ended the stream: read finds out why
		}
		if err != nil {
			return err
		}
		requests, options = requests[n:], nil
	}
	return stream.CloseRequest()
}

func (b *bulk) read(stream *revokeStream) (Bulk, error) {
	var step Bulk
	for {
		m, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF) && step.Acknowledged == int64(len(b.run.requests)):
			return step, nil
		case errors.Is(err, io.EOF):
			return step, connect.NewError(connect.CodeUnavailable, errors.New("the node ended the stream early"))
		case err != nil:
			return step, err
		}
		step.Acknowledged, step.Revoked, step.Covered, step.AlreadyExpired = m.GetAcknowledged(), m.GetRevoked(), m.GetCovered(), m.GetAlreadyExpired()
		if m.GetReceipt() != nil {
			step.Receipt = receiptOf(m.GetReceipt())
		}
		for _, e := range m.GetErrors() {
			if e.GetIndex() < 0 || e.GetIndex() >= int64(len(b.run.index)) {
				return step, errors.New("client: the node refuses an item that it was not sent")
			}
			refusal := Refusal{
				Index: b.run.index[e.GetIndex()], Code: e.GetError().GetCode(), Field: e.GetError().GetDetail().GetField(), Limit: e.GetError().GetDetail().GetLimit(),
			}
			if !itemsFault(refusal.Code) {
				return step, connect.NewError(connect.CodeUnavailable, refusal)
			}
			step.Refusals = append(step.Refusals, refusal)
		}
	}
}

// itemsFault: the same item would be refused again. Anything else, such as a full table, is for another attempt.
func itemsFault(code string) bool {
	switch code {
	case "invalid_argument", "not_found", "already_exists", "permission_denied", "unauthenticated", "failed_precondition", "out_of_range":
		return true
	}
	return false
}
