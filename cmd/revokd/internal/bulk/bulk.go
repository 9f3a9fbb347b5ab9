// Package bulk revokes what the lines of a file name, over one stream to a node.
//
// # What it knows
//
// A line is a JSON object of at most [MaxLine] bytes, in one of three forms:
//
//	{"jti":"...","iss":"...","exp":1767225600}
//	{"match":{"iss":"...","sub":"..."},"expires_at":"2026-01-31T12:00:00Z","issued_before":...,"below":{...}}
//	{"token":"...","scope":"session"}
//
// each with an optional "reason". Empty lines are skipped.
//
// # What it promises
//
//   - Lines are sent and settled in order. A line is settled when the node has acknowledged it, or has been refused by
//     the node or by this package; [Progress] never covers a line that is not.
//   - A refused line stops nothing. What is not the line's fault (a full table, a node that goes away) ends the stream:
//     Run opens another one and sends everything that is not settled again, a bounded number of times without progress.
//   - A line may so be carried out twice. That changes nothing, except that a cutoff without "issued_before" is taken at the
//     later time.
//   - Memory is bounded by the lines that wait for an answer: [maxWindow] of them and [maxWindowBytes].
//
// # Concurrency
//
// [Run] calls the functions of its Config one at a time. The zero Config is not usable: it needs a Service and an Input.
package bulk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Bounds of what waits for an answer.
const (
	maxWindow      = 16 << 10
	maxWindowBytes = 16 << 20
	maxMessage     = 1000    // lines in one message,
	maxMessageSize = 1 << 20 // and bytes of their text, but one line at least
)

// Attempts without progress, and the pauses between them.
const (
	maxAttempts = 8
	firstPause  = 100 * time.Millisecond
	maxPause    = 5 * time.Second
)

// Progress says what has been settled, counted from the beginning of the file.
type Progress struct {
	Offset         int64 `json:"offset"` // bytes
	Line           int64 `json:"line"`   // lines
	Revoked        int64 `json:"revoked"`
	Covered        int64 `json:"covered"`
	AlreadyExpired int64 `json:"already_expired"`
	Refused        int64 `json:"refused"`
}

// Refusal is a line that was not carried out.
type Refusal struct {
	Line int64
	Err  error               // if this package refused it
	Item *revokdv1.ItemError // if the node did
}

// ErrUnconfirmed: every line is settled, the revocations are durable on the node, but that as many other nodes hold them as Options ask for is not
// known. If the node has said who does, its receipt is among the details of the error.
var ErrUnconfirmed = errors.New("all lines are durable on the node; which other nodes hold them is not known")

// Config of [Run].
type Config struct {
	Service revokdv1connect.RevocationServiceClient // over HTTP/2
	Input   io.Reader                               // from Start.Offset on
	Start   Progress                                // where an earlier run stopped
	Options *revokdv1.WriteOptions
	Default *revokdv1.RevokeRequest // reason and comment of lines that have none

	Refused   func(Refusal) error     // in the order of the lines; nil: not told
	Settled   func(Progress) error    // after each step; nil: not told
	Confirmed func(*revokdv1.Receipt) // what a stream ended with: who holds all that came before it; nil: not told

	pause func(ctx context.Context, attempt int) // nil: the pauses above
}

// Run reads lines until the input ends and returns how far it came. The error says why it stopped early; what Progress
// covers is done; [ErrUnconfirmed] comes with all of it. When ctx ends Run returns its error. A read that blocks is left behind: it ends with the input.
func Run(ctx context.Context, cfg Config) (Progress, error) {
	if cfg.pause == nil {
		cfg.pause = pause
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := &run{cfg: cfg, progress: cfg.Start}
	r.changed.L = &r.mu
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer stop()
	go r.read(ctx)

	err := r.connect(ctx)
	return r.snapshot(), err
}

// run is one call of Run.
type run struct {
	cfg Config

	mu      sync.Mutex // guards what follows
	changed sync.Cond  // of anything below, and of the context

	window   []entry // lines that are not settled, in order
	bytes    int     // of their text
	sent     int     // of the window, on the current stream
	eof      bool    // no more lines
	readErr  error
	progress Progress
}

// entry is one line.
type entry struct {
	line, end int64
	size      int
	req       *revokdv1.RevokeRequest
	exp       bool  // the line states its deadline as exp
	err       error // req is nil: not to be sent
}

// read fills the window.
func (r *run) read(ctx context.Context) {
	lines := newLineReader(r.cfg.Input, r.cfg.Start)
	for {
		e, err := lines.next(r.cfg.Default)
		r.mu.Lock()
		for ctx.Err() == nil && (len(r.window) >= maxWindow || r.bytes >= maxWindowBytes) {
			r.changed.Wait()
		}
		if ctx.Err() != nil {
			r.mu.Unlock()
			return
		}
		if err != nil {
			r.eof = true
			if !errors.Is(err, io.EOF) {
				r.readErr = fmt.Errorf("read: %w", err)
			}
			r.changed.Broadcast()
			r.mu.Unlock()
			return
		}
		r.window = append(r.window, e)
		r.bytes += e.size
		r.changed.Broadcast()
		r.mu.Unlock()
	}
}

// connect opens one stream after the other until everything is settled.
func (r *run) connect(ctx context.Context) error {
	attempt := 0
	var err error // of the last stream
	for {
		if more, awaited := r.await(ctx); !more {
			if awaited == nil && err != nil && r.cfg.Options.GetAck() != revokdv1.AckLevel_ACK_LEVEL_LOCAL {
				awaited = fmt.Errorf("%w: %w", ErrUnconfirmed, err)
			}
			return awaited
		}
		before := r.snapshot()
		err = r.stream(ctx)
		after := r.snapshot()
		switch {
		case ctx.Err() != nil || err == nil:
			continue
		case !retriable(err):
			return err
		case after.Offset > before.Offset:
			attempt = 0
		}
		if attempt++; attempt == maxAttempts {
			return err
		}
		r.cfg.pause(ctx, attempt)
	}
}

// await waits until there is something to send, so that no stream is open while a slow input has no lines. more is
// false when everything is settled, or when ctx has ended or the input is broken.
func (r *run) await(ctx context.Context) (more bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ctx.Err() == nil {
		if err := r.settle(0, nil); err != nil {
			return false, err
		}
		switch {
		case len(r.window) > 0:
			return true, nil
		case r.eof:
			return false, r.readErr
		}
		r.changed.Wait()
	}
	return false, context.Cause(ctx)
}

func (r *run) snapshot() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.progress
}

