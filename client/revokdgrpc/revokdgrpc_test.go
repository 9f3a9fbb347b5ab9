package revokdgrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBad = errors.New("secret detail")

// served is the health service of grpc-go as something to call: Watch is a stream.
type served struct {
	grpc_health_v1.UnimplementedHealthServer
	stream func(grpc_health_v1.Health_WatchServer) error
}

func (served) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if c := FromContext(ctx); c != nil && c.Lookup("jti").Kind() == revocation.KindMissing {
		return nil, errors.New("other claims")
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (s served) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	return s.stream(stream)
}

func (served) List(context.Context, *grpc_health_v1.HealthListRequest) (*grpc_health_v1.HealthListResponse, error) {
	return &grpc_health_v1.HealthListResponse{}, nil
}

// env is a server over a pipe, and what it decides by.
type env struct {
	cfg     Config
	revoked atomic.Bool // whatever is asked about
	told    atomic.Value
	stream  func(grpc_health_v1.Health_WatchServer) error
}

func newEnv() *env {
	e := &env{}
	e.cfg = Config{
		RetryAfter: 3 * time.Second,
		Skip:       func(method string) bool { return strings.HasSuffix(method, "/List") },
		Claims: Bearer(func(_ context.Context, token string) (*revocation.Claims, error) {
			switch token {
			case "bad":
				return nil, errBad
			case "nokeys":
				return nil, fmt.Errorf("%w: no keys", client.ErrUnknown)
			case "none":
				return nil, nil
			}
			c := new(revocation.Claims)
			return c, c.Set("jti", revocation.String(token))
		}),
		Allow: func(c *revocation.Claims) error {
			jti, _ := c.Lookup("jti").AsString()
			switch {
			case e.revoked.Load(), jti == "revoked":
				return fmt.Errorf("%w: rule deny", client.ErrRevoked)
			case jti == "unknown":
				return client.ErrUnknown
			case jti == "odd":
				return errBad
			}
			return nil
		},
	}
	return e
}

func (e *env) serve(t *testing.T) grpc_health_v1.HealthClient {
	t.Helper()
	i, err := New(e.cfg)
	if err != nil {
		t.Fatal(err)
	}
	outer := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		res, err := handler(ctx, req)
		e.told.Store(struct{ error }{err})
		return res, err
	}
	s := grpc.NewServer(grpc.ChainUnaryInterceptor(outer, i.Unary), grpc.ChainStreamInterceptor(i.Stream))
	grpc_health_v1.RegisterHealthServer(s, served{stream: e.stream})
	ln := bufconn.Listen(1 << 16)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		s.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return grpc_health_v1.NewHealthClient(conn)
}

func with(ctx context.Context, authorization ...string) context.Context {
	for _, a := range authorization {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", a)
	}
	return ctx
}

func TestUnary(t *testing.T) {
	e := newEnv()
	api := e.serve(t)
	for _, c := range []struct {
		name          string
		authorization []string
		code          codes.Code
		is            error
	}{
		{"good", []string{"Bearer ok"}, codes.OK, nil},
		{"no token", nil, codes.Unauthenticated, ErrNoToken},
		{"two tokens", []string{"Bearer ok", "Bearer revoked"}, codes.Unauthenticated, ErrNoToken},
		{"another scheme", []string{"Basic YTpi"}, codes.Unauthenticated, ErrNoToken},
		{"empty", []string{"Bearer "}, codes.Unauthenticated, ErrNoToken},
		{"claims without an error", []string{"Bearer none"}, codes.Unauthenticated, ErrNoToken},
		{"not valid", []string{"Bearer bad"}, codes.Unauthenticated, ErrInvalidToken},
		{"revoked", []string{"bearer revoked"}, codes.Unauthenticated, client.ErrRevoked},
		{"unknown", []string{"Bearer unknown"}, codes.Unavailable, client.ErrUnknown},
		{"no keys", []string{"Bearer nokeys"}, codes.Unavailable, client.ErrUnknown},
		{"an error without a meaning", []string{"Bearer odd"}, codes.Unavailable, ErrNotDecided},
	} {
		_, err := api.Check(with(t.Context(), c.authorization...), &grpc_health_v1.HealthCheckRequest{})
		s := status.Convert(err)
		if s.Code() != c.code || strings.Contains(s.Message(), "secret") {
			t.Errorf("%s: %v", c.name, err)
		}
		told := e.told.Load().(struct{ error }).error
		if !errors.Is(told, c.is) || c.is == nil && told != nil {
			t.Errorf("%s: an outer interceptor is told %v, want %v", c.name, told, c.is)
		}
		var retry *errdetails.RetryInfo
		for _, d := range s.Details() {
			retry, _ = d.(*errdetails.RetryInfo)
		}
		if (retry != nil) != (c.code == codes.Unavailable) || retry != nil && retry.GetRetryDelay().AsDuration() != 3*time.Second {
			t.Errorf("%s: retry %v", c.name, retry)
		}
	}
	if _, err := api.List(t.Context(), &grpc_health_v1.HealthListRequest{}); err != nil {
		t.Errorf("a method that needs no token: %v", err)
	}
}

// A stream whose token is revoked moves no further message.
func TestStreamAtMessages(t *testing.T) {
	e := newEnv()
	e.stream = func(s grpc_health_v1.Health_WatchServer) error {
		for {
			if err := s.Send(&grpc_health_v1.HealthCheckResponse{}); err != nil {
				return err
			}
			e.revoked.Store(true)
		}
	}
	s, err := e.serve(t).Watch(with(t.Context(), "Bearer ok"), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("after the revocation: %v", err)
	}
}

// The first message of a stream is read before the handler runs it through the interceptor: a revoked token does not get so far.
func TestStreamRefused(t *testing.T) {
	e := newEnv()
	e.stream = func(grpc_health_v1.Health_WatchServer) error { return errors.New("reached") }
	s, err := e.serve(t).Watch(with(t.Context(), "Bearer unknown"), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
}

// A stream that waits is ended by OnRevoked, which is told when the stream has ended.
func TestStreamWatched(t *testing.T) {
	e := newEnv()
	var stopped atomic.Int32
	fire := make(chan func(), 1)
	e.cfg.OnRevoked = func(_ *revocation.Claims, fn func(revocation.Verdict)) func() {
		fire <- func() { fn(revocation.Verdict{Status: revocation.Revoked}) }
		return func() { stopped.Add(1) }
	}
	e.stream = func(s grpc_health_v1.Health_WatchServer) error {
		<-s.Context().Done()
		return nil
	}
	s, err := e.serve(t).Watch(with(t.Context(), "Bearer ok"), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	(<-fire)()
	if _, err := s.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
	if stopped.Load() != 1 {
		t.Fatal("the watch was not stopped once")
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no Allow":      func(c *Config) { c.Allow = nil },
		"no Claims":     func(c *Config) { c.Claims = nil },
		"negative wait": func(c *Config) { c.RetryAfter = -1 },
	} {
		e := newEnv()
		change(&e.cfg)
		if _, err := New(e.cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client's methods are what the fields take.
func TestFits(t *testing.T) {
	var c *client.Client
	if _, err := New(Config{Allow: c.Allow, OnRevoked: c.OnRevoked, Claims: newEnv().cfg.Claims}); err != nil {
		t.Error(err)
	}
}
