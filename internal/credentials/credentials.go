// Package credentials knows who may call a node besides what certificates say: bearer tokens, of which it holds hashes only, and what the writes of a
// name are limited to.
//
// It promises that a file is taken whole or not at all, that a token is found in a time that does not depend on it, and that neither an error nor a
// [Caller] holds one. A [Set] is immutable and may be used by any number of goroutines; the nil Set knows no tokens and limits nobody.
package credentials

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/revocation"
)

// Limits of a file.
const (
	MaxFile     = 1 << 20
	MaxEntries  = 1000
	MaxGrants   = 16
	MaxLifetime = 400 * 24 * time.Hour // from the moment at which the file is read
	maxLive     = 2                    // tokens of one name: the old one and the new one
	minRate     = 50                   // a second: a whole message of a stream must not take longer than a call may
	maxRate     = 1_000_000
	maxRecords  = 1_000_000_000
)

// ErrFile: a file of credentials cannot be used; the message says where and why.
var ErrFile = errors.New("malformed")

// Caller is who has sent a request, and what he may.
type Caller struct {
	Name string
	Role pki.Role
	// Grants: each match that he writes must contain all claims of one of them. None: any match.
	Grants []revocation.Match
	// Rate is how many records he may write in a second; 0: the default of the node.
	Rate int
	// Records is how many live records those who have a grant may have written under it; 0: no limit of their own.
	Records int
	// Expires is when a token ends; zero with a certificate, whose end the handshake looks at.
	Expires time.Time

	cluster string // of a certificate
	token   string // the first hex digits of a token's hash
}

// ByToken reports whether the caller has shown a token.
func (c *Caller) ByToken() bool { return c.token != "" }

// String names the caller in logs: the URI in a certificate, or token:NAME/ID, where the id is the first digits of the hash.
func (c *Caller) String() string {
	if c.ByToken() {
		return "token:" + c.Name + "/" + c.token
	}
	return pki.Identity{Cluster: c.cluster, Role: c.Role, Name: c.Name}.String()
}

// Equal reports whether two are the same credential with the same rights.
func (c *Caller) Equal(o *Caller) bool {
	return c.String() == o.String() && c.Role == o.Role && c.Rate == o.Rate && c.Records == o.Records && c.Expires.Equal(o.Expires) &&
		slices.EqualFunc(c.Grants, o.Grants, func(a, b revocation.Match) bool { return a.Contains(b) && b.Contains(a) })
}

// Granted reports whether the caller may write a match.
func (c *Caller) Granted(m revocation.Match) bool {
	return len(c.Grants) == 0 || slices.ContainsFunc(c.Grants, func(g revocation.Match) bool { return m.Contains(g) })
}

// Narrow adds the claims of a grant to the match that was made of a token with these claims, so that who is limited to a tenant can revoke by token. A
// match of a token that is in no grant is returned as it is. The error is that of too many claims.
func (c *Caller) Narrow(m revocation.Match, lookup func(claim string) revocation.Value) (revocation.Match, error) {
	for _, g := range c.Grants {
		values := map[string]revocation.Value{}
		for _, name := range m.Names() {
			values[name], _ = m.Get(name)
		}
		within := true
		for _, name := range g.Names() {
			v, _ := g.Get(name)
			values[name] = v
			within = within && v == lookup(name)
		}
		if within {
			return revocation.NewMatch(values)
		}
	}
	return m, nil
}

// Set is the content of a file.
type Set struct {
	tokens       []token
	certificates map[string]entry // by name
}

type token struct {
	hash   [sha256.Size]byte
	caller Caller
}

// entry is what certificates and tokens have in common in the file.
type entry struct {
	Name    string           `yaml:"name"`
	Grants  []map[string]any `yaml:"grants,omitempty,flow"`
	Rate    int              `yaml:"rate,omitempty"`
	Records int              `yaml:"records,omitempty"`

	grants []revocation.Match
}

// file is the file. A token in it would be as good as public, so only its hash is there.
type file struct {
	Tokens       []TokenEntry `yaml:"tokens"`
	Certificates []entry      `yaml:"certificates"`
}

// TokenEntry is the entry of a token, as it stands in a file.
type TokenEntry struct {
	entry   `yaml:",inline"`
	SHA256  string `yaml:"sha256"`
	Role    string `yaml:"role"`
	Expires string `yaml:"expires"` // RFC 3339
}

