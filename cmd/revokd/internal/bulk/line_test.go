package bulk

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/revokd/revokd/internal/alloctest"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

func TestParseLine(t *testing.T) {
	for line, want := range map[string]string{
		`{"jti":"a"}`: `{"match":{"claims":{"jti":"a"}}}`,
		` { "jti" : "a" , "iss" : "i" , "exp" : 1767225600 } `:                        `{"match":{"claims":{"jti":"a","iss":"i"}},"expiresAt":"2026-01-01T00:00:00Z"}`,
		`{"exp":1767225600.0001,"jti":"a\"},{b"}`:                                     `{"match":{"claims":{"jti":"a\"},{b"}},"expiresAt":"2026-01-01T00:00:00.001Z"}`,
		`{"jti":"a","exp":1}`:                                                         `{"match":{"claims":{"jti":"a"}},"expiresAt":"2000-01-01T00:00:00Z"}`,
		`{"jti":"a","exp":0}`:                                                         `{"match":{"claims":{"jti":"a"}},"expiresAt":"2000-01-01T00:00:00Z"}`,
		`{"jti":"a","reason":"token-reused"}`:                                         `{"match":{"claims":{"jti":"a"}},"reason":"REASON_TOKEN_REUSED"}`,
		`{"jti":"\ud83d\ude00�"}`:                                                     `{"match":{"claims":{"jti":"😀�"}}}`,
		`{"match":{"iss":"i","n":7,"b":true}}`:                                        `{"match":{"claims":{"iss":"i"},"integers":{"n":"7"},"booleans":{"b":true}}}`,
		`{"match":{"sub":"s"},"expires_at":"2026-01-01T00:00:00Z"}`:                   `{"match":{"claims":{"sub":"s"}},"expiresAt":"2026-01-01T00:00:00Z"}`,
		`{"match":{"sub":"s"},"issued_before":1767225600001}`:                         `{"match":{"claims":{"sub":"s"}},"issuedBefore":"2026-01-01T00:00:00.001Z"}`,
		`{"match":{"sub":"s"},"below":{"claim":"v","value":-7}}`:                      `{"match":{"claims":{"sub":"s"}},"below":{"claim":"v","value":"-7"}}`,
		`{"match":{"a":"{[","b":"\\"},"reason":"logout"}`:                             `{"match":{"claims":{"a":"{[","b":"\\"}},"reason":"REASON_LOGOUT"}`,
		`{"token":"e.y.J"}`:                                                           `{"token":"e.y.J"}`,
		`{"token":"e.y.J","scope":"session","reason":"password_changed"}`:             `{"token":"e.y.J","scope":"SCOPE_SESSION","reason":"REASON_PASSWORD_CHANGED"}`,
		`{"match":{"header.kid":"k1","iss":"i"},"reason":"key_compromised"}`:          `{"match":{"claims":{"header.kid":"k1","iss":"i"}},"reason":"REASON_KEY_COMPROMISED"}`,
		`{"match":{"/realm_access/id":"r"},"expires_at":"2026-06-01T00:00:00+02:00"}`: `{"match":{"claims":{"/realm_access/id":"r"}},"expiresAt":"2026-05-31T22:00:00Z"}`,
	} {
		got, _, err := parseLine([]byte(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		var wanted revokdv1.RevokeRequest
		if err := protojson.Unmarshal([]byte(want), &wanted); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, &wanted) {
			t.Errorf("%s: got %v, want %v", line, got, &wanted)
		}
	}
}

func TestParseLineRefuses(t *testing.T) {
	for line, want := range map[string]string{
		`x`:                             "line: malformed",
		`[]`:                            "line: malformed",
		`"jti"`:                         "line: malformed",
		`{"jti":"a"} {}`:                "line: malformed",
		"{\"jti\":\"\xff\"}":            "valid UTF-8",
		`{}`:                            "line: missing",
		`{"sub":"a"}`:                   "line: missing",
		`{"jti":"a","sub":"b"}`:         `"sub": not_allowed`,
		`{"jti":"a","Iss":"b"}`:         `"Iss": not_allowed`,
		`{"jti":"a","i\u0073s":"b"}`:    "not_allowed",
		`{"jti":"a","jti":"b"}`:         `"jti": conflict`,
		`{"jti":"a","match":{"a":"b"}}`: `"jti": not_allowed`,
		`{"jti":"a","token":"b"}`:       `"jti": not_allowed`,
		`{"jti":7}`:                     "jti: malformed (number)",
		`{"jti":null}`:                  "jti: malformed (null)",
		`{"jti":""}`:                    "jti: missing",
		`{"jti":"\ud800"}`:              "lone surrogate",
		`{"jti":"` + strings.Repeat("a", 600) + `"}`:                   "jti: too_large",
		`{"jti":"a","iss":["b"]}`:                                      "iss: malformed (array)",
		`{"jti":"a","exp":"1767225600"}`:                               "exp: malformed (string)",
		`{"jti":"a","exp":1767225600000}`:                              "looks like milliseconds",
		`{"jti":"a","exp":-1}`:                                         "exp: out_of_range",
		`{"jti":"a","exp":1e400}`:                                      "exp: malformed",
		`{"jti":"a","reason":"because"}`:                               "reason: malformed",
		`{"jti":"a","reason":"unspecified"}`:                           "reason: malformed",
		`{"jti":"a","scope":"token"}`:                                  `"scope": not_allowed`,
		`{"token":"a","scope":"all"}`:                                  "scope: malformed",
		`{"token":"a","exp":1767225600}`:                               `"exp": not_allowed`,
		`{"match":{}}`:                                                 "match: missing",
		`{"match":"a"}`:                                                "match: malformed",
		`{"match":{"a":1.5}}`:                                          "match.a: malformed",
		`{"match":{"a":"1","a":"2"}}`:                                  "claim named twice",
		`{"match":{"a":"1","b":"2","c":"3","d":"4","e":"5"}}`:          "at most 4 claims",
		`{"match":{"a":"b"},"expires_at":1767225600}`:                  "looks like seconds",
		`{"match":{"a":"b"},"expires_at":1767225600000000}`:            "before the year 5138",
		`{"match":{"a":"b"},"issued_before":"yesterday"}`:              "issued_before: malformed",
		`{"match":{"a":"b"},"issued_before":true}`:                     "issued_before: malformed (boolean)",
		`{"match":{"a":"b"},"below":7}`:                                "below: malformed",
		`{"match":{"a":"b"},"below":{"claim":"v"}}`:                    "below: malformed",
		`{"match":{"a":"b"},"below":{"claim":"v","value":"7"}}`:        "below: malformed",
		`{"match":{"a":"b"},"below":{"claim":"v","value":7,"more":1}}`: "below: malformed",
		`{"match":{"a":"b"},"comment":"hello"}`:                        `"comment": not_allowed`,
		`{"jti":"a","` + strings.Repeat("k", 500) + `":1}`:             "not_allowed",
		`{"jti":"` + strings.Repeat("a", MaxLine) + `"}`:               "line: too_large",
	} {
		_, _, err := parseLine([]byte(line))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: error %v, want %q", line, err, want)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("%.60s: error of %d bytes", line, len(err.Error()))
		}
	}
}

