// Package devissuer makes the tokens of a node that was started with --dev: an issuer with a key for each family of
// algorithms, whose tokens the node verifies like those of any other. It is for a desk; a server has an issuer of its own.
//
// An [Issuer] may be used concurrently. The zero Issuer is not usable: see [New] and [Unmarshal].
package devissuer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/golang-jwt/jwt/v5"

	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// Name is the iss of the tokens. The top-level domain .test is reserved (RFC 6761).
const Name = "https://dev.revokd.test"

// Algorithms lists what tokens can be signed with; the first is the default.
func Algorithms() []string { return []string{"EdDSA", "ES256", "RS256", "HS256"} }

// DefaultTTL is how long a token lives unless the caller says otherwise.
const DefaultTTL = time.Hour

// Issuer signs tokens.
type Issuer struct {
	keys map[string]jwkset.JWK // by algorithm
	raw  []byte                // the private set
	jwks []byte                // the public set
}

// New makes an issuer with new keys.
func New() (*Issuer, error) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	var set jwkset.JWKSMarshal
	for alg, k := range map[string]any{"EdDSA": ed, "ES256": ec, "RS256": rs, "HS256": secret} {
		jwk, err := jwkset.NewJWKFromKey(k, jwkset.JWKOptions{
			Marshal:  jwkset.JWKMarshalOptions{Private: true},
			Metadata: jwkset.JWKMetadataOptions{ALG: jwkset.ALG(alg), KID: newID()[:8], USE: jwkset.UseSig},
		})
		if err != nil {
			return nil, fmt.Errorf("encode a key: %w", err)
		}
		set.Keys = append(set.Keys, jwk.Marshal())
	}
	b, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("encode the keys: %w", err)
	}
	return Unmarshal(b)
}

// Marshal returns the private keys as a JWK set. Who has them can make tokens.
func (i *Issuer) Marshal() []byte { return i.raw }

// Unmarshal reads what Marshal returned.
func Unmarshal(b []byte) (*Issuer, error) {
	var set, public jwkset.JWKSMarshal
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("keys of the dev issuer: %w", &revocation.FieldError{Field: "keys", Kind: "malformed", Limit: "a JWK set"})
	}
	i := &Issuer{keys: make(map[string]jwkset.JWK), raw: b}
	for _, m := range set.Keys {
		k, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		if err != nil {
			return nil, fmt.Errorf("keys of the dev issuer: %w", &revocation.FieldError{Field: "keys", Kind: "malformed", Limit: "private keys"})
		}
		i.keys[string(m.ALG)] = k
		if _, secret := k.Key().([]byte); secret {
			continue
		}
		p := m
		p.D, p.DP, p.DQ, p.P, p.Q, p.QI, p.OTH = "", "", "", "", "", "", nil
		public.Keys = append(public.Keys, p)
	}
	for _, alg := range Algorithms() {
		if _, ok := i.keys[alg]; !ok {
			return nil, fmt.Errorf("keys of the dev issuer: %w", &revocation.FieldError{Field: "keys", Kind: "missing", Limit: "a key for each of EdDSA, ES256, RS256 and HS256"})
		}
	}
	var err error
	if i.jwks, err = json.Marshal(public); err != nil {
		return nil, fmt.Errorf("encode the public keys: %w", err)
	}
	return i, nil
}

// JWKS returns the public keys as a JWK set (RFC 7517).
func (i *Issuer) JWKS() []byte { return i.jwks }

// TokenIssuer returns the configuration that verifies the issuer's tokens.
func (i *Issuer) TokenIssuer() token.Issuer {
	return token.Issuer{Name: Name, KeysJSON: i.raw, Algorithms: Algorithms()}
}

// Params say what a token holds. Zero fields mean the defaults.
type Params struct {
	Sub, Sid string         // left out if empty
	TTL      time.Duration  // exp - iat; default [DefaultTTL], 1 s to 400 days
	IssuedAt time.Time      // default: the whole second of now; a fraction is kept
	Alg      string         // default EdDSA
	Claims   map[string]any // put over everything but iss, iat and exp
}

// Mint signs a token. Errors are *revocation.FieldError.
func (i *Issuer) Mint(p Params, now time.Time) (string, error) {
	switch {
	case p.TTL == 0:
		p.TTL = DefaultTTL
	case p.TTL < time.Second || p.TTL > revocation.MaxCeiling:
		return "", &revocation.FieldError{Field: "ttl", Kind: "out_of_range", ValueKind: "duration", Limit: "1 s to 400 days"}
	}
	if p.Alg == "" {
		p.Alg = Algorithms()[0]
	}
	k, ok := i.keys[p.Alg]
	if !ok {
		return "", &revocation.FieldError{Field: "alg", Kind: "out_of_range", ValueKind: "string", Limit: "EdDSA, ES256, RS256 or HS256"}
	}
	if p.IssuedAt.IsZero() {
		p.IssuedAt = now.Truncate(time.Second)
	}
	claims := jwt.MapClaims{"jti": newID()}
	if p.Sub != "" {
		claims["sub"] = p.Sub
	}
	if p.Sid != "" {
		claims["sid"] = p.Sid
	}
	for name, v := range p.Claims {
		switch name {
		case "iss", "iat", "exp":
			return "", &revocation.FieldError{Field: name, Kind: "not_allowed", Limit: "iss is the node's; iat and ttl are stated apart"}
		}
		claims[name] = v
	}
	claims["iss"] = Name
	claims["iat"] = numericDate(p.IssuedAt)
	claims["exp"] = numericDate(p.IssuedAt.Add(p.TTL))
	t := jwt.NewWithClaims(jwt.GetSigningMethod(p.Alg), claims)
	t.Header["kid"] = k.Marshal().KID
	signed, err := t.SignedString(k.Key().(crypto.PrivateKey))
	if err != nil {
		return "", fmt.Errorf("sign: %w", err)
	}
	if len(signed) > token.MaxSize {
		return "", &revocation.FieldError{Field: "claims", Kind: "too_large", Limit: "the token would be larger than 8 KiB"}
	}
	return signed, nil
}

// numericDate is RFC 7519's NumericDate, with milliseconds if there are any.
func numericDate(t time.Time) json.Number {
	ms := t.UnixMilli()
	if ms%1000 == 0 {
		return json.Number(fmt.Sprint(ms / 1000))
	}
	return json.Number(fmt.Sprintf("%d.%03d", ms/1000, int64(math.Abs(float64(ms%1000)))))
}

func newID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
