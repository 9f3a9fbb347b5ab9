package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"
)

// interceptor stands between connect and the handlers: it refuses what did not decode, turns errors into codes, catches
// panics, and counts.
type interceptor struct{ server *Server }

var _ connect.Interceptor = interceptor{}

func (i interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (answer connect.AnyResponse, err error) {
		began, procedure := time.Now(), r.Spec().Procedure
		traced := func(string, string) {}
		if isAudited(procedure) {
			ctx, traced = i.server.traced(i.server.remote(ctx, r.Header()), procedure, began)
		}
		defer func() {
			p := recover()
			cause := err
			answer, err = i.end(answer, procedure, err, p)
			if isAudited(procedure) {
				if cause == nil {
					cause = err // a panic
				}
				answer, err = i.audit(ctx, r, answer, err, cause)
				traced(identify(answer, err), codeText(err))
			}
			i.count(procedure, err, began)
		}()
		if err := decoded(r.Any()); err != nil {
			return nil, err
		}
		if isAudited(procedure) && !changesNothing(r.Any()) {
			if err := i.server.auditor.ready(); err != nil {
				return nil, err
			}
		}
		return next(ctx, r)
	}
}

func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		began := time.Now()
		if conn.Spec().Procedure == streamProcedure {
			ctx = i.server.remote(ctx, conn.RequestHeader())
		}
		defer func() {
			p := recover()
			if cause := context.Cause(ctx); err != nil && errors.Is(cause, errNoCredential) {
				err = cause
			}
			_, err = i.end(nil, conn.Spec().Procedure, err, p)
			i.count(conn.Spec().Procedure, err, began)
		}()
		return next(ctx, conn)
	}
}

func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// audit records a call before its caller learns what became of it; cause is the error that the handler has returned.
func (i interceptor) audit(ctx context.Context, r connect.AnyRequest, answer connect.AnyResponse, err, cause error) (connect.AnyResponse, error) {
	id, c := identify(answer, err), callFrom(ctx)
	if failed := i.server.trail(ctx, r.Spec().Procedure, id, c.from).unary(ctx, r.Any(), c.wrote, cause); failed != nil && err == nil {
		coded := i.server.refusal(failed, r.Spec().Procedure)
		coded.Meta().Set(headerRequestID, id)
		return nil, coded
	}
	return answer, err
}

// end finishes a call: p is what recover has returned.
func (i interceptor) end(answer connect.AnyResponse, procedure string, err error, p any) (connect.AnyResponse, error) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	if p != nil {
		i.server.panicked(procedure, p)
		err = errPanic
	}
	if err == nil {
		return answer, nil
	}
	return nil, i.server.refusal(err, procedure)
}

// identify returns the id of a call, which goes with its answer or its error.
func identify(answer connect.AnyResponse, err error) string {
	var header http.Header
	coded, refused := errors.AsType[*connect.Error](err)
	switch {
	case refused:
		header = coded.Meta()
	case answer != nil:
		header = answer.Header()
	default:
		return newRequestID()
	}
	id := header.Get(headerRequestID)
	if id == "" {
		id = newRequestID()
		header.Set(headerRequestID, id)
	}
	return id
}

func (i interceptor) count(procedure string, err error, began time.Time) {
	took, code := time.Since(began), codeText(err)
	i.server.metrics.called(procedure, code, took)
	if i.server.log.IsTrace() {
		i.server.log.Trace("call", "method", procedure, "code", code, "took", took.String())
	}
}
