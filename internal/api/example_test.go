package api_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/revokd/revokd/internal/api"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// A node for development with its API on a free port: revoke a session by claims, then check a token of it.
func Example() {
	dev, err := devissuer.New()
	if err != nil {
		panic(err)
	}
	verifier, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{dev.TokenIssuer()}})
	if err != nil {
		panic(err)
	}
	n, err := node.New(node.Config{Name: "n1", Durability: node.DurabilityMemory, Key: revocation.Key{1}, Policy: verifier.Policy()})
	if err != nil {
		panic(err)
	}
	defer n.Close()
	server, err := api.New(api.Config{Node: n, Verifier: verifier, Dev: dev})
	if err != nil {
		panic(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- n.Run(ctx) }()
	go func() { ended <- server.Serve(ctx, ln) }()

	call := func(method, body string) {
		url := "http://" + ln.Addr().String() + "/revokd.v1.RevocationService/" + method
		res, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			panic(err)
		}
		fmt.Println(res.StatusCode, method, strings.Contains(string(answer), "_REVOKED"))
	}
	for len(n.Ready()) > 0 { // a moment, without a journal
	}
	call("Revoke", `{"match":{"claims":{"iss":"https://idp.example","sid":"s1"}}}`)
	call("Check", `{"claims":{"iss":"https://idp.example","sid":"s1","iat":1793620000,"exp":1793623600}}`)
	call("Check", `{"claims":{"iss":"https://idp.example","sid":"s2"}}`)
	http.DefaultClient.CloseIdleConnections()

	cancel()
	fmt.Println(<-ended, <-ended)
	// Output:
	// 200 Revoke true
	// 200 Check true
	// 200 Check false
	// <nil> <nil>
}
