package api

import (
	"context"
	"math"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/devissuer"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// dev serves DevService.
type dev struct{ *Server }

var _ revokdv1connect.DevServiceHandler = dev{}

func (s dev) MintToken(_ context.Context, c *connect.Request[revokdv1.MintTokenRequest]) (*connect.Response[revokdv1.MintTokenResponse], error) {
	m := c.Msg
	p := devissuer.Params{Sub: m.GetSub(), Sid: m.GetSid(), Alg: m.GetAlg()}
	if revocation.String(p.Sub).Kind() != revocation.KindString {
		return nil, bad("sub", "too_large", "string", "at most 512 bytes")
	}
	if revocation.String(p.Sid).Kind() != revocation.KindString {
		return nil, bad("sid", "too_large", "string", "at most 512 bytes")
	}
	switch p.Alg {
	case "", "EdDSA", "ES256", "RS256", "HS256":
	default:
		return nil, bad("alg", "out_of_range", "string", "EdDSA, ES256, RS256 or HS256")
	}
	var err error
	if p.TTL, err = duration("ttl", m.GetTtl(), revocation.MaxCeiling); err != nil {
		return nil, err
	}
	iat, err := millis("iat", m.GetIat())
	if err != nil {
		return nil, err
	}
	if iat != 0 {
		p.IssuedAt = time.UnixMilli(iat)
	}
	if _, err := claimsOf(m.GetClaims()); err != nil { // the same limits as when it is checked
		return nil, err
	}
	if len(m.GetClaims().GetFields()) > 0 {
		p.Claims = whole(m.GetClaims().AsMap()).(map[string]any)
	}
	t, err := s.cfg.Dev.Mint(p, s.node.Status().Wall)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&revokdv1.MintTokenResponse{Token: t}), nil
}

// whole turns the doubles of a Struct that are whole numbers into integers: a token says 7 and not 7e0.
func whole(v any) any {
	switch v := v.(type) {
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < maxExact {
			return int64(v)
		}
	case map[string]any:
		for name, e := range v {
			v[name] = whole(e)
		}
	case []any:
		for i, e := range v {
			v[i] = whole(e)
		}
	}
	return v
}
