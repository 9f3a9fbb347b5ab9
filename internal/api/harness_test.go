package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/internal/audit"
	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
	"github.com/revokd/revokd/ttlstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// canary is part of every identifier in these tests: it must not appear in a log or an error.
const canary = "canary"

var noon = time.Date(2026, 11, 2, 12, 0, 0, 500e6, time.UTC)

// fixture is a dev node with its API on a loopback address.
type fixture struct {
	testing.TB
	node   *node.Node
	server *Server
	dev    *devissuer.Issuer
	clock  *clocktest.Fake
	log    *buffer
	audits string // directory of the audit
	url    string
	http   *http.Client
	stop   func() error // ends Serve and returns its error
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// setup is what a test may change before the node and the server are made.
type setup struct {
	node   node.Config
	api    Config
	audit  *audit.Log // nil: one in a directory of its own
	noRun  bool       // the node is never ready
	paired bool       // a member of a cluster, and the only voter, with a session with n2
	issuer func(*token.Issuer)
}

func start(t testing.TB, change ...func(*setup)) *fixture {
	t.Helper()
	f := &fixture{TB: t, clock: clocktest.New(noon), log: new(buffer)}
	log := hclog.New(&hclog.LoggerOptions{Output: f.log, JSONFormat: true, Level: hclog.Trace})
	var err error
	if f.dev, err = devissuer.New(); err != nil {
		t.Fatal(err)
	}
	c := setup{
		node: node.Config{
			Name: "n1", Version: "v1", Durability: node.DurabilityMemory, Key: revocation.Key{1}, Clock: f.clock, Logger: log,
			Store: ttlstore.Config{Heap: true, MaxItems: 100_000},
		},
		api: Config{Dev: f.dev, Logger: log, Drain: 5 * time.Second},
	}
	for _, fn := range change {
		fn(&c)
	}
	issuer := f.dev.TokenIssuer()
	if c.issuer != nil {
		c.issuer(&issuer)
	}
	verifier, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{issuer}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	c.node.Policy = verifier.Policy()
	if c.paired {
		c.node.Cluster = &node.ClusterConfig{Gossip: cluster.Config{Bind: "127.0.0.1:0"}, APIAddr: "127.0.0.1:1", BootstrapExpect: 1}
	}
	if f.node, err = node.New(c.node); err != nil {
		t.Fatal(err)
	}
	c.api.Node, c.api.Verifier = f.node, verifier
	if c.audit == nil {
		f.audits = t.TempDir()
		if c.audit, err = audit.Open(audit.Config{Dir: f.audits, Node: "n1", Clock: f.clock, Logger: log}); err != nil {
			t.Fatal(err)
		}
	}
	c.api.Audit = c.audit
	if f.server, err = New(c.api); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.audit.Run(ctx); err != nil {
			t.Errorf("audit: %v", err)
		}
	})
	if !c.noRun {
		running.Go(func() {
			if err := f.node.Run(ctx); err != nil {
				t.Errorf("node: %v", err)
			}
		})
		if c.paired {
			f.pair(c.node)
		}
		eventually(t, "the node is ready", func() bool {
			if c.paired { // a cluster is formed as time passes
				f.clock.Advance(5 * time.Millisecond)
			}
			return len(f.node.Ready()) == 0
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.url = "http://" + ln.Addr().String()
	serving, end := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(serving, ln) }()
	f.stop = sync.OnceValue(func() error { end(); return <-served })
	f.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}, Timeout: 20 * time.Second}
	t.Cleanup(func() {
		f.http.CloseIdleConnections()
		if err := f.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
		cancel()
		running.Wait()
		if err := f.node.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		f.clean("the log", f.log.String())
		if f.audits == "" {
			return
		}
		files, err := audit.Files([]string{f.audits})
		if err != nil {
			t.Error(err)
		}
		if r, err := audit.Verify(context.Background(), files, nil, nil); err != nil || !r.Whole() {
			t.Errorf("the audit: %+v, %v", r.Break, err)
		}
		if !c.api.AuditValues {
			f.clean("the audit", f.auditText())
		}
	})
	return f
}

