package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"github.com/hashicorp/go-hclog"
	"go.opentelemetry.io/otel/trace"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/internal/audit"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// Config of a [Server]. Zero fields mean the defaults.
type Config struct {
	Node     *node.Node        // required
	Verifier *token.Verifier   // required
	Dev      *devissuer.Issuer // nil: no DevService
	Version  string            // of the program, in metrics

	// AnyIssuer allows matches without iss, which concern every issuer. Always allowed with Dev, and to admins.
	AnyIssuer bool
	// Hosts are the names, besides localhost and loopback addresses, under which the server may be called, without
	// ports; "*" is any. A request for another Host is refused: a web page could have pointed its own name at us.
	Hosts []string

	// Identity returns the secrets of a development cluster for a node that joins it; nil: none are handed out.
	Identity func() *revokdv1.IdentityResponse
	// Peer returns the API of another member, to which changes of the gossip keys and of members are carried; nil: a change is for this node only.
	Peer func(cluster.Member) revokdv1connect.ClusterServiceClient
	// Leave is called when the node has left its cluster on request.
	Leave func()

	// TLS makes the server speak TLS only, and hold every caller to the role of his credential: a configuration of [pki.Source.ServerConfig].
	// nil: no TLS, and without Credentials whoever reaches the address may do everything.
	TLS *tls.Config
	// Credentials are the tokens that are taken besides certificates, and what writers are limited to; see [Server.SetCredentials]. nil: none.
	Credentials *credentials.Set
	// Insecure is shown in the metrics: the address is not one of loopback, and there is no TLS.
	Insecure bool
	// Now is the wall clock, by which tokens end and rates are counted; default [time.Now].
	Now func() time.Time

	// Audit records every write and every change of the cluster before its caller is answered; whoever makes the server runs it, for longer than the server. nil: nothing is recorded.
	Audit *audit.Log
	// AuditValues has the claims' values in it and not only their names.
	AuditValues bool
	// AuditGoOn: when the audit cannot be written, changes go on and the lines are counted as lost. Else they are refused.
	AuditGoOn bool
	// Tracer draws spans of writes and of their parts; nil: none.
	Tracer trace.Tracer

	Limits Limits
	// Linger is how long Serve goes on accepting after its context has ended, not ready: who sends callers here needs that long to see it. Default 0.
	Linger time.Duration
	// Drain is how long calls may go on after that. Default 10 s.
	Drain  time.Duration
	Logger hclog.Logger // nil: none
}

// Limits of a [Server]. Zero fields mean the defaults.
type Limits struct {
	Connections int           // at once; one more is closed at once. Default 10 000
	Strangers   int           // of them that nobody has shown on who he is; for one more another one of them is closed. Default 1000
	Streams     int           // calls of RevokeStream at once. Default 64
	Message     int           // bytes of a request. Default 1 MiB
	Batch       int           // bytes of a batch, and of one message of a stream. Default 8 MiB
	Total       int64         // bytes of all requests that are being worked on. Default 64 MiB
	Read        time.Duration // for a request to arrive, and for an answer of a stream to be read. Default 15 s
	Deadline    time.Duration // of a call, whatever the caller asks for. Default 30 s
	Idle        time.Duration // of a connection without calls, and of a stream without messages. Default 2 min
	// Records that may be written in a second: by one writer in calls (default 1000), and in streams (50 000), and by all writers of one issuer (50 000).
	WriterRate, BulkRate, IssuerRate int
}

// Limits that nobody has a reason to change.
const (
	maxHeaderBytes  = 16 << 10
	headerTimeout   = 5 * time.Second
	http2Streams    = 250 // on one connection
	http2Window     = 512 << 10
	http2Stream     = 256 << 10 // of the window for one stream, so that one that waits does not stop the others; a message of replication has to fit
	envelopeBytes   = 5         // of gRPC, before a message
	streamProcedure = revokdv1connect.RevocationServiceRevokeStreamProcedure
)

