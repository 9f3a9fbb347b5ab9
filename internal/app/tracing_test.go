package app

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// receiver takes spans as an OpenTelemetry collector does.
type receiver struct {
	*httptest.Server
	mu    sync.Mutex
	spans []*tracev1.Span
	raw   bytes.Buffer // all that has arrived
	fails error
}

func newReceiver(t *testing.T) *receiver {
	r := new(receiver)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		var m collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &m)
		}
		if req.URL.Path != "/v1/traces" || req.Header.Get("X-Tenant") != "test" {
			err = fmt.Errorf("%s, headers %v", req.URL, req.Header)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.fails = errors.Join(r.fails, err)
		r.raw.Write(body)
		for _, resource := range m.GetResourceSpans() {
			for _, scope := range resource.GetScopeSpans() {
				r.spans = append(r.spans, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// tree describes the spans below a parent, each with its children.
func (r *receiver) tree(parent []byte) (list []string) {
	for _, s := range r.spans {
		if bytes.Equal(s.GetParentSpanId(), parent) {
			text := s.GetName()
			if children := r.tree(s.GetSpanId()); len(children) > 0 {
				text += "(" + strings.Join(children, " > ") + ")"
			}
			list = append(list, text)
		}
	}
	return list
}

// Writes are traced below the span of who calls, in the parts that they have; nothing in a span says what was revoked; the end of the agent sends what is left.
func TestTracing(t *testing.T) {
	r := newReceiver(t)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=test")
	a := run(t, AgentConfig{Dev: true, DataDir: t.TempDir(), APIAddr: "127.0.0.1:0", Trace: TraceConfig{Endpoint: r.URL, Sample: "0"}})
	service := revokdv1connect.NewRevocationServiceClient(http.DefaultClient, a.url)
	eventually(t, "it is ready", func() bool {
		_, err := service.RevokeBatch(t.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: []*revokdv1.RevokeRequest{revokeCanary()}}))
		return err == nil
	})
	const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	sampled := func(h http.Header) {
		h.Set("traceparent", "00-"+traceID+"-"+spanID+"-01")
		h.Set("tracestate", "vendor=canary-state")
		h.Set("baggage", "user=canary-baggage")
	}
	one := connect.NewRequest(revokeCanary())
	sampled(one.Header())
	res, err := service.Revoke(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	request := res.Header().Get("X-Request-Id")
	refused := connect.NewRequest(&revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: "canary.token.x"}})
	sampled(refused.Header())
	if _, err := service.Revoke(t.Context(), refused); err == nil {
		t.Fatal("not refused")
	}
	many := connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: []*revokdv1.RevokeRequest{revokeCanary(), revokeCanary()}})
	sampled(many.Header())
	if _, err := service.RevokeBatch(t.Context(), many); err != nil {
		t.Fatal(err)
	}
	check := connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: []byte(`{"iss":"canary-issuer","sub":"canary-sub"}`)}})
	sampled(check.Header())
	if _, err := service.Check(t.Context(), check); err != nil {
		t.Fatal(err)
	}
	for _, parent := range []string{"", "00-" + traceID + "-" + spanID + "-00", "canary-parent"} { // nobody has sampled these
		c := connect.NewRequest(revokeCanary())
		c.Header().Set("traceparent", parent)
		if _, err := service.Revoke(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	a.end()
	if err := <-a.done; err != nil {
		t.Fatal(err)
	}
	a.done <- nil

	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fails != nil {
		t.Error(r.fails)
	}
	parent, _ := hex.DecodeString(spanID)
	got := r.tree(parent)
	slices.Sort(got)
	want := []string{
		"revokd.v1.RevocationService/Revoke", // refused before anything was written
		"revokd.v1.RevocationService/Revoke(validate > journal commit > quorum ack)",
		"revokd.v1.RevocationService/RevokeBatch(validate > journal commit > quorum ack)",
	}
	if !slices.Equal(got, want) {
		t.Errorf("spans:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(r.spans) != 9 {
		t.Errorf("%d spans, want 9", len(r.spans))
	}
	for _, s := range r.spans {
		if hex.EncodeToString(s.GetTraceId()) != traceID {
			t.Errorf("%s is of trace %x", s.GetName(), s.GetTraceId())
		}
		if s.GetEndTimeUnixNano() < s.GetStartTimeUnixNano() || time.Since(time.Unix(0, int64(s.GetStartTimeUnixNano()))) > time.Minute {
			t.Errorf("%s from %d to %d", s.GetName(), s.GetStartTimeUnixNano(), s.GetEndTimeUnixNano())
		}
	}
	if raw := r.raw.String(); strings.Contains(raw, "canary") {
		t.Errorf("spans have what a caller has written: %q", raw)
	} else if !strings.Contains(raw, request) || request == "" || !strings.Contains(raw, "invalid_argument") {
		t.Errorf("spans do not have the id of the request %q, or its code", request)
	}
}

func revokeCanary() *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{
		Target:  &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://canary.example", "sub": "canary-sub"}}},
		Comment: "canary-comment",
	}
}

// A receiver that does not answer delays no write, and the end of the agent only for so long.
func TestTracingBlocksNothing(t *testing.T) {
	hangs := make(chan struct{})
	r := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer r.Close()
	defer close(hangs)
	t.Setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
	t.Setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
	logged := new(lockedBuffer)
	a := run(t, AgentConfig{
		Dev: true, DataDir: t.TempDir(), APIAddr: "127.0.0.1:0", Trace: TraceConfig{Endpoint: r.URL, Sample: "1"}, Logger: hclog.New(&hclog.LoggerOptions{Output: logged}),
	})
	service := revokdv1connect.NewRevocationServiceClient(http.DefaultClient, a.url)
	done := 0
	eventually(t, "500 writes", func() bool {
		for done < 500 {
			if _, err := service.Revoke(t.Context(), connect.NewRequest(revokeCanary())); err != nil {
				return false // not ready yet
			}
			done++
		}
		return true
	})
	http.DefaultClient.CloseIdleConnections()
	a.end()
	select {
	case err := <-a.done:
		a.done <- nil
		if err != nil {
			t.Error(err)
		}
	case <-time.After(4 * traceShutdown):
		t.Error("the agent waits for the receiver")
	}
	if !strings.Contains(logged.String(), "spans were lost at the end") {
		t.Errorf("log:\n%s", logged)
	}
}

func TestTraceConfig(t *testing.T) {
	for _, c := range []struct {
		cfg     TraceConfig
		env     map[string]string
		enabled bool
		refused string
	}{
		{},
		{cfg: TraceConfig{Endpoint: "http://127.0.0.1:4318"}, enabled: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, enabled: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces", "OTEL_TRACES_EXPORTER": "otlp"}, enabled: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}},
		{cfg: TraceConfig{Sample: "0.5"}},
		{cfg: TraceConfig{Endpoint: "127.0.0.1:4318"}, enabled: true, refused: "--trace-endpoint: malformed"},
		{cfg: TraceConfig{Endpoint: "grpc://127.0.0.1:4317"}, enabled: true, refused: "--trace-endpoint: malformed"},
		{cfg: TraceConfig{Endpoint: "http://user:secret@c:4318"}, enabled: true, refused: "--trace-endpoint: malformed"},
		{cfg: TraceConfig{Sample: "1.5"}, refused: "--trace-sample: out of range"},
		{cfg: TraceConfig{Sample: "-0.1"}, refused: "--trace-sample: out of range"},
		{cfg: TraceConfig{Sample: "NaN"}, refused: "--trace-sample: out of range"},
		{cfg: TraceConfig{Sample: "all"}, refused: "--trace-sample: out of range"},
	} {
		c.cfg.Getenv = func(name string) string { return c.env[name] }
		if got := c.cfg.enabled(); got != c.enabled {
			t.Errorf("%+v %v: enabled %v", c.cfg, c.env, got)
		}
		err := c.cfg.validate()
		if (err == nil) != (c.refused == "") || err != nil && (!strings.HasPrefix(err.Error(), c.refused) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.refused)
		}
	}
}

// While a receiver is away the log has a line a minute, with how many were left out.
func TestTraceErrors(t *testing.T) {
	var out bytes.Buffer
	now := time.Second
	e := &traceErrors{log: hclog.New(&hclog.LoggerOptions{Output: &out}), mono: func() time.Duration { return now }}
	for range 121 {
		e.Handle(errors.New("away"))
		now += time.Second
	}
	if got := strings.Count(out.String(), "spans were not sent"); got != 3 || !strings.Contains(out.String(), "left_out_before=59") {
		t.Errorf("%d lines:\n%s", got, out.String())
	}
}