// Load reads a file. Errors match [ErrFile] or are those of the file; the caller adds the path.
func Load(path string, now time.Time) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	return Parse(b, now)
}

// Parse reads the content of a file: YAML, of which JSON is a part. What has expired is read and of no use; an error leaves nothing. Errors match [ErrFile].
func Parse(b []byte, now time.Time) (*Set, error) {
	var in file
	if err := decode(b, &in); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	if len(in.Tokens) > MaxEntries || len(in.Certificates) > MaxEntries {
		return nil, fmt.Errorf("%w: at most %d tokens and %d certificates", ErrFile, MaxEntries, MaxEntries)
	}
	s := &Set{certificates: map[string]entry{}}
	live := map[string]int{}
	for i := range in.Tokens {
		t, err := in.Tokens[i].token(now)
		if err == nil && slices.ContainsFunc(s.tokens, func(other token) bool { return other.hash == t.hash }) {
			err = errors.New("sha256: conflict: it is there twice")
		}
		if err == nil && now.Before(t.caller.Expires) {
			if live[t.caller.Name]++; live[t.caller.Name] > maxLive {
				err = fmt.Errorf("name: conflict: more than %d tokens of one name are in force", maxLive)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("%w: tokens[%d]: %w", ErrFile, i, err)
		}
		s.tokens = append(s.tokens, t)
	}
	for i, e := range in.Certificates {
		err := e.check()
		if _, twice := s.certificates[e.Name]; err == nil && twice {
			err = errors.New("name: conflict: it is there twice")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: certificates[%d]: %w", ErrFile, i, err)
		}
		s.certificates[e.Name] = e
	}
	return s, nil
}

// Tokens counts the tokens that are in force.
func (s *Set) Tokens(now time.Time) (n int) {
	if s == nil {
		return 0
	}
	for i := range s.tokens {
		if now.Before(s.tokens[i].caller.Expires) {
			n++
		}
	}
	return n
}

// Token finds the caller of a token that has not expired. Every entry is compared, whichever it is.
func (s *Set) Token(text string, now time.Time) (c Caller, ok bool) {
	if s == nil || !bearer.Valid(text) {
		return c, false
	}
	hash := sha256.Sum256([]byte(text))
	at := -1
	for i := range s.tokens {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(hash[:], s.tokens[i].hash[:]), i, at)
	}
	if at < 0 || !now.Before(s.tokens[at].caller.Expires) {
		return c, false
	}
	return s.tokens[at].caller, true
}

// Certificate returns the caller of a certificate that was verified: everything that his role allows, but for what the file limits his name to.
// A node is nobody's client and is limited by nothing.
func (s *Set) Certificate(id pki.Identity) Caller {
	c := Caller{Name: id.Name, Role: id.Role, cluster: id.Cluster}
	if s != nil && id.Role != pki.RoleNode {
		e := s.certificates[id.Name]
		c.Grants, c.Rate, c.Records = e.grants, e.Rate, e.Records
	}
	return c
}

// Still reports whether a caller would be the same by this set.
func (s *Set) Still(c *Caller, now time.Time) bool {
	if !c.ByToken() {
		again := s.Certificate(pki.Identity{Cluster: c.cluster, Role: c.Role, Name: c.Name})
		return again.Equal(c)
	}
	return s != nil && now.Before(c.Expires) && slices.ContainsFunc(s.tokens, func(t token) bool { return t.caller.Equal(c) })
}