// clean fails the test if a text holds an identifier or a token.
func (f *fixture) clean(what, text string) {
	f.Helper()
	for _, secret := range []string{canary, "eyJ"} {
		if i := strings.Index(text, secret); i >= 0 {
			f.Errorf("%s holds an identifier: ...%.160s", what, text[max(0, i-80):])
		}
	}
}

// eventually polls a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) { // between polls
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// advance lets time pass, until the node has seen it.
func (f *fixture) advance(d time.Duration) {
	f.Helper()
	f.clock.Advance(d)
	eventually(f, "the node sees the time", func() bool { return f.node.Now() >= f.clock.Now().UnixMilli() })
}

// mint signs a token with the dev issuer.
func (f *fixture) mint(p devissuer.Params) string {
	f.Helper()
	s, err := f.dev.Mint(p, f.clock.Now())
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// reply is what a call has returned, in whatever protocol.
type reply struct {
	message proto.Message // nil with an error
	code    string        // ok, or the Connect code
	text    string        // of the error
	detail  *revokdv1.ErrorDetail
	confirm string // the code of a confirmation
	retry   string
	request string // id, from post
}

// protocol carries out a call. The methods are those of RevocationService but for the stream.
type protocol struct {
	name string
	call func(method, body string) reply
}

// messagesOf returns empty messages of a method.
func messagesOf(t testing.TB, method string) (req, res proto.Message) {
	t.Helper()
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(revokdv1connect.RevocationServiceName + "." + method))
	if err != nil {
		t.Fatal(err)
	}
	m := d.(protoreflect.MethodDescriptor)
	fresh := func(d protoreflect.MessageDescriptor) proto.Message {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
		if err != nil {
			t.Fatal(err)
		}
		return mt.New().Interface()
	}
	return fresh(m.Input()), fresh(m.Output())
}

func request(t testing.TB, method, body string) proto.Message {
	t.Helper()
	req, _ := messagesOf(t, method)
	if err := protojson.Unmarshal([]byte(body), req); err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return req
}

// post sends JSON with a plain HTTP client, as curl does.
func (f *fixture) post(method, body string) reply {
	f.Helper()
	path := "/" + revokdv1connect.RevocationServiceName + "/" + method
	res, err := f.http.Post(f.url+path, "application/json", strings.NewReader(body))
	if err != nil {
		f.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.Fatal(err)
	}
	return f.readJSON(method, res, b)
}

func (f *fixture) readJSON(method string, res *http.Response, b []byte) reply {
	f.Helper()
	f.clean(method+" answers", string(b))
	if res.StatusCode == http.StatusOK {
		_, m := messagesOf(f, method)
		if err := protojson.Unmarshal(b, m); err != nil {
			f.Fatalf("%s: %v", b, err)
		}
		return reply{message: m, code: "ok", request: res.Header.Get(headerRequestID)}
	}
	var e struct {
		Code, Message string
		Details       []struct{ Debug json.RawMessage }
	}
	if err := json.Unmarshal(b, &e); err != nil {
		f.Fatalf("%s is no error of Connect: %d %s", method, res.StatusCode, b)
	}
	r := reply{code: e.Code, text: e.Message, detail: new(revokdv1.ErrorDetail), retry: res.Header.Get("Retry-After"), request: res.Header.Get(headerRequestID)}
	if len(e.Details) > 0 {
		if err := protojson.Unmarshal(e.Details[0].Debug, r.detail); err != nil {
			f.Fatal(err)
		}
	}
	if r.detail.GetKind() == "confirm" && len(e.Details) > 1 {
		var c revokdv1.Confirmation
		if err := protojson.Unmarshal(e.Details[1].Debug, &c); err != nil {
			f.Fatal(err)
		}
		r.with(&c)
	}
	return r
}

