package api

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// Limits of requests that the schema does not show.
const (
	maxComment      = 256 // bytes
	maxKey          = 64  // bytes of an idempotency key
	maxAckTimeout   = 30 * time.Second
	maxMaxStaleness = time.Hour
)

// revokeRequest turns a message into a request. A token is verified first; an expired one is good enough to name what it
// names, and the node answers already_expired where nothing else can be alive.
func (s *Server) revokeRequest(ctx context.Context, m *revokdv1.RevokeRequest) (revocation.Request, error) {
	var r revocation.Request
	var err error
	if r.Reason, err = reasonOf(m.GetReason()); err != nil {
		return r, err
	}
	if r.IssuedBefore, err = millis("issued_before", m.GetIssuedBefore()); err != nil {
		return r, err
	}
	if r.ExpiresAt, err = millis("expires_at", m.GetExpiresAt()); err != nil {
		return r, err
	}
	if b := m.GetBelow(); b != nil {
		r.Below = &revocation.Below{Claim: b.GetClaim(), Value: b.GetValue()}
	}
	if err = checkComment(m.GetComment()); err != nil {
		return r, err
	}
	switch m.GetTarget().(type) {
	case *revokdv1.RevokeRequest_Token:
		err = s.byToken(ctx, m, &r)
	case *revokdv1.RevokeRequest_Match:
		if m.GetScope() != revokdv1.Scope_SCOPE_UNSPECIFIED {
			return r, bad("scope", "conflict", "", "with a token only: a match says itself what it covers")
		}
		r.Match, err = s.match(ctx, m.GetMatch())
	default:
		err = bad("token", "missing", "", "a token or a match")
	}
	if err != nil {
		return r, err
	}
	if err = mayWrite(ctx, r.Match); err != nil {
		return r, err
	}
	if m.GetKeep() != nil {
		err = s.keep(ctx, m.GetKeep(), &r)
	}
	return r, err
}

// byToken fills in what a token and a scope say.
func (s *Server) byToken(ctx context.Context, m *revokdv1.RevokeRequest, r *revocation.Request) error {
	claims, err := s.verify(ctx, "token", m.GetToken())
	if err != nil && !errors.Is(err, token.ErrExpired) {
		return err
	}
	switch m.GetScope() {
	case revokdv1.Scope_SCOPE_UNSPECIFIED, revokdv1.Scope_SCOPE_TOKEN:
		switch {
		case r.Below != nil:
			return bad("below", "conflict", "", "with a scope wider than the token")
		case r.IssuedBefore != 0:
			return bad("issued_before", "conflict", "", "with a scope wider than the token")
		case m.GetKeep() != nil:
			return bad("keep", "conflict", "", "with a scope wider than the token")
		}
		exp, ok := claims.ExpiresAt()
		switch {
		case r.ExpiresAt == 0 && ok:
			r.ExpiresAt = exp
		case ok && r.ExpiresAt < exp:
			return bad("expires_at", "out_of_range", "time", "not before the token's exp")
		}
		r.Match, err = tokenMatch(claims)
	case revokdv1.Scope_SCOPE_SESSION:
		name := s.node.Policy().Settings(claims.Issuer()).SessionClaim
		r.Match, err = matchOf(claims, name, claims.Lookup(name))
	case revokdv1.Scope_SCOPE_SUBJECT:
		r.Match, err = matchOf(claims, "sub", claims.Lookup("sub"))
		r.Cutoff = r.Below == nil
	default:
		err = bad("scope", "out_of_range", "integer", "SCOPE_TOKEN, SCOPE_SESSION or SCOPE_SUBJECT")
	}
	if caller, known := Caller(ctx); err == nil && known {
		r.Match, err = caller.Narrow(r.Match, claims.Lookup)
	}
	return err
}

// verify returns the claims of a signed token, also with an error that matches token.ErrExpired.
func (s *Server) verify(ctx context.Context, field, raw string) (*revocation.Claims, error) {
	t, err := s.cfg.Verifier.Verify(ctx, raw, s.node.Now())
	if err != nil {
		err = &inField{field, err}
	}
	if t == nil {
		if err == nil {
			err = bad(field, "malformed", "string", "a signed token")
		}
		return nil, err
	}
	return t.Claims, err
}

