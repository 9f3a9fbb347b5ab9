package api

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
)

// Groups of roles in the matrix. This is the second place, beside access, that says who may do what, so that neither changes unseen.
const (
	anyone    = "nobody stranger reader subscriber writer admin node subscriber+writer"
	asks      = "reader subscriber writer admin node subscriber+writer"
	writes    = "writer admin node subscriber+writer"
	follows   = "subscriber admin node subscriber+writer"
	adminOnly = "admin"
	noOne     = ""
)

// matrix has a row for each method of the API, and the pages.
var matrix = map[string]string{
	"POST /revokd.v1.RevocationService/Check":        asks,
	"POST /revokd.v1.RevocationService/CheckBatch":   asks,
	"POST /revokd.v1.RevocationService/Explain":      asks,
	"POST /revokd.v1.RevocationService/Status":       asks,
	"POST /revokd.v1.RevocationService/Revoke":       writes,
	"POST /revokd.v1.RevocationService/RevokeBatch":  writes,
	"POST /revokd.v1.RevocationService/RevokeStream": writes,
	"POST /revokd.v1.RevocationService/Block":        writes,
	"POST /revokd.v1.RevocationService/Unblock":      writes,
	"POST /revokd.v1.RevocationService/Rehearse":     writes,
	"POST /revokd.v1.ReplicationService/Exchange":    follows,
	"POST /revokd.v1.ReplicationService/Lookup":      follows,
	"POST /revokd.v1.ClusterService/Members":         asks,
	"POST /revokd.v1.ClusterService/Identity":        follows,
	"POST /revokd.v1.ClusterService/Join":            adminOnly,
	"POST /revokd.v1.ClusterService/Leave":           adminOnly,
	"POST /revokd.v1.ClusterService/ChangeVoters":    adminOnly,
	"POST /revokd.v1.ClusterService/Forget":          "admin node",
	"POST /revokd.v1.ClusterService/GossipKeys":      "admin node",
	"POST /revokd.v1.ClusterService/FingerprintKeys": adminOnly,
	"POST /revokd.v1.DevService/MintToken":           asks,

	"POST /grpc.health.v1.Health/Check":                                   anyone,
	"POST /grpc.health.v1.Health/Watch":                                   anyone,
	"POST /grpc.health.v1.Health/List":                                    noOne, // not served
	"POST /grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      asks,
	"POST /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": asks,

	"GET /":                      anyone,
	"GET /healthz":               anyone,
	"GET /readyz":                anyone,
	"GET /.well-known/jwks.json": anyone,
	"GET /metrics":               asks,
	"GET /filter":                follows,
	"POST /backup":               adminOnly,

	// What does not exist, or is written otherwise.
	"POST /revokd.v1.RevocationService/Nonsense": noOne,
	"POST /revokd.v1.revocationservice/check":    noOne,
	"POST /revokd.v1.RevocationService/":         noOne,
	"POST //revokd.v1.RevocationService/Check":   noOne,
	"GET /debug/pprof/":                          noOne,
	"GET /debug/vars":                            noOne,
	"GET //metrics":                              noOne,
	"GET /healthz/../metrics":                    noOne,
	"GET /metrics/":                              noOne,
	"GET /healthz/":                              noOne,
	"GET /favicon.ico":                           noOne,
}

