package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// startNode starts a node, which otherwise is a process of its own: revokd agent --dev.
func startNode() (addr string, stop func()) {
	key := revocation.Key{1, 2, 3}
	n, err := node.New(node.Config{Name: "n1", Durability: node.DurabilityMemory, Key: key})
	must(err)
	verifier, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{{
		Name: "https://login.example", Algorithms: []string{"HS256"}, KeysJSON: []byte(`{"keys":[{"kty":"oct","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}`),
	}}})
	must(err)
	s, err := api.New(api.Config{Node: n, Verifier: verifier, Identity: func() *revokdv1.IdentityResponse {
		return &revokdv1.IdentityResponse{FingerprintKey: key[:]}
	}})
	must(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- n.Run(ctx) }()
	go func() { ended <- s.Serve(ctx, ln) }()
	return ln.Addr().String(), func() {
		cancel()
		must(errors.Join(<-ended, <-ended, n.Close()))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func ExampleOpen() {
	addr, stop := startNode()
	defer stop()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	now := time.Now().Unix()
	claims, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"https://login.example","sub":"alice","iat":%d,"exp":%d}`, now-10, now+3600))
	must(err)

	// begin: README.md
	revoked, err := client.Open(ctx, client.Config{Addrs: []string{addr}}) // of any node: 127.0.0.1:7950
	must(err)
	defer revoked.Close()
	must(revoked.Ready(ctx))           // copied; until then a check is Unknown
	fmt.Println(revoked.Allow(claims)) // of a verified token, from memory: nil, client.ErrRevoked (401) or client.ErrUnknown (503)
	_, err = revoked.RevokeSubject(ctx, "https://login.example", "alice", client.Reason("password-changed"))
	must(err)
	fmt.Println(errors.Is(revoked.Allow(claims), client.ErrRevoked))
	// end
	// Output:
	// <nil>
	// true
}

// The quick start of the README is the one above.
func TestReadme(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	must(err)
	readme, err := os.ReadFile("../README.md")
	must(err)
	_, rest, found := strings.Cut(string(source), "\t// begin: README.md\n")
	code, _, ended := strings.Cut(rest, "\t// end\n")
	if !found || !ended {
		t.Fatal("the marks are gone")
	}
	code = strings.ReplaceAll("\n"+code, "\n\t", "\n")
	if !strings.Contains(string(readme), "```go"+code+"```\n") {
		t.Errorf("README.md does not have:\n%s", code)
	}
}