func or[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

func (l *Limits) defaults() {
	or(&l.Connections, 10_000)
	or(&l.Strangers, 1000)
	or(&l.Streams, 64)
	or(&l.Message, 1<<20)
	or(&l.Batch, 8<<20)
	or(&l.Total, 64<<20)
	or(&l.Read, 15*time.Second)
	or(&l.Deadline, 30*time.Second)
	or(&l.Idle, 2*time.Minute)
	or(&l.WriterRate, 1000)
	or(&l.BulkRate, 50_000)
	or(&l.IssuerRate, 50_000)
}

func (c *Config) validate() error {
	l := &c.Limits
	switch {
	case c.Node == nil:
		return fmt.Errorf("api: node: %w: required", revocation.ErrInvalid)
	case c.Verifier == nil:
		return fmt.Errorf("api: verifier: %w: required", revocation.ErrInvalid)
	case l.Connections < 0 || l.Strangers < 0 || l.Streams < 0 || l.Message < 0 || l.Batch < 0 || l.Total < 0 || l.Read < 0 || l.Deadline < 0 || l.Idle < 0 || l.WriterRate < 0 || l.BulkRate < 0 || l.IssuerRate < 0 || c.Drain < 0 || c.Linger < 0:
		return fmt.Errorf("api: limits: %w: not negative", revocation.ErrInvalid)
	}
	l.defaults()
	or(&c.Drain, 10*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	c.AnyIssuer = c.AnyIssuer || c.Dev != nil
	return nil
}

// Server is the front. See the package comment.
type Server struct {
	cfg     Config
	log     hclog.Logger
	node    *node.Node
	metrics *metrics
	auditor *auditor
	mux     *http.ServeMux
	refuser *connect.ErrorWriter
	hosts   map[string]bool

	credentials atomic.Pointer[credentials.Set]
	lasting     lastingCalls
	failures    rates[string] // of credentials, by address
	confirms    confirmations
	rates       atomic.Pointer[Limits] // of them those of records a second; see SetRates
	budget      budget

	streams  chan struct{} // a place for each RevokeStream
	backups  chan struct{} // a place for one backup
	filters  chan struct{} // a place for each caller who is sent a filter
	pending  atomic.Int64  // bytes of requests that are being worked on
	stopping chan struct{} // closed when the context of Serve has ended

	mu      sync.RWMutex // held for reading while running is raised
	ended   bool         // no handler may begin any more
	running sync.WaitGroup
}

// New checks the configuration. It starts nothing. Errors match [revocation.ErrInvalid].
func New(cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{
		cfg: cfg, log: cfg.Logger.Named("api"), node: cfg.Node, mux: http.NewServeMux(), refuser: connect.NewErrorWriter(),
		hosts: map[string]bool{"localhost": true}, streams: make(chan struct{}, cfg.Limits.Streams),
		backups: make(chan struct{}, 1), filters: make(chan struct{}, filterSends), stopping: make(chan struct{}),
	}
	for _, h := range cfg.Hosts {
		s.hosts[strings.ToLower(h)] = true
	}
	s.credentials.Store(cfg.Credentials)
	s.rates.Store(&s.cfg.Limits)
	s.budget.seed = maphash.MakeSeed()
	s.lasting.calls = map[*lastingCall]struct{}{}
	s.auditor = newAuditor(&s.cfg)
	s.metrics = newMetrics(s)
	s.route()
	return s, nil
}

// route is everything that answers.
func (s *Server) route() {
	options := []connect.HandlerOption{
		connect.WithCodec(protoCodec{}), connect.WithCodec(jsonCodec{"json"}), connect.WithCodec(jsonCodec{"json; charset=utf-8"}),
		// Nobody needs compression on a loopback address, and nobody has shown who he is: no bombs.
		connect.WithCompression("gzip", nil, nil),
		// Nothing is reached by GET: tokens do not belong into URLs.
		connect.WithIdempotency(connect.IdempotencyUnknown),
		connect.WithConditionalHandlerOptions(func(spec connect.Spec) []connect.HandlerOption {
			if spec.StreamType == connect.StreamTypeUnary {
				return nil // see body
			}
			return []connect.HandlerOption{connect.WithReadMaxBytes(s.cfg.Limits.Batch)}
		}),
		connect.WithInterceptors(interceptor{s}),
	}
	services := []string{
		revokdv1connect.RevocationServiceName, revokdv1connect.ClusterServiceName, revokdv1connect.ReplicationServiceName, grpchealth.HealthV1ServiceName,
	}
	s.mux.Handle(revokdv1connect.NewRevocationServiceHandler(revocations{s}, options...))
	s.mux.Handle(revokdv1connect.NewClusterServiceHandler(clusters{s}, options...))
	s.mux.Handle(revokdv1connect.NewReplicationServiceHandler(replicas{s}, options...))
	if s.cfg.Dev != nil {
		services = append(services, revokdv1connect.DevServiceName)
		s.mux.Handle(revokdv1connect.NewDevServiceHandler(dev{s}, options...))
		s.mux.HandleFunc("GET /.well-known/jwks.json", s.jwks)
	}
	s.mux.Handle(grpchealth.NewHandler(health{s, services}, options...))
	reflector := grpcreflect.NewStaticReflector(services...)
	s.mux.Handle(grpcreflect.NewHandlerV1(reflector, options...))
	s.mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector, options...))
	s.mux.HandleFunc("GET /{$}", s.index)
	s.mux.HandleFunc("GET /healthz", s.healthz)
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.Handle("GET /metrics", s.metrics.handler())
	s.mux.HandleFunc("POST "+backupPath, s.backup)
	s.mux.HandleFunc("GET "+filterPath, s.filter)
}

