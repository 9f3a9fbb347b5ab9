package revokdjwt

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const issuer = "https://issuer.test"

var now = time.Unix(1_800_000_000, 0)

type issuing struct {
	key *ecdsa.PrivateKey
	cfg Config
	ask []*revocation.Claims // that Allow was asked about
}

func newIssuing(t *testing.T) *issuing {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuing{key: key}
	i.cfg = Config{
		Keys:       func(*jwt.Token) (any, error) { return &key.PublicKey, nil },
		Algorithms: []string{"ES256"}, Issuer: issuer, Now: func() time.Time { return now },
		Allow: func(c *revocation.Claims) error {
			i.ask = append(i.ask, c)
			switch jti, _ := c.Lookup("jti").AsString(); jti {
			case "revoked":
				return client.ErrRevoked
			case "unknown":
				return client.ErrUnknown
			}
			return nil
		},
	}
	return i
}

func (i *issuing) verifier(t *testing.T) *Verifier {
	t.Helper()
	v, err := New(i.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (i *issuing) mint(t *testing.T, claims jwt.MapClaims) string {
	t.Helper()
	all := jwt.MapClaims{"iss": issuer, "sub": "alice", "aud": "web", "iat": now.Unix() - 10, "exp": now.Unix() + 60}
	for k, v := range claims {
		all[k] = v
		if v == nil {
			delete(all, k)
		}
	}
	tok := jwt.NewWithClaims(jwt.SigningMethodES256, all)
	tok.Header["kid"] = "k1"
	raw, err := tok.SignedString(i.key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// sign signs a header and a payload as they are.
func (i *issuing) sign(t *testing.T, header, payload string) string {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	sig, err := jwt.SigningMethodES256.Sign(text, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func TestVerify(t *testing.T) {
	i := newIssuing(t)
	raw := i.mint(t, jwt.MapClaims{"jti": "t1"})
	got, err := i.verifier(t).Verify(t.Context(), raw)
	if err != nil || !got.Valid || got.Token.Claims.(jwt.MapClaims)["sub"] != "alice" {
		t.Fatalf("%+v %v", got, err)
	}
	if len(i.ask) != 1 || i.ask[0] != got.Revocation {
		t.Fatal("Allow was not asked once, about these claims")
	}
	sum := sha256.Sum256([]byte(raw[:strings.LastIndexByte(raw, '.')]))
	for name, want := range map[string]string{"iss": issuer, "sub": "alice", "jti": "t1", "aud": "web", revocation.HeaderKID: "k1", "token.sha256": hex.EncodeToString(sum[:])} {
		if s, _ := got.Revocation.Lookup(name).AsString(); s != want {
			t.Errorf("%s is %q, want %q", name, s, want)
		}
	}
	if _, err := i.verifier(t).Claims(t.Context(), i.mint(t, jwt.MapClaims{"jti": "revoked"})); err != nil {
		t.Errorf("Claims checks: %v", err)
	}
}

func TestRefused(t *testing.T) {
	i := newIssuing(t)
	i.cfg.Audience = []string{"web"}
	v := i.verifier(t)
	exp := now.Unix() + 60
	good := i.mint(t, nil)
	other := newIssuing(t)
	for _, c := range []struct {
		name, raw string
		is        error
		asked     bool
	}{
		{"revoked", i.mint(t, jwt.MapClaims{"jti": "revoked"}), client.ErrRevoked, true},
		{"unknown", i.mint(t, jwt.MapClaims{"jti": "unknown"}), client.ErrUnknown, true},
		{"expired and revoked", i.mint(t, jwt.MapClaims{"jti": "revoked", "exp": now.Unix() - 1}), jwt.ErrTokenExpired, false},
		{"not yet", i.mint(t, jwt.MapClaims{"nbf": now.Unix() + 5}), jwt.ErrTokenNotValidYet, false},
		{"without exp", i.mint(t, jwt.MapClaims{"exp": nil}), jwt.ErrTokenRequiredClaimMissing, false},
		{"another issuer", i.mint(t, jwt.MapClaims{"iss": "https://other.test"}), jwt.ErrTokenInvalidIssuer, false},
		{"another audience", i.mint(t, jwt.MapClaims{"aud": "mobile"}), jwt.ErrTokenInvalidAudience, false},
		{"another key", other.mint(t, nil), jwt.ErrTokenSignatureInvalid, false},
		{"no token", "", token.ErrMalformed, false},
		{"none", base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good, ".")[1] + ".", token.ErrUnsigned, false},
		{"another spelling of the signature", malleate(good), token.ErrMalformed, false},
		{"jti twice", i.sign(t, `{"alg":"ES256"}`, fmt.Sprintf(`{"iss":%q,"aud":"web","exp":%d,"jti":"revoked","jti":"t"}`, issuer, exp)), token.ErrDuplicateClaim, false},
		{"alg twice", i.sign(t, `{"alg":"none","alg":"ES256"}`, fmt.Sprintf(`{"iss":%q,"aud":"web","exp":%d}`, issuer, exp)), token.ErrDuplicateClaim, false},
		{"crit", i.sign(t, `{"alg":"ES256","crit":["b64"],"b64":false}`, fmt.Sprintf(`{"iss":%q,"aud":"web","exp":%d}`, issuer, exp)), token.ErrMalformed, false},
		{"too long", i.mint(t, jwt.MapClaims{"pad": strings.Repeat("x", 8<<10)}), token.ErrTooLarge, false},
	} {
		i.ask = nil
		got, err := v.Verify(t.Context(), c.raw)
		if !errors.Is(err, c.is) || got != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.is)
		}
		if (len(i.ask) > 0) != c.asked {
			t.Errorf("%s: Allow was asked %d times", c.name, len(i.ask))
		}
	}
	for _, alg := range []*jwt.SigningMethodHMAC{jwt.SigningMethodHS256} {
		raw, err := jwt.NewWithClaims(alg, jwt.MapClaims{"iss": issuer, "aud": "web", "exp": exp}).SignedString([]byte("the public key, to an attacker"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(t.Context(), raw); !errors.Is(err, jwt.ErrTokenSignatureInvalid) {
			t.Errorf("an algorithm that is not listed: %v", err)
		}
	}
}

// malleate changes bits of the last character that decode to nothing.
func malleate(raw string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := len(raw) - 1
	return raw[:last] + string(alphabet[strings.IndexByte(alphabet, raw[last])^1])
}

// A struct decodes "ISS" as iss: the issuer is that of the exact name all the same.
func TestIssuerByAnotherSpelling(t *testing.T) {
	i := newIssuing(t)
	i.cfg.NewClaims = func() jwt.Claims { return new(jwt.RegisteredClaims) }
	raw := i.sign(t, `{"alg":"ES256"}`, fmt.Sprintf(`{"iss":"https://other.test","ISS":%q,"exp":%d}`, issuer, now.Unix()+60))
	if _, err := i.verifier(t).Verify(t.Context(), raw); !errors.Is(err, jwt.ErrTokenInvalidIssuer) || len(i.ask) > 0 {
		t.Errorf("%v, asked %d times", err, len(i.ask))
	}
}

func TestKeysUnavailable(t *testing.T) {
	i := newIssuing(t)
	i.cfg.Keys = func(*jwt.Token) (any, error) { return nil, fmt.Errorf("%w: no keys yet", client.ErrUnknown) }
	if _, err := i.verifier(t).Verify(t.Context(), i.mint(t, nil)); !errors.Is(err, client.ErrUnknown) {
		t.Error(err)
	}
}

func TestEnded(t *testing.T) {
	i := newIssuing(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.verifier(t).Verify(ctx, i.mint(t, nil)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestConfig(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no Allow":          func(c *Config) { c.Allow = nil },
		"no Keys":           func(c *Config) { c.Keys = nil },
		"no Algorithms":     func(c *Config) { c.Algorithms = nil },
		"none":              func(c *Config) { c.Algorithms = []string{"ES256", "none"} },
		"unknown algorithm": func(c *Config) { c.Algorithms = []string{"ES257"} },
		"no Issuer":         func(c *Config) { c.Issuer = "" },
		"leeway":            func(c *Config) { c.Leeway = 6 * time.Minute },
	} {
		i := newIssuing(t)
		change(&i.cfg)
		if _, err := New(i.cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
