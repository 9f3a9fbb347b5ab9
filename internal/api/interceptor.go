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
		began := time.Now()
		defer func() {
			p := recover()
			cause := err
			answer, err = i.end(answer, r.Spec().Procedure, began, err, p)
			if isAudited(r.Spec().Procedure) {
				if cause == nil {
					cause = err // a panic
				}
				i.server.audit(ctx, r.Spec().Procedure, identify(answer, err)).unary(r.Any(), answer, cause)
			}
		}()
		if err := decoded(r.Any()); err != nil {
			return nil, err
		}
		return next(ctx, r)
	}
}

func (i interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		began := time.Now()
		defer func() {
			p := recover()
			if cause := context.Cause(ctx); err != nil && errors.Is(cause, errNoCredential) {
				err = cause
			}
			_, err = i.end(nil, conn.Spec().Procedure, began, err, p)
		}()
		return next(ctx, conn)
	}
}

func (i interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// end finishes a call: p is what recover has returned.
func (i interceptor) end(answer connect.AnyResponse, procedure string, began time.Time, err error, p any) (connect.AnyResponse, error) {
	if p == http.ErrAbortHandler {
		panic(p)
	}
	if p != nil {
		i.server.panicked(procedure, p)
		err = errPanic
	}
	if err == nil {
		i.count(procedure, "ok", began)
		return answer, nil
	}
	coded := i.server.refusal(err, procedure)
	i.count(procedure, coded.Code().String(), began)
	return nil, coded
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

func (i interceptor) count(procedure, code string, began time.Time) {
	took := time.Since(began)
	i.server.metrics.called(procedure, code, took)
	if i.server.log.IsTrace() {
		i.server.log.Trace("call", "method", procedure, "code", code, "took", took.String())
	}
}