// decode reads one document. What the library says of a value quotes it, and it may be a token that stands in the wrong place.
func decode(b []byte, to *file) error {
	if len(b) > MaxFile {
		return fmt.Errorf("too large: at most %d bytes", MaxFile)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	decoder.KnownFields(true)
	err := decoder.Decode(to)
	if errors.Is(err, io.EOF) { // it is empty
		return nil
	}
	if err == nil {
		if next := decoder.Decode(new(yaml.Node)); !errors.Is(next, io.EOF) {
			return errors.New("one document, and no more")
		}
		return nil
	}
	if m := unknownKey.FindStringSubmatch(err.Error()); m != nil {
		return fmt.Errorf("line %s: unknown key", m[1])
	}
	if m := lineNumber.FindString(err.Error()); m != "" {
		return fmt.Errorf("%s: want tokens: and certificates:, each a list of entries", m)
	}
	return errors.New("want YAML or JSON")
}

var (
	unknownKey = regexp.MustCompile(`line (\d+): field .* not found`)
	lineNumber = regexp.MustCompile(`line \d+`)
	validName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

func (e *TokenEntry) token(now time.Time) (t token, err error) {
	role, roleErr := pki.ParseRole(e.Role)
	b, hexErr := hex.DecodeString(e.SHA256)
	expires, timeErr := time.Parse(time.RFC3339, e.Expires)
	switch err := e.check(); {
	case err != nil:
		return t, err
	case hexErr != nil || copy(t.hash[:], b) != len(t.hash) || len(b) != len(t.hash):
		return t, errors.New("sha256: malformed: the SHA-256 of the token as 64 hex digits, never the token (revokd credentials new)")
	case roleErr != nil:
		return t, roleErr
	case role == pki.RoleAdmin && len(e.grants) > 0:
		return t, errors.New("grants: conflict: an admin is limited to nothing")
	case timeErr != nil:
		return t, errors.New("expires: malformed or missing: want a time such as 2027-01-31T00:00:00Z")
	case expires.Sub(now) > MaxLifetime:
		return t, fmt.Errorf("expires: out of range: at most %d days from now", int(MaxLifetime/(24*time.Hour)))
	}
	t.caller = Caller{Name: e.Name, Role: role, Grants: e.grants, Rate: e.Rate, Records: e.Records, Expires: expires, token: hex.EncodeToString(t.hash[:4])}
	return t, nil
}

func (e *entry) check() error {
	switch {
	case !validName.MatchString(e.Name):
		return errors.New("name: malformed: 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit")
	case e.Rate != 0 && (e.Rate < minRate || e.Rate > maxRate):
		return fmt.Errorf("rate: out of range: %d to %d records a second, or none", minRate, maxRate)
	case e.Records < 0 || e.Records > maxRecords:
		return fmt.Errorf("records: out of range: 1 to %d, or none", maxRecords)
	case e.Records != 0 && len(e.Grants) == 0:
		return errors.New("records: conflict: they are counted for each of the grants, and there are none")
	case len(e.Grants) > MaxGrants:
		return fmt.Errorf("grants: too large: at most %d", MaxGrants)
	}
	for i, claims := range e.Grants {
		m, err := grant(claims)
		if err != nil {
			return fmt.Errorf("grants[%d]: %w", i, err)
		}
		e.grants = append(e.grants, m)
	}
	return nil
}

// grant reads claims and the values that they must have.
func grant(claims map[string]any) (revocation.Match, error) {
	if len(claims) == 0 {
		return revocation.Match{}, errors.New("malformed: want claims such as iss: https://id.example")
	}
	values := make(map[string]revocation.Value, len(claims))
	for name, value := range claims {
		switch v := value.(type) {
		case string:
			values[name] = revocation.String(v)
		case int:
			values[name] = revocation.Int(int64(v))
		case bool:
			values[name] = revocation.Bool(v)
		default:
			return revocation.Match{}, errors.New("malformed: a value is a text, an integer or true or false")
		}
	}
	return revocation.NewMatch(values)
}

// NewEntry returns the entry of a token. Grants are matches as [revocation.ParseMatch] reads them. Errors match [ErrFile].
func NewEntry(text, name string, role pki.Role, grants []revocation.Match, rate, records int, expires, now time.Time) (*TokenEntry, error) {
	hash := sha256.Sum256([]byte(text))
	e := &TokenEntry{entry: entry{Name: name, Rate: rate, Records: records}, SHA256: hex.EncodeToString(hash[:]), Role: strings.ReplaceAll(string(role), "+", ","), Expires: expires.UTC().Format(time.RFC3339)}
	for _, g := range grants {
		claims := map[string]any{}
		for _, n := range g.Names() {
			v, _ := g.Get(n)
			claims[n] = plain(v)
		}
		e.Grants = append(e.Grants, claims)
	}
	check := *e
	if _, err := check.token(now); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return e, nil
}

func plain(v revocation.Value) any {
	if text, ok := v.AsString(); ok {
		return text
	}
	if n, ok := v.AsInt(); ok {
		return int(n)
	}
	b, _ := v.AsBool()
	return b
}

// YAML returns the entry as one of a list of tokens in a file.
func (e *TokenEntry) YAML() ([]byte, error) {
	return yaml.Marshal([]*TokenEntry{e})
}
