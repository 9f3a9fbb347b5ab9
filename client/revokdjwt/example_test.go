package revokdjwt_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/client/revokdjwt"
	"github.com/revokd/revokd/revocation"
)

// Verify stands where jwt.Parse stood. In a service Allow is that of a client.Client.
func ExampleVerifier_Verify() {
	key := []byte("0123456789abcdef0123456789abcdef")
	v, err := revokdjwt.New(revokdjwt.Config{
		Keys:       func(*jwt.Token) (any, error) { return key, nil },
		Algorithms: []string{"HS256"},
		Issuer:     "https://login.example",
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
	for _, jti := range []string{"good", "stolen"} {
		raw, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
			"iss": "https://login.example", "jti": jti, "exp": time.Now().Add(time.Hour).Unix(),
		}).SignedString(key)
		if err != nil {
			panic(err)
		}
		_, err = v.Verify(context.Background(), raw)
		fmt.Println(jti, err == nil, errors.Is(err, client.ErrRevoked))
	}
	// Output:
	// good true false
	// stolen false true
}
