package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/grpchealth"

	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// Who may do what, by groups of roles.
var (
	readers     = append(pki.ClientRoles(), pki.RoleNode)
	writers     = []pki.Role{pki.RoleWriter, pki.RoleAdmin, pki.RoleNode} // see mayWrite
	admins      = []pki.Role{pki.RoleAdmin}
	adminsNodes = []pki.Role{pki.RoleAdmin, pki.RoleNode}
	followers   = []pki.Role{pki.RoleSubscriber, pki.RoleAdmin, pki.RoleNode}
	everybody   = []pki.Role{} // no credential is needed
)

// access says who may call what while the server has TLS or credentials. What has no row is refused.
var access = map[string][]pki.Role{
	"/":        everybody,
	"/healthz": everybody,
	"/readyz":  everybody,
	"/" + grpchealth.HealthV1ServiceName + "/Check": everybody,
	"/" + grpchealth.HealthV1ServiceName + "/Watch": everybody,

	revokdv1connect.RevocationServiceCheckProcedure:      readers,
	revokdv1connect.RevocationServiceCheckBatchProcedure: readers,
	revokdv1connect.RevocationServiceExplainProcedure:    readers,
	revokdv1connect.RevocationServiceStatusProcedure:     readers,
	revokdv1connect.ClusterServiceMembersProcedure:       readers,
	"/metrics": readers,
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      readers,
	"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": readers,

	revokdv1connect.RevocationServiceRevokeProcedure:       writers,
	revokdv1connect.RevocationServiceRevokeBatchProcedure:  writers,
	revokdv1connect.RevocationServiceRevokeStreamProcedure: writers,
	revokdv1connect.RevocationServiceRehearseProcedure:     writers,
	revokdv1connect.RevocationServiceBlockProcedure:        writers,
	revokdv1connect.RevocationServiceUnblockProcedure:      writers,

	revokdv1connect.ReplicationServiceExchangeProcedure: followers, // see mayExchange
	revokdv1connect.ReplicationServiceLookupProcedure:   followers,
	filterPath: followers,

	revokdv1connect.ClusterServiceJoinProcedure:            admins,
	revokdv1connect.ClusterServiceLeaveProcedure:           admins,
	revokdv1connect.ClusterServiceChangeVotersProcedure:    admins,
	revokdv1connect.ClusterServiceForgetProcedure:          adminsNodes, // a node carries an admin's change to the others
	revokdv1connect.ClusterServiceGossipKeysProcedure:      adminsNodes, // the same
	revokdv1connect.ClusterServiceFingerprintKeysProcedure: admins,
	backupPath: admins,

	// Of development nodes, which have them only then.
	revokdv1connect.ClusterServiceIdentityProcedure: followers,
	revokdv1connect.DevServiceMintTokenProcedure:    readers,
	"/.well-known/jwks.json":                        everybody,
}

type callerKey struct{}

// Caller returns who has sent the request that ctx belongs to. ok is false if nobody needs to say who he is: see [Config.TLS].
func Caller(ctx context.Context) (c *credentials.Caller, ok bool) {
	c, ok = ctx.Value(callerKey{}).(*credentials.Caller)
	return c, ok
}

// open reports whether everybody may do everything: without TLS and credentials, when the address is one of loopback.
func (s *Server) open() bool { return s.cfg.TLS == nil && s.credentials.Load() == nil }

// authorize returns the request with its caller, or refuses it.
func (s *Server) authorize(r *http.Request) (*http.Request, error) {
	roles, known := access[r.URL.Path]
	if s.open() || known && len(roles) == 0 {
		return r, nil
	}
	caller, err := s.identify(r)
	if err != nil {
		return r, err
	}
	r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	if !slices.ContainsFunc(roles, caller.Role.Has) {
		err := fmt.Errorf("%w: %w", errRole, bad("", "not_allowed", "role", rolesText(roles)))
		if caller.ByToken() {
			return r, &inField{"authorization", err}
		}
		return r, err
	}
	return r, nil
}

