package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"connectrpc.com/grpchealth"

	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Who may do what, by groups of roles.
var (
	readers     = append(pki.ClientRoles(), pki.RoleNode)
	writers     = []pki.Role{pki.RoleWriter, pki.RoleAdmin, pki.RoleNode}
	admins      = []pki.Role{pki.RoleAdmin}
	adminsNodes = []pki.Role{pki.RoleAdmin, pki.RoleNode}
	followers   = []pki.Role{pki.RoleSubscriber, pki.RoleAdmin, pki.RoleNode}
	everybody   = []pki.Role{} // a certificate is not needed
)

// access says who may call what while the server has TLS. What has no row is refused.
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
	revokdv1connect.RevocationServiceBlockProcedure:        writers,
	revokdv1connect.RevocationServiceUnblockProcedure:      writers,

	revokdv1connect.ReplicationServiceExchangeProcedure: followers, // see mayExchange
	revokdv1connect.ReplicationServiceLookupProcedure:   followers,
	filterPath: followers,

	revokdv1connect.ClusterServiceJoinProcedure:         admins,
	revokdv1connect.ClusterServiceLeaveProcedure:        admins,
	revokdv1connect.ClusterServiceChangeVotersProcedure: admins,
	revokdv1connect.ClusterServiceGossipKeysProcedure:   adminsNodes, // a node carries an admin's change to the others
	backupPath: admins,

	// Of development nodes, which have them only then.
	revokdv1connect.ClusterServiceIdentityProcedure: followers,
	revokdv1connect.DevServiceMintTokenProcedure:    readers,
	"/.well-known/jwks.json":                        everybody,
}

type callerKey struct{}

// Caller returns who has sent the request that ctx belongs to, by his certificate. ok is false if he has shown none, and without TLS.
func Caller(ctx context.Context) (id pki.Identity, ok bool) {
	id, ok = ctx.Value(callerKey{}).(pki.Identity)
	return id, ok
}

// authorize returns the request with its caller, or refuses it. Without TLS everybody may do everything: then the address is one of loopback.
func (s *Server) authorize(r *http.Request) (*http.Request, error) {
	if s.cfg.TLS == nil {
		return r, nil
	}
	roles, known := access[r.URL.Path]
	// What VerifiedChains does not have nobody has verified, whatever the configuration says.
	caller, shown := pki.Identity{}, r.TLS != nil && len(r.TLS.VerifiedChains) > 0
	if shown {
		var err error
		if caller, err = pki.PeerIdentity(*r.TLS); err != nil {
			return r, fmt.Errorf("%w: %w", errNoCertificate, err)
		}
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	}
	switch {
	case known && len(roles) == 0:
		return r, nil
	case !shown:
		return r, errNoCertificate
	case !slices.Contains(roles, caller.Role):
		return r, fmt.Errorf("%w: %w", errRole, bad("certificate", "not_allowed", "role", rolesText(roles)))
	}
	return r, nil
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
