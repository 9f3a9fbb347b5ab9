// Package revokdjwt verifies a JWT with golang-jwt and checks in the same call that it has not been revoked.
//
// # What it knows
//
// [Verifier.Verify] stands where jwt.ParseWithClaims stood. Keys come from a jwt.Keyfunc, as there; algorithms, issuer and audience are fixed
// in the [Config]. A function, usually Client.Allow of package client, says whether the claims may pass.
//
// # What it promises
//
//   - What is checked are the claims of the text whose signature was verified, with header.kid and token.sha256, read as package token reads them: a name that stands twice,
//     lenient base64, crit, and tokens over 8 KiB are refused before golang-jwt sees them.
//   - Only listed algorithms pass, never none; exp is required.
//   - Whether a token is revoked is asked only after its signature and its times have been verified.
//   - Errors match those of golang-jwt (jwt.ErrTokenExpired), of package token (token.ErrMalformed), or client.ErrRevoked and client.ErrUnknown.
//
// # Concurrency
//
// A [Verifier] may be used concurrently if the functions of its Config may. The zero Verifier is not usable.
package revokdjwt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// ErrConfig: the configuration cannot be used.
var ErrConfig = errors.New("revokdjwt: invalid configuration")

// Config of [New]. Zero fields mean the defaults.
type Config struct {
	// Allow decides: nil, or an error that matches client.ErrRevoked or client.ErrUnknown. Usually Client.Allow. Required.
	Allow func(*revocation.Claims) error
	// Keys returns the key of a token, by its kid. An error of it that says that keys cannot be had at the moment should match client.ErrUnknown, so that
	// the answer is 503 and not 401. Required.
	Keys jwt.Keyfunc
	// Algorithms that are accepted, such as ES256. Required.
	Algorithms []string
	// Issuer that a token must name: a revocation by iss means nothing if tokens of others are accepted with it. Required.
	Issuer string
	// Audience: a token must name one of these. Empty: not looked at.
	Audience []string
	// Leeway on exp and nbf; at most 5 min, less than what revocations outlive their tokens by.
	Leeway time.Duration
	// NewClaims makes what golang-jwt decodes into, so that the caller gets a type of his own. Nil: jwt.MapClaims.
	NewClaims func() jwt.Claims
	// Now is the clock of golang-jwt. Nil: its own.
	Now func() time.Time
}

// Verifier verifies and checks tokens.
type Verifier struct {
	cfg    Config
	parser *jwt.Parser
}

// New checks the configuration. Errors match [ErrConfig].
func New(cfg Config) (*Verifier, error) {
	bad := func(field, limit string) (*Verifier, error) {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, field, limit)
	}
	switch {
	case cfg.Allow == nil:
		return bad("Allow", "required")
	case cfg.Keys == nil:
		return bad("Keys", "required")
	case len(cfg.Algorithms) == 0:
		return bad("Algorithms", "required")
	case slices.ContainsFunc(cfg.Algorithms, func(a string) bool { return strings.EqualFold(a, "none") || jwt.GetSigningMethod(a) == nil }):
		return bad("Algorithms", "want names that golang-jwt knows, and not none")
	case cfg.Issuer == "":
		return bad("Issuer", "required")
	case cfg.Leeway < 0 || cfg.Leeway > 5*time.Minute:
		return bad("Leeway", "0 to 5 min")
	}
	if cfg.NewClaims == nil {
		cfg.NewClaims = func() jwt.Claims { return jwt.MapClaims{} }
	}
	options := []jwt.ParserOption{
		jwt.WithValidMethods(cfg.Algorithms), jwt.WithStrictDecoding(), jwt.WithExpirationRequired(), jwt.WithIssuer(cfg.Issuer), jwt.WithLeeway(cfg.Leeway),
	}
	if len(cfg.Audience) > 0 {
		options = append(options, jwt.WithAudience(cfg.Audience...))
	}
	if cfg.Now != nil {
		options = append(options, jwt.WithTimeFunc(cfg.Now))
	}
	return &Verifier{cfg: cfg, parser: jwt.NewParser(options...)}, nil
}

// Token is a token that was verified.
type Token struct {
	*jwt.Token                    // as golang-jwt has it
	Revocation *revocation.Claims // what was checked; for Client.OnRevoked
}

// Verify verifies a token and checks it. ctx is not waited on: neither step leaves the process unless Keys does.
func (v *Verifier) Verify(ctx context.Context, raw string) (*Token, error) {
	t, err := v.parse(ctx, raw)
	if err != nil {
		return nil, err
	}
	if err := v.cfg.Allow(t.Revocation); err != nil {
		return nil, err
	}
	return t, nil
}

// Claims verifies a token and leaves the check to the caller: it is for Config.Claims of packages revokdhttp and revokdgrpc, which check themselves.
func (v *Verifier) Claims(ctx context.Context, raw string) (*revocation.Claims, error) {
	t, err := v.parse(ctx, raw)
	if err != nil {
		return nil, err
	}
	return t.Revocation, nil
}

func (v *Verifier) parse(ctx context.Context, raw string) (*Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// First, so that both readers read a text that has one meaning only.
	claims, err := token.ParseUnverified(raw)
	if err != nil {
		return nil, err
	}
	parsed, err := v.parser.ParseWithClaims(raw, v.cfg.NewClaims(), v.cfg.Keys)
	if err != nil {
		return nil, err
	}
	// The issuer that a revocation names is the one that was read here, whatever a type of the caller's makes of "ISS".
	if claims.Issuer() != v.cfg.Issuer {
		return nil, fmt.Errorf("%w: %w", jwt.ErrTokenInvalidClaims, jwt.ErrTokenInvalidIssuer)
	}
	return &Token{Token: parsed, Revocation: claims}, nil
}