// FuzzParseLine: no input panics or makes the parser allocate much more than the line holds, what is accepted has exactly one
// target with at least one claim, and what is refused says why without a value.
func FuzzParseLine(f *testing.F) {
	for _, s := range []string{
		`{"jti":"a","iss":"i","exp":1767225600}`, `{"match":{"sub":"s"},"below":{"claim":"v","value":7}}`, `{"token":"t","scope":"session"}`,
		`{"match":{"a":"\ud800"}}`, `{"jti":"a","jti":"a"}`, `[{"jti":"a"}]`, `{"exp":1e99,"jti":"a"}`, `{`, ``, " \t",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var req *revokdv1.RevokeRequest
		var err error
		alloctest.AtMost(t, 100*min(len(line), MaxLine)+64<<10, func() { req, _, err = parseLine(line) }) // a claim of six bytes is one of 48 in a map
		if err != nil {
			if !errors.Is(err, revocation.ErrInvalid) && !errors.Is(err, revocation.ErrDuplicateClaim) {
				t.Fatalf("error of another kind: %v", err)
			}
			if len(err.Error()) > 400 {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
			return
		}
		if len(line) > MaxLine {
			t.Fatal("accepted a line that is too long")
		}
		m := req.GetMatch()
		if req.GetToken() == "" && len(m.GetClaims())+len(m.GetIntegers())+len(m.GetBooleans()) == 0 {
			t.Fatal("accepted a line without a target: it would revoke everything")
		}
		if proto.Size(req) > 4*len(line)+256 {
			t.Fatalf("%d bytes made a request of %d", len(line), proto.Size(req))
		}
	})
}

func BenchmarkParseLine(b *testing.B) {
	line := []byte(`{"jti":"01J8ZK00000000000000000001","iss":"https://id.example","exp":1900000000}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := parseLine(line); err != nil {
			b.Fatal(err)
		}
	}
}