func pause(ctx context.Context, attempt int) {
	d := min(firstPause<<(attempt-1), maxPause)
	select {
	case <-time.After(d/2 + rand.N(d/2)):
	case <-ctx.Done():
	}
}

// errFinal marks what another stream would not mend.
type errFinal struct{ error }

func (e errFinal) Unwrap() error { return e.error }

func retriable(err error) bool {
	if errors.As(err, new(errFinal)) {
		return false
	}
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodeUnauthenticated, connect.CodePermissionDenied,
		connect.CodeUnimplemented, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return false
	}
	return true
}

// stream sends what is in the window over one stream, and what is read meanwhile, until everything is settled
// or the stream breaks.
func (r *run) stream(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	s := r.cfg.Service.RevokeStream(ctx)
	r.mu.Lock()
	r.sent = 0
	r.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer stop()
	g.Go(func() error {
		// Whatever ends the sender: while it could still send, net/http would not notice the end of the context.
		defer s.CloseRequest()
		return r.send(ctx, s)
	})
	g.Go(func() error { return r.receive(s) })
	err := g.Wait() // which ends the context
	_ = s.CloseResponse()
	return err
}

type clientStream = connect.BidiStreamForClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse]

func (r *run) send(ctx context.Context, s *clientStream) error {
	options := r.cfg.Options
	for {
		items, err := r.next(ctx)
		if err != nil {
			return err
		}
		if len(items) == 0 {
			return nil
		}
		err = s.Send(&revokdv1.RevokeStreamRequest{Items: items, Options: options})
		if errors.Is(err, io.EOF) {
			return nil // the node has ended the stream: receive finds out why
		}
		if err != nil {
			return err
		}
		options = nil
	}
}

// next returns what is to be sent; nothing at the end of the input.
func (r *run) next(ctx context.Context) ([]*revokdv1.RevokeRequest, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var items []*revokdv1.RevokeRequest
		for size := 0; r.sent < len(r.window) && len(items) < maxMessage && size < maxMessageSize; r.sent++ {
			if e := r.window[r.sent]; e.req != nil {
				items = append(items, e.req)
				size += e.size
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case len(items) > 0:
			return items, nil
		}
		// Lines that this package refused may be all there is in front.
		if err := r.settle(0, nil); err != nil {
			return nil, err
		}
		if r.eof {
			return nil, nil
		}
		if r.sent == len(r.window) {
			r.changed.Wait()
		}
	}
}

// receive settles what the node acknowledges.
func (r *run) receive(s *clientStream) error {
	last := &revokdv1.RevokeStreamResponse{}
	refused := map[int64]*revokdv1.ItemError{}
	for {
		m, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return r.finished()
		}
		if err != nil {
			return err
		}
		if m.GetAcknowledged() < last.GetAcknowledged() {
			return errFinal{errors.New("the node acknowledged less than before")}
		}
		for _, e := range m.GetErrors() {
			refused[e.GetIndex()] = e.GetError()
		}
		if err := r.acknowledge(last, m, refused); err != nil {
			return err
		}
		if m.GetReceipt() != nil && r.cfg.Confirmed != nil {
			r.cfg.Confirmed(m.GetReceipt())
		}
		last = m
	}
}

