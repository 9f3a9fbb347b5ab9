package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// handle is the outermost handler: what holds for every request stands here.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.running.Done()
	defer s.recovered(w, r.URL.Path)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if err := s.admit(r); err != nil {
		s.stranger(r, err)
		s.refuse(w, r, err)
		return
	}
	r, err := s.authorize(r)
	if err != nil {
		s.stranger(r, err)
		s.refuse(w, r, err)
		return
	}
	if _, shown := Caller(r.Context()); shown || s.cfg.TLS == nil || len(r.TLS.VerifiedChains) > 0 {
		known(r.Context())
	}
	if !isCall(r.URL.Path) {
		s.mux.ServeHTTP(w, r)
		return
	}
	limit := s.limit(r)
	c := &call{from: r.RemoteAddr, control: http.NewResponseController(w), body: &body{ReadCloser: r.Body, server: s, limit: limit, left: limit}}
	defer c.body.release(math.MaxInt64)
	if r.ContentLength > limit {
		s.refuse(w, r, c.body.tooLarge())
		return
	}
	ctx := context.WithValue(r.Context(), callKey{}, c)
	switch r.URL.Path {
	case streamProcedure, exchangeProcedure:
		var done func()
		ctx, done = s.last(ctx)
		defer done()
	default:
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Limits.Deadline)
		defer cancel()
	}
	r = r.WithContext(ctx)
	r.Body = c.body
	s.mux.ServeHTTP(w, r)
}

// isCall tells procedures from pages.
func isCall(path string) bool {
	return strings.HasPrefix(path, "/revokd.v1.") || strings.HasPrefix(path, "/grpc.")
}

var crossOrigin http.CrossOriginProtection

// admit keeps web pages out: a page can make a browser send requests to this machine, and it can point a name of its own at it. With TLS
// the name would have to be in the certificate, so any will do.
func (s *Server) admit(r *http.Request) error {
	if s.cfg.TLS == nil && !s.hosts["*"] && !s.ours(r.Host) {
		return errHost
	}
	if crossOrigin.Check(r) != nil {
		return errCrossSite
	}
	return nil
}

// ours reports whether a Host is localhost, a loopback address or a configured name.
func (s *Server) ours(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	name = strings.TrimSuffix(strings.TrimPrefix(strings.ToLower(name), "["), "]")
	if s.hosts[name] {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}

// refuse answers a request that reaches no handler, in the caller's protocol.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	coded := s.refusal(err, "")
	if coded.Code() == connect.CodeUnauthenticated && s.credentials.Load() != nil {
		w.Header().Set("WWW-Authenticate", `Bearer realm="revokd"`)
	}
	if retry := coded.Meta().Get("Retry-After"); retry != "" {
		w.Header().Set("Retry-After", retry)
	}
	if isCall(r.URL.Path) && s.refuser.IsSupported(r) {
		_ = s.refuser.Write(w, r, coded)
		return
	}
	status := http.StatusBadRequest
	switch coded.Code() {
	case connect.CodePermissionDenied:
		status = http.StatusForbidden
	case connect.CodeUnauthenticated:
		status = http.StatusUnauthorized
	case connect.CodeResourceExhausted:
		status = http.StatusTooManyRequests
	}
	http.Error(w, coded.Message(), status)
}

// recovered answers for a handler outside of connect that panicked.
func (s *Server) recovered(w http.ResponseWriter, path string) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	s.panicked(path, p)
	http.Error(w, internal.message, http.StatusInternalServerError)
}

// panicked logs where a handler panicked, not the value: that may quote the request.
func (s *Server) panicked(method string, p any) {
	s.metrics.panics.Add(1)
	s.log.Error("handler panicked", "method", method, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
}

// limit is how many bytes the body of a request may have.
func (s *Server) limit(r *http.Request) int64 {
	var n int64
	switch r.URL.Path {
	case streamProcedure, exchangeProcedure:
		return math.MaxInt64 - 1 // each message is bounded
	case revokdv1connect.RevocationServiceRevokeBatchProcedure, revokdv1connect.RevocationServiceCheckBatchProcedure:
		n = int64(s.cfg.Limits.Batch)
	default:
		n = int64(s.cfg.Limits.Message)
	}
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		n += envelopeBytes
	}
	return n
}

// call is what a handler can know of the request below connect.
type call struct {
	from    string // the address of the caller's connection
	wrote   *wrote // set by handlers of writes
	paced   bool   // it waits for its budget: see charge
	control *http.ResponseController
	body    *body
}

type callKey struct{}

func callFrom(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// body bounds a request, and all of them together. It is read by one goroutine at a time. Its errors carry codes.
type body struct {
	io.ReadCloser
	server *Server
	limit  int64
	left   int64 // of limit
	failed error

	fresh atomic.Int64 // bytes read since take
	mu    sync.Mutex
	held  int64 // bytes counted in server.pending
}

func (b *body) Read(p []byte) (int, error) {
	if b.failed != nil {
		return 0, b.failed
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	if int64(n) > b.left {
		b.failed = b.server.refusal(b.tooLarge(), "")
		return 0, b.failed
	}
	b.left -= int64(n)
	b.fresh.Add(int64(n))
	b.mu.Lock()
	b.held += int64(n)
	b.mu.Unlock()
	if b.server.pending.Add(int64(n)) > b.server.cfg.Limits.Total {
		b.failed = b.server.refusal(errOverload, "")
		return 0, b.failed
	}
	switch {
	case err == nil || errors.Is(err, io.EOF):
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = errSlow
	default:
		err = errBody
	}
	b.failed = b.server.refusal(err, "")
	return n, b.failed
}

func (b *body) tooLarge() error {
	return fmt.Errorf("%w: %w", errTooLarge, bad("body", "too_large", "", fmt.Sprintf("at most %d bytes", b.limit)))
}

// take returns how many bytes were read since it was last called.
func (b *body) take() int64 { return b.fresh.Swap(0) }

// release gives back up to n bytes of what the body holds.
func (b *body) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n = min(n, b.held)
	b.held -= n
	b.server.pending.Add(-n)
}
