package api

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/devissuer"
)

// TestScripts runs testdata/*.txt, each story of it on a node of its own, through every protocol.
//
//	== name                    a story begins
//	T = mint {"sub":"..."}     a token, later $T; the members of MintTokenRequest
//	advance 2s                 time passes
//	Method {...} => a.b=c d=   the call succeeds and has these fields, by their path in JSON; d is not there
//	Method {...} !! code kind field
//
// In a body @+2s stands for the time then, and a line that ends in \ goes on.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		for name, lines := range stories(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+name, func(t *testing.T) {
				t.Parallel()
				for _, proto := range []string{"json", "connect", "grpc", "grpc-web"} {
					t.Run(proto, func(t *testing.T) {
						f := start(t)
						for _, p := range f.protocols() {
							if p.name == proto {
								f.play(p, lines)
							}
						}
					})
				}
			})
		}
	}
}

type line struct {
	number int
	text   string
}

func stories(t *testing.T, file string) map[string][]line {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	all := make(map[string][]line)
	name, pending := "", ""
	scanner := bufio.NewScanner(in)
	for n := 1; scanner.Scan(); n++ {
		text := pending + strings.TrimSpace(scanner.Text())
		pending = ""
		if more, ok := strings.CutSuffix(text, `\`); ok {
			pending = more
			continue
		}
		switch {
		case text == "" || strings.HasPrefix(text, "#"):
		case strings.HasPrefix(text, "== "):
			name = strings.ReplaceAll(strings.TrimPrefix(text, "== "), " ", "_")
			if _, twice := all[name]; twice {
				t.Fatalf("%s:%d: story %s twice", file, n, name)
			}
		default:
			all[name] = append(all[name], line{n, text})
		}
	}
	if scanner.Err() != nil {
		t.Fatal(scanner.Err())
	}
	return all
}

var (
	relative = regexp.MustCompile(`@([+-][0-9a-z]+)`)
	variable = regexp.MustCompile(`\$([A-Z][A-Z0-9]*)`)
)

func (f *fixture) play(p protocol, lines []line) {
	f.Helper()
	tokens := make(map[string]string)
	for _, l := range lines {
		text := relative.ReplaceAllStringFunc(l.text, func(s string) string {
			d, err := time.ParseDuration(s[1:])
			if err != nil {
				f.Fatalf("line %d: %v", l.number, err)
			}
			return f.clock.Now().Add(d).Format(time.RFC3339Nano)
		})
		text = variable.ReplaceAllStringFunc(text, func(s string) string {
			v, ok := tokens[s[1:]]
			if !ok {
				f.Fatalf("line %d: no token %s", l.number, s)
			}
			return v
		})
		if name, rest, ok := strings.Cut(text, " = mint "); ok {
			tokens[name] = f.mintJSON(rest)
			continue
		}
		if d, ok := strings.CutPrefix(text, "advance "); ok {
			by, err := time.ParseDuration(d)
			if err != nil {
				f.Fatalf("line %d: %v", l.number, err)
			}
			f.advance(by)
			continue
		}
		method, rest, _ := strings.Cut(text, " ")
		if body, want, ok := strings.Cut(rest, " => "); ok {
			r := p.call(method, body)
			if r.confirm != "" { // a story that denies everything means it
				r = p.call(method, strings.TrimSuffix(body, "}")+`,"options":{"confirmation":"`+r.confirm+`"}}`)
			}
			if r.code != "ok" {
				f.Fatalf("line %d: %s: %s %s %v", l.number, method, r.code, r.text, r.detail)
			}
			for field := range strings.FieldsSeq(want) {
				path, value, _ := strings.Cut(field, "=")
				if got := r.field(path); got != value {
					f.Errorf("line %d: %s: %s is %q, want %q", l.number, method, path, got, value)
				}
			}
			continue
		}
		body, want, ok := strings.Cut(rest, " !! ")
		if !ok {
			f.Fatalf("line %d: neither => nor !!", l.number)
		}
		r := p.call(method, body)
		wants := append(strings.Fields(want), "", "")
		if r.code != wants[0] || wants[1] != "" && r.detail.GetKind() != wants[1] || wants[2] != "" && r.detail.GetField() != wants[2] {
			f.Errorf("line %d: %s: %s %s %s (%s), want %s", l.number, method, r.code, r.detail.GetKind(), r.detail.GetField(), r.text, want)
		}
	}
}

func (f *fixture) mintJSON(body string) string {
	f.Helper()
	var m struct {
		Sub, Sid, TTL, Alg string
		IAT                time.Time
		Claims             map[string]any
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		f.Fatal(err)
	}
	p := devissuer.Params{Sub: m.Sub, Sid: m.Sid, Alg: m.Alg, IssuedAt: m.IAT, Claims: m.Claims}
	if m.TTL != "" {
		var err error
		if p.TTL, err = time.ParseDuration(m.TTL); err != nil {
			f.Fatal(err)
		}
	}
	return f.mint(p)
}
