package app

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/alloctest"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

func TestDevIdentitySurvives(t *testing.T) {
	dir := t.TempDir()
	first, err := devIdentity(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := devIdentity(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if first.key != second.key || first.key == (revocation.Key{}) {
		t.Error("the fingerprint key is another, or none")
	}
	if string(first.issuer.JWKS()) != string(second.issuer.JWKS()) {
		t.Error("the issuer's keys are others")
	}
	info, err := os.Stat(filepath.Join(dir, identityFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	// Another node has other keys.
	other, err := devIdentity(t.TempDir(), nil)
	if err != nil || other.key == first.key {
		t.Errorf("two nodes made the same key (%v)", err)
	}
	if _, err := second.issuer.Mint(devissuer.Params{Sub: "alice"}, time.Now()); err != nil {
		t.Error(err)
	}
}

// TestDevIdentityOnce: processes that start together agree on one identity.
func TestDevIdentityOnce(t *testing.T) {
	dir := t.TempDir()
	keys := make([]revocation.Key, 8)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			id, err := devIdentity(dir, nil)
			if err != nil {
				t.Error(err)
				return
			}
			keys[i] = id.key
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("they have different keys")
		}
	}
}

func TestDevIdentityRefuses(t *testing.T) {
	good := func(t *testing.T) (dir string, stored map[string]any) {
		t.Helper()
		dir = t.TempDir()
		if _, err := devIdentity(dir, nil); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, identityFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &stored); err != nil {
			t.Fatal(err)
		}
		return dir, stored
	}
	for name, tc := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"other version": {func(m map[string]any) { m["version"] = 2 }, "version 2"},
		"unknown key":   {func(m map[string]any) { m["more"] = 1 }, "malformed"},
		"short key":     {func(m map[string]any) { m["fingerprint_key"] = "00" }, "fingerprint_key: malformed"},
		"zero key":      {func(m map[string]any) { m["fingerprint_key"] = strings.Repeat("0", 32) }, "fingerprint_key: out of range"},
		"no issuer":     {func(m map[string]any) { m["issuer"] = nil }, "issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, stored := good(t)
			tc.change(stored)
			b, err := json.Marshal(stored)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, identityFile), b, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = devIdentity(dir, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if key := stored["fingerprint_key"].(string); err != nil && len(key) == 32 && strings.Contains(err.Error(), key) {
				t.Error("the error quotes the key")
			}
		})
	}
	t.Run("journal without identity", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, journalDir, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := devIdentity(dir, nil); err == nil || !strings.Contains(err.Error(), "there is a journal") {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, identityFile)); !os.IsNotExist(err) {
			t.Errorf("a new identity was made: %v", err)
		}
	})
}

func TestReadKey(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		"000102030405060708090a0b0c0d0e0f\n": "",
		"000102030405060708090A0B0C0D0E0F":   "",
		"":                                   "malformed",
		"0001":                               "malformed",
		strings.Repeat("00", 16):             "out of range",
		strings.Repeat("ab", 32):             "malformed",
		strings.Repeat("g", 32):              "malformed",
		strings.Repeat("a", 5000):            "too large",
	} {
		path := filepath.Join(dir, "key")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		key, err := readKey(path)
		switch {
		case want == "" && (err != nil || key[1] != 1):
			t.Errorf("%q: %v, %v", text, key, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func TestReadIssuers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "issuers.json")
	read := func(text string) ([]string, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		issuers, err := readIssuers(path)
		var out []string
		for _, i := range issuers {
			out = append(out, i.Name+" "+i.KeysFile+" "+i.MaxTokenLifetime.String()+" "+i.Skew.String())
		}
		return out, err
	}
	got, err := read(`{"issuers":[{"issuer":"https://a.example","keys_file":"k.json","max_token_lifetime":"15m","skew":"2s"},{"issuer":"b","keys_file":"/k"}]}`)
	if err != nil || len(got) != 2 || got[0] != "https://a.example "+filepath.Join(dir, "k.json")+" 15m0s 2s" || got[1] != "b /k 0s 0s" {
		t.Errorf("%q, %v", got, err)
	}
	for text, want := range map[string]string{
		``:                           "malformed",
		`{}`:                         "at least one issuer",
		`{"issuers":[]}`:             "at least one issuer",
		`{"issuers":[{"iss":"a"}]}`:  `unknown field "iss"`,
		`{"issuers":[{}]} {}`:        "something follows",
		`{"issuers":[{"skew":5}]}`:   "a duration is a string",
		`{"issuers":[{"skew":"5"}]}`: `a duration is written as "30s"`,
	} {
		if _, err := read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzIssuers(f *testing.F) {
	for _, seed := range []string{
		`{"issuers":[{"issuer":"https://a.example","keys_file":"k.json","max_token_lifetime":"15m","skew":"2s","algorithms":["EdDSA"]},{"issuer":"b","discovery":true}]}`, ``, `{}`, `{"issuers":[{}]} {}`, `{"issuers":[{"skew":5}]}`, `{"issuers":[null,{}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var issuers []token.Issuer
		var err error
		alloctest.AtMost(t, 500*len(b)+256<<10, func() { issuers, err = parseIssuers(b, "/etc/revokd/issuers.json") }) // an issuer of three bytes is one of 200, twice
		if (len(issuers) == 0) == (err == nil) {
			t.Fatalf("%d issuers, %v", len(issuers), err)
		}
		for _, i := range issuers {
			if i.KeysFile != "" && !filepath.IsAbs(i.KeysFile) {
				t.Fatalf("keys in %q, wherever that is", i.KeysFile)
			}
		}
	})
}
