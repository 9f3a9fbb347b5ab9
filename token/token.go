package token

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/revocation"
)

// Sentinels: one for each reason to refuse a token.
var (
	ErrMalformed       = errors.New("not a JWT in compact serialisation")
	ErrTooLarge        = errors.New("token is larger than 8 KiB")
	ErrUnsigned        = errors.New("token is not signed")
	ErrAlgorithm       = errors.New("the issuer does not use this algorithm")
	ErrUnknownIssuer   = errors.New("the issuer is not configured")
	ErrUnknownKey      = errors.New("the issuer has no such key")
	ErrSignature       = errors.New("the signature is wrong")
	ErrNotYetValid     = errors.New("token is not valid yet")
	ErrExpired         = errors.New("token has expired")
	ErrDuplicateClaim  = errors.New("a name stands twice in the header or the payload")
	ErrType            = errors.New("the issuer's tokens have another type")
	ErrAudience        = errors.New("token is for another audience")
	ErrKeysUnavailable = errors.New("the keys of the issuer are not available")
)

// MaxSize is the length of the longest token in bytes.
const MaxSize = 8 << 10

// Token is a token whose signature has been verified.
type Token struct {
	Claims *revocation.Claims // with header.kid and token.sha256
	Issuer string
}

// Verify verifies a token; now is guarded time in Unix milliseconds. With [ErrExpired] it returns the token too: its
// signature is genuine. ctx bounds the wait for a key set that has to be fetched anew because the key id is unknown.
func (v *Verifier) Verify(ctx context.Context, raw string, now int64) (*Token, error) {
	return v.VerifyWith(ctx, raw, now, nil)
}

// ParseUnverified reads the claims of a token as Verify does, with header.kid and token.sha256, and refuses what Verify calls malformed. It
// verifies nothing: it is for callers that have verified the signature of this very text with another library.
func ParseUnverified(raw string) (*revocation.Claims, error) {
	p, err := parse(raw)
	if err != nil {
		return nil, err
	}
	return p.claims, nil
}

// VerifyWith is Verify that calls begin, unless nil, with the claims before their signature has been verified, so that a check can
// request memory meanwhile (revocation.Table.Begin). What begin learns must not be used unless VerifyWith returns no error.
func (v *Verifier) VerifyWith(ctx context.Context, raw string, now int64, begin func(*revocation.Claims)) (*Token, error) {
	p, err := parse(raw)
	if err != nil {
		return nil, err
	}
	iss := (*v.issuers.Load())[p.claims.Issuer()]
	if iss == nil {
		return nil, ErrUnknownIssuer
	}
	if !slices.Contains(iss.Algorithms, p.alg) {
		return nil, ErrAlgorithm
	}
	if begin != nil {
		begin(p.claims)
	}
	if err := iss.verify(ctx, p); err != nil {
		return nil, err
	}
	t := &Token{Claims: p.claims, Issuer: iss.Name}
	switch err := iss.judge(p, now); {
	case err == nil, errors.Is(err, ErrExpired):
		return t, err
	default:
		return nil, err
	}
}

// parsed is a token taken apart, not verified.
type parsed struct {
	alg, kid, typ string
	hasKID        bool
	signed        string // header.payload
	signature     []byte
	payload       []byte
	claims        *revocation.Claims
}

// strict is base64url (RFC 7515, section 2) with one spelling for each value.
var strict = base64.RawURLEncoding.Strict()

func parse(raw string) (*parsed, error) {
	if len(raw) > MaxSize {
		return nil, ErrTooLarge
	}
	head, rest, ok := strings.Cut(raw, ".")
	body, sig, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || head == "" || body == "" || strings.Contains(sig, ".") {
		return nil, ErrMalformed
	}
	header, err := segment(head)
	if err != nil {
		return nil, fmt.Errorf("%w: header", err)
	}
	p := &parsed{signed: raw[:len(head)+1+len(body)]}
	if err := p.header(header); err != nil {
		return nil, err
	}
	if p.payload, err = segment(body); err != nil {
		return nil, fmt.Errorf("%w: payload", err)
	}
	if p.claims, err = parseJSON(p.payload, "payload"); err != nil {
		return nil, err
	}
	if sig == "" {
		return nil, ErrUnsigned
	}
	if p.signature, err = segment(sig); err != nil {
		return nil, fmt.Errorf("%w: signature", err)
	}
	if p.hasKID {
		p.claims.SetHeaderKID(p.kid)
	}
	p.claims.SetSigningInput(sha256.Sum256([]byte(p.signed)))
	return p, nil
}