// tokenMatch names one token: by its jti, or by its signing input if it has none that tells tokens apart.
func tokenMatch(c *revocation.Claims) (revocation.Match, error) {
	jti := c.Lookup("jti")
	if name, ok := jti.AsString(); ok && name != "" || jti.Kind() == revocation.KindInt {
		return matchOf(c, "jti", jti)
	}
	return matchOf(c, revocation.TokenSHA256, c.Lookup(revocation.TokenSHA256))
}

// matchOf returns {iss, name}. An empty or unusable value names nothing and is refused.
func matchOf(c *revocation.Claims, name string, v revocation.Value) (revocation.Match, error) {
	text, isString := v.AsString()
	switch {
	case v.Kind() == revocation.KindMissing || isString && text == "":
		return revocation.Match{}, bad(name, "missing", "", "the token has no such claim to revoke by")
	case !isString && v.Kind() != revocation.KindInt:
		return revocation.Match{}, bad(name, "malformed", v.Kind().String(), "a string or an integer to revoke by")
	}
	values := map[string]revocation.Value{name: v}
	if c.Issuer() != "" {
		values["iss"] = c.Lookup("iss")
	}
	return revocation.NewMatch(values)
}

// match reads the claims of a trusted caller.
func (s *Server) match(ctx context.Context, m *revokdv1.Match) (revocation.Match, error) {
	if m == nil {
		return revocation.Match{}, bad("match", "missing", "", "claims; an empty match is every token")
	}
	n := len(m.GetClaims()) + len(m.GetIntegers()) + len(m.GetBooleans())
	if n > revocation.MaxMatchClaims {
		return revocation.Match{}, bad("match", "too_large", "object", "at most 4 claims")
	}
	values := make(map[string]revocation.Value, n)
	for name, v := range m.GetClaims() {
		values[name] = revocation.String(v)
	}
	for name, v := range m.GetIntegers() {
		values[name] = revocation.Int(v)
	}
	for name, v := range m.GetBooleans() {
		values[name] = revocation.Bool(v)
	}
	if len(values) < n {
		return revocation.Match{}, bad("match", "conflict", "", "each claim once")
	}
	parsed, err := revocation.NewMatch(values)
	if err != nil {
		return parsed, err
	}
	caller, known := Caller(ctx)
	if iss, ok := parsed.Get("iss"); !ok && !s.cfg.AnyIssuer && !(known && caller.Role == pki.RoleAdmin) {
		return parsed, errAnyIssuer
	} else if text, isString := iss.AsString(); ok && (!isString || text == "") {
		return parsed, bad("match.iss", "malformed", iss.Kind().String(), "a string that is not empty")
	}
	return parsed, nil
}

// keep adds what is to stay. Whoever holds a revoked token must not get it back by having it kept: a keep exempts
// from the cutoff it is made with, and a later cutoff takes the place of earlier ones.
func (s *Server) keep(ctx context.Context, k *revokdv1.Keep, r *revocation.Request) error {
	iss, hasIssuer := r.Match.Get("iss")
	issuer, _ := iss.AsString()
	var claims *revocation.Claims
	var kept revocation.Match
	var err error
	switch k.GetKept().(type) {
	case *revokdv1.Keep_Token:
		if claims, err = s.verify(ctx, "keep.token", k.GetToken()); err != nil {
			return err
		}
		name := s.node.Policy().Settings(claims.Issuer()).SessionClaim
		if kept, err = matchOf(claims, name, claims.Lookup(name)); err != nil {
			kept, err = tokenMatch(claims)
		}
	case *revokdv1.Keep_Session:
		claims, kept, err = s.keptByName(s.node.Policy().Settings(issuer).SessionClaim, k.GetSession(), iss, hasIssuer)
	case *revokdv1.Keep_Jti:
		claims, kept, err = s.keptByName("jti", k.GetJti(), iss, hasIssuer)
	default:
		err = bad("keep", "missing", "", "a token, a session or a jti")
	}
	if err != nil {
		return err
	}
	if s.node.Check(claims).Status != revocation.Active {
		return errKeepDenied
	}
	r.Keep = []revocation.Match{kept}
	return nil
}