// protocols returns every way to call the API.
func (f *fixture) protocols() []protocol {
	f.Helper()
	conn, err := grpc.NewClient(strings.TrimPrefix(f.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	return []protocol{
		{"json", f.post},
		{"connect", f.viaConnect(f.client())},
		{"grpc", f.viaGRPC(conn)},
		{"grpc-web", f.viaConnect(f.client(connect.WithGRPCWeb()))},
	}
}

func (f *fixture) client(options ...connect.ClientOption) revokdv1connect.RevocationServiceClient {
	return revokdv1connect.NewRevocationServiceClient(f.http, f.url, options...)
}

// h2c is a client that speaks HTTP/2 without TLS.
func (f *fixture) h2c() *http.Client {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	f.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (f *fixture) viaConnect(c revokdv1connect.RevocationServiceClient) func(method, body string) reply {
	return func(method, body string) reply {
		f.Helper()
		req := request(f, method, body)
		switch method {
		case "Revoke":
			return invoke(f, c.Revoke, req)
		case "RevokeBatch":
			return invoke(f, c.RevokeBatch, req)
		case "Block":
			return invoke(f, c.Block, req)
		case "Unblock":
			return invoke(f, c.Unblock, req)
		case "Check":
			return invoke(f, c.Check, req)
		case "CheckBatch":
			return invoke(f, c.CheckBatch, req)
		case "Explain":
			return invoke(f, c.Explain, req)
		case "Status":
			return invoke(f, c.Status, req)
		}
		f.Fatalf("no method %s", method)
		return reply{}
	}
}

func invoke[Q, A any](f *fixture, fn func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), req proto.Message) reply {
	f.Helper()
	q, ok := any(req).(*Q)
	if !ok {
		f.Fatalf("request is a %T", req)
	}
	res, err := fn(f.Context(), connect.NewRequest(q))
	if err != nil {
		return f.connectError(err)
	}
	return reply{message: any(res.Msg).(proto.Message), code: "ok"}
}

func (f *fixture) connectError(err error) reply {
	f.Helper()
	f.clean("an error", err.Error())
	r := reply{code: connect.CodeOf(err).String(), text: err.Error(), detail: new(revokdv1.ErrorDetail)}
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		r.text, r.retry = coded.Message(), coded.Meta().Get("Retry-After")
		for _, d := range coded.Details() {
			if v, err := d.Value(); err == nil {
				r.with(v)
			}
		}
	}
	return r
}

func (f *fixture) viaGRPC(conn *grpc.ClientConn) func(method, body string) reply {
	return func(method, body string) reply {
		f.Helper()
		_, res := messagesOf(f, method)
		err := conn.Invoke(f.Context(), "/"+revokdv1connect.RevocationServiceName+"/"+method, request(f, method, body), res)
		if err == nil {
			return reply{message: res, code: "ok"}
		}
		st := grpcstatus.Convert(err)
		return f.grpcError(st.Proto())
	}
}

func (f *fixture) grpcError(st *status.Status) reply {
	f.Helper()
	f.clean("an error", st.String())
	r := reply{code: connect.Code(st.GetCode()).String(), text: st.GetMessage(), detail: new(revokdv1.ErrorDetail)}
	for _, d := range st.GetDetails() {
		v, err := d.UnmarshalNew()
		if err != nil {
			f.Fatal(err)
		}
		r.with(v)
	}
	return r
}

// with takes a detail of an error.
func (r *reply) with(m proto.Message) {
	switch m := m.(type) {
	case *revokdv1.ErrorDetail:
		r.detail = m
	case *revokdv1.Confirmation:
		r.confirm = m.GetCode()
	}
}

// field returns a field of the reply by its path in JSON, such as rule.kind; "" if it is not there.
func (r reply) field(path string) string {
	b, err := protojson.Marshal(r.message)
	if err != nil {
		return "error: " + err.Error()
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return "error: " + err.Error()
	}
	for name := range strings.SplitSeq(path, ".") {
		switch e := v.(type) {
		case map[string]any:
			v = e[name]
		case []any:
			var i int
			if _, err := fmt.Sscan(name, &i); err != nil || i >= len(e) {
				return ""
			}
			v = e[i]
		default:
			return ""
		}
	}
	if list, ok := v.([]any); ok {
		var parts []string
		for _, e := range list {
			parts = append(parts, fmt.Sprint(e))
		}
		return strings.Join(parts, ",")
	}
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}