// finished judges a stream that the node has ended without an error.
func (r *run) finished() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.eof || len(r.window) > 0 {
		return connect.NewError(connect.CodeUnavailable, errors.New("the node ended the stream early"))
	}
	return nil
}

func (r *run) acknowledge(last, m *revokdv1.RevokeStreamResponse, refused map[int64]*revokdv1.ItemError) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := map[int64]*revokdv1.ItemError{} // by position among the lines that m acknowledges
	for i, e := range refused {
		if i < m.GetAcknowledged() {
			errs[i-last.GetAcknowledged()] = e
			delete(refused, i)
		}
	}
	n := m.GetAcknowledged() - last.GetAcknowledged()
	if len(errs) > 0 {
		if err := r.broken(errs); err != nil {
			return err
		}
	}
	if err := r.settle(n, errs); err != nil {
		return err
	}
	r.progress.Revoked += m.GetRevoked() - last.GetRevoked()
	r.progress.Covered += m.GetCovered() - last.GetCovered()
	r.progress.AlreadyExpired += m.GetAlreadyExpired() - last.GetAlreadyExpired()
	if r.cfg.Settled != nil {
		if err := r.cfg.Settled(r.progress); err != nil {
			return errFinal{err}
		}
	}
	return nil
}

// broken returns an error if a line failed through no fault of its own, such as a full table: then nothing that was
// acknowledged with it is settled, and all of it is sent again. mu is held.
func (r *run) broken(errs map[int64]*revokdv1.ItemError) error {
	i := int64(-1)
	for _, e := range r.window {
		if e.req == nil {
			continue
		}
		i++
		if item := errs[i]; item != nil && !linesFault(item) {
			return connect.NewError(connect.CodeUnavailable, fmt.Errorf("line %d: %s", e.line, item.GetMessage()))
		}
	}
	return nil
}

// settle takes n lines that were sent from the front of the window, and those between and behind them that were not. errs
// are the refused ones of the n, by position. mu is held.
func (r *run) settle(n int64, errs map[int64]*revokdv1.ItemError) error {
	taken := 0
	defer func() {
		r.window = r.window[taken:]
		r.sent = max(0, r.sent-taken)
		r.changed.Broadcast()
	}()
	for i := int64(0); taken < len(r.window); taken++ {
		e := r.window[taken]
		refusal := Refusal{Line: e.line, Err: e.err}
		if e.req != nil {
			if i == n {
				return nil
			}
			if refusal.Item = errs[i]; e.exp {
				refusal.Item = inLine(refusal.Item)
			}
			i++
		}
		if refusal.Err != nil || refusal.Item != nil {
			r.progress.Refused++
			if r.cfg.Refused != nil {
				if err := r.cfg.Refused(refusal); err != nil {
					return errFinal{err}
				}
			}
		}
		r.progress.Line, r.progress.Offset = e.line, e.end
		r.bytes -= e.size
	}
	return nil
}

// linesFault: the same line would be refused again.
func linesFault(e *revokdv1.ItemError) bool {
	switch e.GetCode() {
	case "invalid_argument", "not_found", "already_exists", "permission_denied", "unauthenticated", "failed_precondition", "out_of_range":
		return true
	}
	return false
}

// lineReader splits the input.
type lineReader struct {
	in   *bufio.Reader
	at   Progress
	line []byte
}

func newLineReader(in io.Reader, at Progress) *lineReader {
	return &lineReader{in: bufio.NewReaderSize(in, 64<<10), at: at}
}

// next returns the next line that is not empty, or io.EOF.
func (l *lineReader) next(defaults *revokdv1.RevokeRequest) (entry, error) {
	for {
		size, err := l.read()
		if err != nil {
			return entry{}, err
		}
		l.at.Offset += size
		l.at.Line++
		e := entry{line: l.at.Line, end: l.at.Offset, size: len(l.line)}
		if isBlank(l.line) {
			continue
		}
		if e.req, e.exp, e.err = parseLine(l.line); e.err == nil {
			if e.req.GetReason() == revokdv1.Reason_REASON_UNSPECIFIED {
				e.req.Reason = defaults.GetReason()
			}
			e.req.Comment = defaults.GetComment()
		}
		return e, nil
	}
}

func isBlank(line []byte) bool {
	for _, c := range line {
		if c != ' ' && c != '\t' && c != '\r' {
			return false
		}
	}
	return true
}

// read puts the next line without its end into l.line, at most a little more than MaxLine of it, and returns how many bytes
// of the input it took.
func (l *lineReader) read() (size int64, err error) {
	l.line = l.line[:0]
	for {
		part, err := l.in.ReadSlice('\n')
		size += int64(len(part))
		if room := MaxLine + 2 - len(l.line); room > 0 {
			l.line = append(l.line, part[:min(room, len(part))]...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && size > 0, err == nil:
			for n := len(l.line); n > 0 && (l.line[n-1] == '\n' || l.line[n-1] == '\r'); n-- {
				l.line = l.line[:n-1]
			}
			return size, nil
		}
		return 0, err
	}
}