// keptByName returns the match of a session or a jti, and claims with which to look for denies and blocks of just that:
// they stand for a token issued this moment, which no cutoff concerns.
func (s *Server) keptByName(name, value string, iss revocation.Value, hasIssuer bool) (*revocation.Claims, revocation.Match, error) {
	now := s.node.Now()
	c := new(revocation.Claims)
	c.SetIssuedAt(now)
	c.SetExpiresAt(now + 1000)
	if hasIssuer {
		if err := c.Set("iss", iss); err != nil {
			return nil, revocation.Match{}, err
		}
	}
	if err := c.Set(name, revocation.String(value)); err != nil {
		return nil, revocation.Match{}, err
	}
	m, err := matchOf(c, name, c.Lookup(name))
	if err != nil {
		err = &inField{"keep", err}
	}
	return c, m, err
}

// subject returns the claims that a check is about.
func (s *Server) subject(ctx context.Context, m *revokdv1.CheckRequest) (*revocation.Claims, error) {
	switch m.GetSubject().(type) {
	case *revokdv1.CheckRequest_Token:
		// An expired token is an error and no verdict: its revocation may have been forgotten, and no verifier accepts it.
		claims, err := s.verify(ctx, "token", m.GetToken())
		if err != nil {
			return nil, err
		}
		return claims, nil
	case *revokdv1.CheckRequest_Payload:
		return revocation.ParseClaims(m.GetPayload())
	case *revokdv1.CheckRequest_Claims:
		return claimsOf(m.GetClaims())
	}
	return nil, bad("token", "missing", "", "a token, claims or a payload")
}

// checkOptions reads what narrows a check.
func checkOptions(m *revokdv1.CheckRequest) (o node.CheckOptions, err error) {
	switch m.GetFreshness() {
	case revokdv1.Freshness_FRESHNESS_UNSPECIFIED:
		o.Freshness = node.FreshnessDefault
	case revokdv1.Freshness_FRESHNESS_ANY:
		o.Freshness = node.FreshnessAny
	case revokdv1.Freshness_FRESHNESS_QUORUM:
		o.Freshness = node.FreshnessQuorum
	case revokdv1.Freshness_FRESHNESS_ALL:
		o.Freshness = node.FreshnessAll
	default:
		return o, bad("freshness", "out_of_range", "integer", "FRESHNESS_ANY, FRESHNESS_QUORUM or FRESHNESS_ALL")
	}
	o.MaxStaleness, err = duration("max_staleness", m.GetMaxStaleness(), maxMaxStaleness)
	return o, err
}

// writeOptions reads what goes with a write.
func writeOptions(m *revokdv1.WriteOptions) (o node.WriteOptions, err error) {
	switch m.GetAck() {
	case revokdv1.AckLevel_ACK_LEVEL_UNSPECIFIED:
		o.Ack = node.AckDefault
	case revokdv1.AckLevel_ACK_LEVEL_LOCAL:
		o.Ack = node.AckLocal
	case revokdv1.AckLevel_ACK_LEVEL_QUORUM:
		o.Ack = node.AckQuorum
	case revokdv1.AckLevel_ACK_LEVEL_ALL:
		o.Ack = node.AckAll
	default:
		return o, bad("options.ack", "out_of_range", "integer", "ACK_LEVEL_LOCAL, ACK_LEVEL_QUORUM or ACK_LEVEL_ALL")
	}
	if o.AckTimeout, err = duration("options.ack_timeout", m.GetAckTimeout(), maxAckTimeout); err != nil {
		return o, err
	}
	if o.IdempotencyKey = m.GetIdempotencyKey(); len(o.IdempotencyKey) > maxKey {
		return o, bad("options.idempotency_key", "too_large", "string", "at most 64 bytes")
	}
	return o, nil
}

// checkComment checks what the audit log holds: see audit.
func checkComment(text string) error {
	switch {
	case len(text) > maxComment:
		return bad("comment", "too_large", "string", "at most 256 bytes")
	case !utf8.ValidString(text):
		return bad("comment", "malformed", "string", "valid UTF-8")
	}
	return nil
}

// reasonOf relies on the numbers of both lists being the same; a test says so.
func reasonOf(r revokdv1.Reason) (revocation.Reason, error) {
	if _, ok := revokdv1.Reason_name[int32(r)]; !ok {
		return 0, bad("reason", "out_of_range", "integer", "a reason of the closed list")
	}
	return revocation.Reason(r), nil
}

