package revocation

import (
	"crypto/rand"
	"slices"
	"sync"
)

// Limits of a [Sample].
const (
	sampleClaims = 24  // prints kept of a check; an array has one for each element
	sampleSize   = 512 // bytes of a check, at most; a test says so
)

// Sample remembers of a number of recent checks what it takes to tell which of them a revocation would have caught: for each claim a hash of its name and value, and iat. The hashes are
// keyed with a secret that never leaves the Sample, and no value is kept. Its memory is bounded by the number of checks. Methods may be called concurrently.
type Sample struct {
	start sip // the secret

	mu   sync.Mutex
	rows []sampled // a ring once it is full
	next int
}

// sampled is one check.
type sampled struct {
	at     int64 // Unix milliseconds
	iat    int64
	status Status
	hasIAT bool
	cut    bool // it had more claims than are kept
	n      uint8
	names  [sampleClaims]uint32
	values [sampleClaims]uint64
}

// NewSample returns a Sample of at most so many checks.
func NewSample(checks int) *Sample {
	var k Key
	rand.Read(k[:])
	return &Sample{start: newSip(k), rows: make([]sampled, 0, checks)}
}

// knownClaims are the names that have places of their own in Claims, by their place.
var knownClaims = [knownNames]string{"iss", "sub", "jti", "sid", "client_id", "tenant_id", "azp", "aud", HeaderKID, TokenSHA256}

// Add remembers a check and its verdict; now is Unix milliseconds. It allocates nothing, and does nothing while another one is being added: it is for a few of many checks.
func (s *Sample) Add(c *Claims, verdict Status, now int64) {
	if !s.mu.TryLock() {
		return
	}
	defer s.mu.Unlock()
	if len(s.rows) < cap(s.rows) {
		s.rows = s.rows[:len(s.rows)+1]
	}
	r := &s.rows[s.next]
	if s.next++; s.next == cap(s.rows) {
		s.next = 0
	}
	r.at, r.iat, r.hasIAT, r.status, r.cut, r.n = now, c.iat, c.hasIAT, verdict, false, 0
	for i := range c.known {
		s.print(r, c, knownClaims[i], &c.known[i])
	}
	for i := range c.others {
		s.print(r, c, c.others[i].name, &c.others[i].value)
	}
}

// print adds a claim to a check.
func (s *Sample) print(r *sampled, c *Claims, name string, v *Value) {
	switch v.kind {
	case KindMissing:
	case KindArray:
		for i := range c.elements(v) {
			s.print(r, c, name, &c.elements(v)[i])
		}
	default:
		if r.n == sampleClaims {
			r.cut = true
			return
		}
		r.names[r.n], r.values[r.n] = s.name(name), s.value(name, v)
		r.n++
	}
}

func (s *Sample) name(name string) uint32 {
	n := Value{kind: KindString, s: name}
	return uint32(s.start.hash([]*Value{&n}).Lo)
}

// value hashes a name with a value; all that cannot be compared are one.
func (s *Sample) value(name string, v *Value) uint64 {
	n, w := Value{kind: KindString, s: name}, *v
	if w.kind == KindUnusable {
		w = Value{kind: KindUnusable}
	}
	return s.start.hash([]*Value{&n, &w}).Lo
}

// Caught is what a revocation would have done to the checks of a [Sample].
type Caught struct {
	Checks  int   // that are remembered
	Since   int64 // when the oldest was, Unix milliseconds
	Refused int   // would have been refused, and were not
	Already int   // match, and were refused anyhow
	Unclear int   // cannot be told: what compares a claim other than iat, or a claim that is not kept
}

// Catch tells what the revocations of a plan would have done to the checks since a time, in Unix milliseconds.
func (s *Sample) Catch(p Plan, since int64) (c Caught) {
	if len(p.Revocations) == 0 {
		return c
	}
	main := p.Main()
	rule := s.rule(main)
	var keeps [][]claimPrint
	for _, r := range p.Revocations {
		if r.Class == ClassKeep {
			keeps = append(keeps, s.rule(r))
		}
	}
	compared := s.name(main.Shape.Compared)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.rows {
		r := &s.rows[i]
		if r.at < since {
			continue
		}
		c.Checks++
		if c.Since == 0 || r.at < c.Since {
			c.Since = r.at
		}
		matches, clear := r.match(rule)
		switch {
		case main.Class == ClassUnblock || clear && !matches:
			continue
		case main.Class == ClassIssuedBefore && r.hasIAT && r.iat >= main.Value && (clear || r.cut):
			continue // but what cannot be compared makes a token unknown, whenever it was issued
		case main.Class == ClassBelow:
			clear = clear && !r.cut && !slices.Contains(r.names[:r.n], compared) // without the claim it is caught
		}
		for _, k := range keeps {
			if kept, known := r.match(k); kept {
				matches = false
			} else if !known {
				clear = false
			}
		}
		switch {
		case r.status == Revoked && (matches || !clear):
			c.Already++
		case !clear:
			c.Unclear++
		case matches:
			c.Refused++
		}
	}
	return c
}

// claimPrint is a claim of a match, its name, and what stands for one of that name that cannot be compared.
type claimPrint struct {
	name            uint32
	value, unusable uint64
}

func (s *Sample) rule(r Revocation) []claimPrint {
	prints := make([]claimPrint, len(r.Match.claims))
	for i := range r.Match.claims {
		c := &r.Match.claims[i]
		prints[i] = claimPrint{s.name(c.name), s.value(c.name, &c.value), s.value(c.name, &unusable)}
	}
	return prints
}

// match reports whether a check had all claims of a rule; clear is false if that cannot be told.
func (r *sampled) match(rule []claimPrint) (matches, clear bool) {
	matches, clear = true, true
	arrays := 0
	for _, p := range rule {
		if first := slices.Index(r.names[:r.n], p.name); first >= 0 && slices.Contains(r.names[first+1:r.n], p.name) {
			if arrays++; arrays > 1 {
				matches, clear = false, false // two arrays cannot be compared
			}
		}
		switch {
		case slices.Contains(r.values[:r.n], p.value):
		case r.cut || slices.Contains(r.values[:r.n], p.unusable):
			matches, clear = false, false
		case slices.Contains(r.names[:r.n], p.name):
			matches = false // but another claim of the match may be one that cannot be compared
		default:
			return false, true // without one of the claims nothing can match
		}
	}
	return matches, clear
}