// Whoever adds a method or a page is reminded to say who may call it.
func TestEveryMethodHasARow(t *testing.T) {
	check := func(method, path string) {
		if _, ok := matrix[method+" "+path]; !ok {
			t.Errorf("%s %s has no row in the matrix", method, path)
		}
		if _, ok := access[path]; !ok && matrix[method+" "+path] != noOne {
			t.Errorf("%s has no row in the table of access", path)
		}
	}
	n := 0
	for _, file := range []protoreflect.FullName{"revokd.v1", "grpc.health.v1"} {
		protoregistry.GlobalFiles.RangeFilesByPackage(file, func(f protoreflect.FileDescriptor) bool {
			for i := range f.Services().Len() {
				svc := f.Services().Get(i)
				for j := range svc.Methods().Len() {
					n++
					check(http.MethodPost, "/"+string(svc.FullName())+"/"+string(svc.Methods().Get(j).Name()))
				}
			}
			return true
		})
	}
	if n < 18 {
		t.Errorf("%d methods in the descriptors", n)
	}
	source, err := os.ReadFile("server.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]string{"backupPath": backupPath, "filterPath": filterPath}
	pages := regexp.MustCompile(`s\.mux\.Handle(?:Func)?\("(GET|POST) (/[^"{]*)?(?:\{\$\})?"(?: ?\+ ?(\w+))?,`).FindAllStringSubmatch(string(source), -1)
	if len(pages) < 7 {
		t.Errorf("%d pages found", len(pages))
	}
	for _, m := range pages {
		check(m[1], m[2]+constants[m[3]])
	}
	for path := range access {
		if _, post := matrix["POST "+path]; !post {
			check(http.MethodGet, path)
		}
	}
}

func tokenOf(role string) string {
	return strings.ReplaceAll(fmt.Sprintf("token-of-a-%-20s", role), " ", "_")
}

// tokens has one for each role of a client.
func tokens(t testing.TB) *credentials.Set {
	t.Helper()
	var b strings.Builder
	b.WriteString("tokens:\n")
	for _, role := range pki.ClientRoles() {
		e, err := credentials.NewEntry(tokenOf(string(role)), "t-"+strings.ReplaceAll(string(role), "+", "-"), role, nil, 0, 0, noon.Add(time.Hour), noon)
		if err != nil {
			t.Fatal(err)
		}
		y, err := e.YAML()
		if err != nil {
			t.Fatal(err)
		}
		b.Write(y)
	}
	set, err := credentials.Parse([]byte(b.String()), noon)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestMatrix: every method and page, by every role, with a certificate, with a token and with neither, with and without TLS.
func TestMatrix(t *testing.T) {
	set := tokens(t)
	withTokens := func(c *setup) { c.api.Credentials = set }
	clockNoon := func(c *setup) { c.api.Now = func() time.Time { return noon } }
	var callers []string
	for _, role := range pki.ClientRoles() {
		callers = append(callers, string(role))
	}
	bare := func(s *secured) *tls.Config {
		src, err := pki.Load(pki.Config{CA: filepath.Join(s.dir, pki.AuthorityCert), Clock: s.now})
		if err != nil {
			t.Fatal(err)
		}
		return src.ClientConfig("")
	}
	try := func(t *testing.T, s *secured, who, token string, allowed func(roles []string) bool) {
		t.Helper()
		s.bearer = token
		for row, roles := range matrix {
			method, path, _ := strings.Cut(row, " ")
			code, text := s.status(method, path)
			unknown := code == http.StatusUnauthorized || code == http.StatusTooManyRequests && strings.Contains(text, "not in force")
			refused := unknown || code == http.StatusForbidden && strings.Contains(text, "role may not do this")
			want := allowed(strings.Fields(roles))
			if refused == want {
				t.Errorf("%s as %s: %d %s, allowed %v", row, who, code, text, want)
			}
			if stranger := who == "nobody" || who == "stranger"; refused && unknown != stranger {
				t.Errorf("%s as %s: %d %s", row, who, code, text)
			}
		}
	}
	has := func(who string) func([]string) bool {
		return func(roles []string) bool { return slices.Contains(roles, who) }
	}

	t.Run("certificates", func(t *testing.T) {
		s := startTLS(t, clockNoon)
		for _, who := range append(callers, "node") {
			s.as(s.source(t, pki.Role(who), "a-"+strings.ReplaceAll(who, "+", "-")).ClientConfig("n1"))
			try(t, s, who, "", has(who))
		}
		s.as(bare(s))
		try(t, s, "nobody", "", has("nobody"))
		// Without a file of credentials no token is one.
		try(t, s, "stranger", tokenOf("admin"), has("stranger"))
	})
	t.Run("tokens over TLS", func(t *testing.T) {
		s := startTLS(t, withTokens, clockNoon)
		s.as(bare(s))
		for _, who := range callers {
			try(t, s, who, tokenOf(who), has(who))
		}
		try(t, s, "nobody", "", has("nobody"))
		try(t, s, "stranger", tokenOf("nobody"), has("stranger"))
		// A wrong token is not made good by a certificate, and a good one may less than the certificate beside it.
		s.as(s.source(t, pki.RoleAdmin, "root").ClientConfig("n1"))
		try(t, s, "stranger", tokenOf("nobody"), has("stranger"))
		try(t, s, "reader", tokenOf("reader"), has("reader"))
		try(t, s, "admin", "", has("admin"))
	})
	t.Run("tokens on loopback", func(t *testing.T) {
		s := &secured{fixture: start(t, withTokens, clockNoon)}
		for _, who := range callers {
			try(t, s, who, tokenOf(who), has(who))
		}
		try(t, s, "nobody", "", has("nobody"))
		try(t, s, "stranger", tokenOf("nobody"), has("stranger"))
	})
	t.Run("open", func(t *testing.T) { // on loopback, without anything
		s := &secured{fixture: start(t, clockNoon)}
		try(t, s, "anybody", "", func([]string) bool { return true })
	})
}