// millis reads an instant, rounded up to the millisecond: a cutoff then denies more and a deadline keeps longer. 0 is none.
func millis(field string, t *timestamppb.Timestamp) (int64, error) {
	if t == nil {
		return 0, nil
	}
	if t.CheckValid() != nil {
		return 0, bad(field, "malformed", "timestamp", "a time between the years 1 and 9999")
	}
	ms := t.GetSeconds()*1000 + (int64(t.GetNanos())+999_999)/1_000_000
	if ms <= 0 {
		return 0, bad(field, "out_of_range", "timestamp", "a time after 1970")
	}
	return ms, nil
}

// duration reads a positive duration; none is 0.
func duration(field string, d *durationpb.Duration, most time.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if d.CheckValid() != nil || d.AsDuration() <= 0 || d.AsDuration() > most {
		return 0, bad(field, "out_of_range", "duration", "above 0 and at most "+most.String())
	}
	return d.AsDuration(), nil
}

// maxExact is the bound below which a double holds every integer.
const maxExact = 1 << 53

// claimsOf reads claims that came as a Struct, by the rules of a token's payload. The numbers of a Struct are
// doubles: an integer that may have been rounded on its way is refused.
func claimsOf(s *structpb.Struct) (*revocation.Claims, error) {
	b, err := appendObject(make([]byte, 0, 256), s, 1)
	if err != nil {
		return nil, err
	}
	return revocation.ParseClaims(b)
}

func appendObject(b []byte, s *structpb.Struct, depth int) ([]byte, error) {
	if depth > revocation.MaxDepth {
		return nil, bad("claims", "too_large", "JSON", "depth at most 8")
	}
	b = append(b, '{')
	first := true
	for name, v := range s.GetFields() {
		if !first {
			b = append(b, ',')
		}
		first = false
		var err error
		if b, err = appendString(b, name); err != nil {
			return nil, err
		}
		b = append(b, ':')
		if b, err = appendValue(b, v, depth); err != nil {
			return nil, err
		}
		if len(b) > revocation.MaxPayloadBytes {
			return nil, bad("claims", "too_large", "object", "at most 8192 bytes as JSON")
		}
	}
	return append(b, '}'), nil
}

func appendValue(b []byte, v *structpb.Value, depth int) ([]byte, error) {
	switch v := v.GetKind().(type) {
	case *structpb.Value_NullValue:
		return append(b, "null"...), nil
	case *structpb.Value_BoolValue:
		return strconv.AppendBool(b, v.BoolValue), nil
	case *structpb.Value_StringValue:
		return appendString(b, v.StringValue)
	case *structpb.Value_NumberValue:
		f := v.NumberValue
		switch {
		case math.IsNaN(f) || math.Abs(f) >= maxExact:
			return nil, bad("claims", "out_of_range", "number", "numbers here are doubles: an integer beyond 2^53 may have been rounded; use payload")
		case f == math.Trunc(f) && (f != 0 || !math.Signbit(f)):
			return strconv.AppendInt(b, int64(f), 10), nil
		}
		return strconv.AppendFloat(b, f, 'g', -1, 64), nil
	case *structpb.Value_StructValue:
		return appendObject(b, v.StructValue, depth+1)
	case *structpb.Value_ListValue:
		if depth >= revocation.MaxDepth {
			return nil, bad("claims", "too_large", "JSON", "depth at most 8")
		}
		b = append(b, '[')
		for i, e := range v.ListValue.GetValues() {
			if i > 0 {
				b = append(b, ',')
			}
			var err error
			if b, err = appendValue(b, e, depth+1); err != nil {
				return nil, err
			}
			if len(b) > revocation.MaxPayloadBytes {
				return nil, bad("claims", "too_large", "object", "at most 8192 bytes as JSON")
			}
		}
		return append(b, ']'), nil
	}
	return nil, bad("claims", "malformed", "nothing", "a value of every claim")
}

func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return nil, bad("claims", "malformed", "string", "valid UTF-8")
	}
	text, err := json.Marshal(s)
	return append(b, text...), err
}
