package revokdhttp_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdhttp"
	"github.com/revokd/revokd/revocation"
)

// The middleware in front of a handler. In a service Allow is that of a client.Client, and the function that verifies is Claims of a revokdjwt.Verifier.
func ExampleNew() {
	verify := func(_ context.Context, token string) (*revocation.Claims, error) {
		c := new(revocation.Claims)
		return c, c.Set("jti", revocation.String(token))
	}
	protect, err := revokdhttp.New(revokdhttp.Config{
		Claims: revokdhttp.Bearer(verify),
		Allow: func(c *revocation.Claims) error {
			if jti, _ := c.Lookup("jti").AsString(); jti == "stolen" {
				return client.ErrRevoked
			}
			return nil
		},
	})
	if err != nil {
		panic(err)
	}
	handler := protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "welcome") }))
	for _, token := range []string{"good", "stolen"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Printf("%d %q\n", w.Code, w.Header().Get("WWW-Authenticate"))
	}
	// Output:
	// 200 ""
	// 401 "Bearer error=\"invalid_token\", error_description=\"The access token has been revoked\""
}
