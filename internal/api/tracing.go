package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// The parts of a write, spans below that of its call.
const (
	spanValidate = "validate"
	spanJournal  = "journal commit"
	spanQuorum   = "quorum ack"
)

// remote returns a context with the trace that a caller says his request belongs to (W3C traceparent). What else he says of it goes nowhere.
func (s *Server) remote(ctx context.Context, header http.Header) context.Context {
	if s.cfg.Tracer == nil {
		return ctx
	}
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(header))
	return trace.ContextWithRemoteSpanContext(ctx, trace.SpanContextFromContext(ctx).WithTraceState(trace.TraceState{}))
}

// traced begins the span of a write; end ends it. Without a tracer, and for calls that are not sampled, it costs nothing to speak of. No attribute has a value of a claim, a name, or
// what a caller has written: what a trace knows whoever reads traces may know.
func (s *Server) traced(ctx context.Context, procedure string, began time.Time) (_ context.Context, end func(id, code string)) {
	if s.cfg.Tracer == nil {
		return ctx, func(string, string) {}
	}
	service, method, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	ctx, span := s.cfg.Tracer.Start(ctx, service+"/"+method, trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(began),
		trace.WithAttributes(attribute.String("rpc.system", "connect_rpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", method)))
	return context.WithValue(ctx, beganKey{}, began), func(id, code string) {
		if span.IsRecording() {
			span.SetAttributes(attribute.String("revokd.code", code))
			if id != "" {
				span.SetAttributes(attribute.String("revokd.request", id)) // as in the audit
			}
			if code != codeOK {
				span.SetStatus(codes.Error, code)
			}
		}
		span.End()
	}
}

// beganKey has the time at which the span in the context began.
type beganKey struct{}

// carryOut is [node.Node.Write] within the limits of the caller. Its parts it draws below the span of ctx.
func (s *Server) carryOut(ctx context.Context, requests []revocation.Request, o node.WriteOptions) ([]node.Result, node.Receipt, error) {
	if err := s.charge(ctx, requests); err != nil {
		return nil, node.Receipt{}, err
	}
	o.Writer = writer(ctx)
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return s.node.Write(ctx, requests, o)
	}
	o.Timing = new(node.Timing)
	began := time.Now()
	results, receipt, err := s.node.Write(ctx, requests, o)
	ended := time.Now()
	from, _ := ctx.Value(beganKey{}).(time.Time)
	for _, part := range []struct {
		name string
		took time.Duration // since began; 0: it did not end
	}{{spanValidate, o.Timing.Validated}, {spanJournal, o.Timing.Durable}, {spanQuorum, o.Timing.Confirmed}} {
		if part.took == 0 && err == nil {
			continue // an earlier call with the same idempotency key has done it
		}
		to := began.Add(part.took)
		_, child := s.cfg.Tracer.Start(ctx, part.name, trace.WithTimestamp(from))
		if part.took == 0 {
			to = ended
			child.SetStatus(codes.Error, codeText(err))
		}
		child.End(trace.WithTimestamp(to))
		if from = to; part.took == 0 {
			break
		}
	}
	span.SetAttributes(attribute.Int("revokd.requests", len(requests)), attribute.Int("revokd.confirmed", len(receipt.Confirmed)),
		attribute.Int("revokd.unconfirmed", len(receipt.Unconfirmed)))
	return results, receipt, err
}

// codeText is the code of an error, as metrics have it.
func codeText(err error) string {
	if err == nil {
		return codeOK
	}
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		return coded.Code().String()
	}
	o, _, _ := outcomeOf(err)
	return o.code.String()
}

// codeOK is the code of a call that succeeded, in metrics and traces.
const codeOK = "ok"