// identify finds out who has sent a request. A token that is shown counts, and nothing beside it.
func (s *Server) identify(r *http.Request) (*credentials.Caller, error) {
	set := s.credentials.Load()
	header, shown := r.Header["Authorization"]
	switch {
	case set != nil && shown:
		return s.bearer(r, set, header)
	// What VerifiedChains does not have nobody has verified, whatever the configuration says.
	case r.TLS != nil && len(r.TLS.VerifiedChains) > 0:
		id, err := pki.PeerIdentity(*r.TLS)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoCredential, err)
		}
		c := set.Certificate(id)
		return &c, nil
	}
	return nil, errNoCredential
}

// bearer finds the caller of a token. A wrong one, an expired one and none are answered alike. Who fails too often is told so instead: his address is
// not locked out, as others may call from it, and 128 bits are not found by trying.
func (s *Server) bearer(r *http.Request, set *credentials.Set, header []string) (*credentials.Caller, error) {
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	if r.TLS == nil && !bearer.Loopback(host) {
		return nil, errPlaintext
	}
	if len(header) == 1 {
		if c, ok := set.Token(bearer.FromHeader(header[0]), s.cfg.Now()); ok {
			return &c, nil
		}
	}
	s.metrics.strangers.Inc()
	if _, ok := s.failures.take(host, failuresPerMinute/60., failuresPerMinute, 1, s.cfg.Now()); !ok {
		return nil, errFailures
	}
	return nil, errNoCredential
}

// SetCredentials puts the content of a file of credentials in the place of that from before. Calls that last end if their caller is not what he was.
func (s *Server) SetCredentials(set *credentials.Set) {
	s.lasting.Lock()
	defer s.lasting.Unlock()
	s.credentials.Store(set)
	for l := range s.lasting.calls {
		if !set.Still(l.caller, s.cfg.Now()) {
			l.end(errNoCredential)
		}
	}
}

// lastingCalls are the streams of callers who have said who they are.
type lastingCalls struct {
	sync.Mutex
	calls map[*lastingCall]struct{}
}

type lastingCall struct {
	caller *credentials.Caller
	end    context.CancelCauseFunc
}

// last returns the context of a stream, which ends when the credential of its caller does. The stream calls done at its end.
func (s *Server) last(ctx context.Context) (_ context.Context, done func()) {
	caller, known := Caller(ctx)
	if !known {
		return ctx, func() {}
	}
	stopTimer := func() {}
	if !caller.Expires.IsZero() {
		timed, cancel := context.WithTimeoutCause(ctx, caller.Expires.Sub(s.cfg.Now()), errNoCredential)
		ctx, stopTimer = timed, cancel
	}
	ctx, end := context.WithCancelCause(ctx)
	l := &lastingCall{caller, end}
	s.lasting.Lock()
	defer s.lasting.Unlock()
	s.lasting.calls[l] = struct{}{}
	if !s.credentials.Load().Still(caller, s.cfg.Now()) { // it was replaced since the call was let in
		end(errNoCredential)
	}
	return ctx, func() {
		s.lasting.Lock()
		delete(s.lasting.calls, l)
		s.lasting.Unlock()
		end(nil)
		stopTimer()
	}
}

// mayWrite checks what a caller wants to write against what he is limited to. What is kept is not looked at: it is never outside of what is revoked.
func mayWrite(ctx context.Context, m revocation.Match) error {
	if caller, known := Caller(ctx); known && !caller.Granted(m) {
		return errGrant
	}
	return nil
}

func rolesText(roles []pki.Role) string {
	if len(roles) == 0 {
		return "no role"
	}
	var names []string
	for _, r := range roles {
		names = append(names, string(r))
	}
	return "one of the roles " + strings.Join(names, ", ")
}

// mayExchange checks who a caller says he is against his certificate. A node is one of that name; a client replica is anybody who may follow,
// under any name, because several processes may share a certificate.
func mayExchange(ctx context.Context, peer node.SessionPeer) error {
	if peer.Name == "" || len(peer.Name) > 64 {
		return bad(HeaderNode, "missing", "", "the name of the calling node, 1 to 64 bytes")
	}
	caller, known := Caller(ctx)
	if known && !peer.Client && (caller.Role != pki.RoleNode || caller.Name != peer.Name) {
		return fmt.Errorf("%w: %w", errRole, bad(HeaderNode, "not_allowed", "", "the name in a node's certificate"))
	}
	return nil
}
