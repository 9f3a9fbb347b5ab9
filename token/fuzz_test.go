package token

import (
	"bytes"
	"crypto/rsa"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/revocation"
)

// pages is a server with a document at each path.
type pages map[string][]byte

func (p pages) RoundTrip(r *http.Request) (*http.Response, error) {
	b, ok := p[r.URL.Path]
	status := http.StatusOK
	if !ok {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(b)), Request: r}, nil
}

// FuzzKeySet: whatever a key set is, from a file or a server, it is refused or has keys that fit an algorithm and are no weaker than they may be.
func FuzzKeySet(f *testing.F) {
	for _, b := range [][]byte{
		keySet(signers...), keySet(ed), []byte(`{"keys":[]}`), []byte(`{"keys":[{},{"kty":"oct","k":"AAAA"},null]}`), []byte("x"), bytes.Replace(keySet(rs), []byte(`"use":"sig"`), []byte(`"use":"enc"`), 1),
		slices.Concat([]byte(`{"keys":[{}`), bytes.Repeat([]byte(`,{}`), maxKeys), []byte(`]}`)),
	} {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, b []byte, fetched bool) {
		i := &issuer{Issuer: Issuer{Name: iss, KeysJSON: slices.Concat([]byte{' '}, b)}}
		if fetched {
			i.Issuer = Issuer{Name: iss, JWKSURL: iss + "/keys"}
			i.client = keyClient(&http.Client{Transport: pages{"/keys": b}})
		}
		var err error
		alloctest.AtMost(t, 40*len(b)+256<<10, func() { // 200 keys of 400 bytes, twice
			i.keys.Store(nil)
			err = i.readAny(t.Context())
		})
		keys := i.keys.Load()
		if err != nil {
			if !errors.Is(err, revocation.ErrInvalid) || keys != nil {
				t.Fatalf("%v, %v", keys, err)
			}
			return
		}
		if keys == nil || len(*keys) == 0 || len(*keys) > maxKeys {
			t.Fatalf("accepted with %v", keys)
		}
		for _, k := range *keys {
			k.alg = ""
			if !slices.ContainsFunc(slices.Concat(asymmetric, symmetric), k.fits) {
				t.Fatalf("a %T fits nothing", k.key)
			}
			switch k := k.key.(type) {
			case *rsa.PublicKey:
				if k.N.BitLen() < minRSA {
					t.Fatalf("a key of %d bits", k.N.BitLen())
				}
			case []byte:
				if len(k) < minSecret {
					t.Fatalf("a secret of %d bytes", len(k))
				}
			}
		}
	})
}

// FuzzDiscovery: whatever an issuer answers, keys are read only from a safe URL that it has named for itself.
func FuzzDiscovery(f *testing.F) {
	for _, seed := range []string{
		`{"issuer":"` + iss + `","jwks_uri":"` + iss + `/keys"}`, `{"issuer":"` + iss + `/","jwks_uri":"https://a/"}`, `{"issuer":"` + iss + `","jwks_uri":"http://id.example/keys"}`, `{}`, `x`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		i := &issuer{Issuer: Issuer{Name: iss, Discovery: true}, client: keyClient(&http.Client{Transport: pages{"/.well-known/openid-configuration": b}})}
		var url string
		var err error
		alloctest.AtMost(t, 40*len(b)+64<<10, func() { url, err = i.discover(t.Context()) })
		if err == nil && safeURL("jwks_uri", url) != nil {
			t.Fatalf("%q", url)
		}
	})
}