// segment decodes base64url; the decoder of the standard library would skip line breaks.
func segment(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, ErrMalformed
	}
	b, err := strict.DecodeString(s)
	if err != nil {
		return nil, ErrMalformed
	}
	return b, nil
}

func parseJSON(b []byte, part string) (*revocation.Claims, error) {
	c, err := revocation.ParseClaims(b)
	switch {
	case errors.Is(err, revocation.ErrDuplicateClaim):
		return nil, fmt.Errorf("%w: %s", ErrDuplicateClaim, part)
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrMalformed, part, err)
	}
	return c, nil
}

func (p *parsed) header(b []byte) error {
	h, err := parseJSON(b, "header")
	if err != nil {
		return err
	}
	if h.Lookup("crit").Kind() != revocation.KindMissing {
		return fmt.Errorf("%w: crit names extensions that are not known here", ErrMalformed)
	}
	if p.alg, err = text(h, "alg"); err != nil {
		return err
	}
	if p.kid, err = text(h, "kid"); err != nil {
		return err
	}
	p.hasKID = h.Lookup("kid").Kind() != revocation.KindMissing
	if p.typ, err = text(h, "typ"); err != nil {
		return err
	}
	if strings.EqualFold(p.alg, "none") {
		return ErrUnsigned
	}
	return nil
}

// text returns a member that is a string, "" if there is none.
func text(h *revocation.Claims, name string) (string, error) {
	v := h.Lookup(name)
	s, ok := v.AsString()
	if !ok && v.Kind() != revocation.KindMissing {
		return "", fmt.Errorf("%w: %s is not a string of at most 512 bytes", ErrMalformed, name)
	}
	return s, nil
}

// verify judges the signature.
func (i *issuer) verify(ctx context.Context, p *parsed) error {
	method := jwt.GetSigningMethod(p.alg)
	keys, err := i.find(ctx, p)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if method.Verify(p.signed, p.signature, k.key) == nil {
			return nil
		}
	}
	return ErrSignature
}

// judge looks at what a genuine token says about itself.
func (i *issuer) judge(p *parsed, now int64) error {
	if len(i.Types) > 0 && !slices.Contains(i.Types, canonicalType(p.typ)) {
		return ErrType
	}
	if len(i.Audiences) > 0 {
		aud, err := audiences(p.payload)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(i.Audiences, a) }) {
			return ErrAudience
		}
	}
	leeway := i.Leeway.Milliseconds()
	if err := p.claims.CheckExpiresAt(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	switch nbf := p.claims.Lookup("nbf"); nbf.Kind() {
	case revocation.KindMissing:
	case revocation.KindInt:
		if sec, _ := nbf.AsInt(); sec > (now+leeway)/1000 {
			return ErrNotYetValid
		}
	default:
		return fmt.Errorf("%w: nbf is not a whole number of seconds", ErrMalformed)
	}
	if exp, ok := p.claims.ExpiresAt(); ok && exp+leeway <= now {
		return ErrExpired
	}
	return nil
}

// canonicalType: media types ignore case, and "application/" may be left out (RFC 7515, section 4.1.9).
func canonicalType(typ string) string {
	typ = strings.ToLower(typ)
	return strings.TrimPrefix(typ, "application/")
}

// audiences reads aud: a string or an array of them (RFC 7519, section 4.1.3).
func audiences(payload []byte) ([]string, error) {
	var members map[string]json.RawMessage // a struct would take "AUD" for aud
	if err := json.Unmarshal(payload, &members); err != nil {
		return nil, ErrMalformed
	}
	var one string
	var many []string
	switch aud := members["aud"]; {
	case aud == nil:
	case json.Unmarshal(aud, &one) == nil:
		many = []string{one}
	case json.Unmarshal(aud, &many) != nil:
		return nil, fmt.Errorf("%w: aud is not a string or an array of strings", ErrMalformed)
	}
	return many, nil
}