// Serve answers on a listener until ctx ends: then it is not ready and tells streams to end, stops accepting after Config.Linger, gives calls the time
// of Config.Drain, and returns nil when all have ended. It closes ln. It may be called once.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	l := s.cfg.Limits
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(s.cfg.TLS == nil)
	srv := &http.Server{
		Handler: http.HandlerFunc(s.handle), Protocols: protocols, TLSConfig: s.cfg.TLS,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: l.Read, WriteTimeout: l.Read + l.Deadline, IdleTimeout: l.Idle,
		MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: http2Streams, MaxReceiveBufferPerConnection: http2Window, MaxReceiveBufferPerStream: http2Stream,
			SendPingTimeout: l.Idle, PingTimeout: l.Read, WriteByteTimeout: l.Read,
		},
		ErrorLog: s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	failed := make(chan error, 1)
	accept := newDoor(ln, l, s.metrics)
	srv.ConnContext = accept.context
	go func() {
		if s.cfg.TLS != nil {
			failed <- srv.ServeTLS(accept, "", "")
			return
		}
		failed <- srv.Serve(accept)
	}()
	s.log.Info("listening", "address", ln.Addr().String(), "tls", s.cfg.TLS != nil)
	var err error
	select {
	case err = <-failed:
		close(s.stopping)
	case <-ctx.Done():
		close(s.stopping)
		linger := time.NewTimer(s.cfg.Linger)
		defer linger.Stop()
		select {
		case <-linger.C:
		case err := <-failed:
			failed <- err
		}
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Drain)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			s.log.Warn("calls were cut off at the end", "drain", s.cfg.Drain.String())
		}
		<-failed
	}
	err = errors.Join(err, srv.Close())
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.running.Wait()
	s.log.Info("stopped")
	return err
}

// begin counts a handler in unless the server has ended.
func (s *Server) begin() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.ended {
		return false
	}
	s.running.Add(1)
	return true
}

// waitingFor is what keeps the node from being ready, the end of this server included.
func (s *Server) waitingFor() []string {
	waiting := s.node.Ready()
	if s.auditor.ready() != nil {
		waiting = append(waiting, "the audit cannot be written, so changes are refused: the log says why")
	}
	select {
	case <-s.stopping:
		waiting = append(waiting, "the node is stopping")
	default:
	}
	return waiting
}
