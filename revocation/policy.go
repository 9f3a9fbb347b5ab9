package revocation

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/revokd/revokd/internal/faults"
)

// Defaults of [Settings].
const (
	DefaultMaxTokenLifetime   = 24 * time.Hour
	DefaultMaxSessionLifetime = 30 * 24 * time.Hour
	DefaultSessionClaim       = "sid"
)

// Settings of one issuer. Zero fields mean the defaults.
type Settings struct {
	// MaxTokenLifetime bounds exp - iat of the issuer's tokens. A cutoff is kept that long; a token that lives longer, or whose
	// lifetime cannot be told, is Unknown. Default 24 h.
	MaxTokenLifetime time.Duration
	// MaxSessionLifetime is how long a session stays denied when the caller does not say. Default 30 d.
	MaxSessionLifetime time.Duration
	// Skew is how far the issuer's clock may be ahead of ours; it is added to cutoffs that the server makes. At most 60 s less [MaxAhead].
	Skew time.Duration
	// SessionClaim names a session, or a family of refresh tokens, in the issuer's tokens. Default "sid".
	SessionClaim string
	// Earlier holds the limits from before MaxTokenLifetime was raised. Only [Policy.Succeed] sets it.
	Earlier []Limit
}

// Limit is a MaxTokenLifetime that tokens issued before an instant (Unix milliseconds) are still held to.
type Limit struct {
	IssuedBefore     int64
	MaxTokenLifetime time.Duration
}

// maxEarlier bounds Settings.Earlier; the oldest two become one that is as strict as both.
const maxEarlier = 8

func (s Settings) withDefaults() Settings {
	if s.MaxTokenLifetime == 0 {
		s.MaxTokenLifetime = DefaultMaxTokenLifetime
	}
	if s.MaxSessionLifetime == 0 {
		s.MaxSessionLifetime = DefaultMaxSessionLifetime
	}
	if s.SessionClaim == "" {
		s.SessionClaim = DefaultSessionClaim
	}
	return s
}

// lifetime returns the longest lifetime that a token issued at iat may have.
func (s *Settings) lifetime(iat int64) time.Duration {
	d := s.MaxTokenLifetime
	for _, e := range s.Earlier {
		if iat < e.IssuedBefore {
			d = min(d, e.MaxTokenLifetime)
		}
	}
	return d
}

// Policy is what turns requests into revocations: the ceiling and the settings of issuers.
type Policy struct {
	Ceiling time.Duration // furthest ExpiresAt; default and at most 400 days
	Default Settings      // of issuers that are not listed
	Issuers map[string]Settings
}

// ParsePolicy reads a policy as encoding/json writes it, checks it and fills in defaults. Errors match [ErrInvalid].
func ParsePolicy(b []byte) (Policy, error) {
	var p Policy
	if err := json.Unmarshal(b, &p); err != nil {
		return Policy{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := p.Validate(); err != nil {
		return Policy{}, err
	}
	return p, nil
}

// Validate checks p and fills in defaults. Errors are *FieldError.
func (p *Policy) Validate() error {
	if p.Ceiling == 0 {
		p.Ceiling = MaxCeiling
	}
	if p.Ceiling < time.Second || p.Ceiling > MaxCeiling {
		return &FieldError{Field: "ceiling", Kind: "out_of_range", ValueKind: "duration", Limit: "1 s to 400 days"}
	}
	var err error
	if p.Default, err = p.check(p.Default); err != nil {
		return err
	}
	issuers := make(map[string]Settings, len(p.Issuers))
	for iss, s := range p.Issuers {
		if issuers[iss], err = p.check(s); err != nil {
			return err
		}
	}
	p.Issuers = issuers
	return nil
}

func (p *Policy) check(s Settings) (Settings, error) {
	s = s.withDefaults()
	bad := func(field, limit string) (Settings, error) {
		return s, &FieldError{Field: field, Kind: "out_of_range", ValueKind: "duration", Limit: limit}
	}
	switch {
	case s.MaxTokenLifetime < time.Second || s.MaxTokenLifetime > p.Ceiling:
		return bad("max_token_lifetime", "1 s to the ceiling")
	case s.MaxSessionLifetime < time.Second || s.MaxSessionLifetime > p.Ceiling:
		return bad("max_session_lifetime", "1 s to the ceiling")
	case s.Skew < 0 || s.Skew > MaxAheadAbsolute-MaxAhead:
		return bad("issuer_skew", "0 to 55 s")
	}
	var err error
	s.SessionClaim, err = CanonicalName(s.SessionClaim)
	return s, err
}

// Settings returns the settings of an issuer.
func (p *Policy) Settings(issuer string) Settings {
	if s, ok := p.Issuers[issuer]; ok {
		return s
	}
	return p.Default
}

// IssuerNames returns the issuers that have settings of their own, in order.
func (p *Policy) IssuerNames() []string { return slices.Sorted(maps.Keys(p.Issuers)) }

// Succeed makes p the policy that follows old at an instant (Unix milliseconds: the later of wall and guarded time). Both
// must have been validated.
//
// A raised MaxTokenLifetime needs care: cutoffs made under the old one are forgotten when the tokens that lived that long
// have expired, and some are forgotten already. So a token issued before the raise, and up to [MaxAheadAbsolute] after it because
// cutoffs may lie that far ahead, stays held to the old limit: if it lives longer it is Unknown, as it was before.
// A token issued later cannot be meant by an old cutoff and may live as long as the new limit allows. No record is touched,
// and nothing has to reach other replicas but p itself. A caller that persists p, which is plain data, must hand what it has
// persisted to Succeed at its next start.
func (p *Policy) Succeed(old *Policy, at int64) {
	issuers := make(map[string]Settings, len(p.Issuers))
	for iss := range old.Issuers { // one that is no longer listed goes on under the default, held to what it had
		if s, raised := succeed(old.Settings(iss), p.Settings(iss), at); raised {
			issuers[iss] = s
		}
	}
	for iss, s := range p.Issuers {
		issuers[iss], _ = succeed(old.Settings(iss), s, at)
	}
	p.Default, _ = succeed(old.Default, p.Default, at)
	p.Issuers = issuers
}

// succeed returns is with the limits that tokens issued under was are held to, and whether there are any.
func succeed(was, is Settings, at int64) (Settings, bool) {
	limits := slices.Clone(is.Earlier)
	for _, l := range append(slices.Clone(was.Earlier), Limit{at + MaxAheadAbsolute.Milliseconds(), was.MaxTokenLifetime}) {
		if !slices.Contains(limits, l) {
			limits = append(limits, l)
		}
	}
	limits = slices.DeleteFunc(limits, func(l Limit) bool {
		// What is no limit any more, and one that binds only tokens which have expired under either limit.
		return l.MaxTokenLifetime >= is.MaxTokenLifetime || l.IssuedBefore+(is.MaxTokenLifetime+maxSlack).Milliseconds() < at
	})
	for len(limits) > maxEarlier {
		limits[1] = Limit{max(limits[0].IssuedBefore, limits[1].IssuedBefore), min(limits[0].MaxTokenLifetime, limits[1].MaxTokenLifetime)}
		limits = limits[1:]
	}
	is.Earlier = limits
	return is, len(limits) > 0
}

// maxTokenLifetime returns the longest lifetime of a token that m can match.
func (p *Policy) maxTokenLifetime(m Match) time.Duration {
	if iss, ok := m.Get("iss"); ok {
		return p.Settings(iss.s).MaxTokenLifetime
	}
	d := p.Default.MaxTokenLifetime
	for _, s := range p.Issuers {
		d = max(d, s.MaxTokenLifetime)
	}
	return d
}

// maxSessionLifetime and skew are likewise those of the issuer that m names, else the largest.
func (p *Policy) maxSessionLifetime(m Match) time.Duration {
	if iss, ok := m.Get("iss"); ok {
		return p.Settings(iss.s).MaxSessionLifetime
	}
	d := p.Default.MaxSessionLifetime
	for _, s := range p.Issuers {
		d = max(d, s.MaxSessionLifetime)
	}
	return d
}

func (p *Policy) skew(m Match) time.Duration {
	if faults.Mutant("no-skew") {
		return 0
	}
	if iss, ok := m.Get("iss"); ok {
		return p.Settings(iss.s).Skew
	}
	d := p.Default.Skew
	for _, s := range p.Issuers {
		d = max(d, s.Skew)
	}
	return d
}

// namesToken: a claim that names one token.
func namesToken(name string) bool { return name == "jti" || name == TokenSHA256 }

// namesSession: a claim that names a session or a family of refresh tokens of the issuer that m names.
func (p *Policy) namesSession(m Match, name string) bool {
	if name == DefaultSessionClaim {
		return true
	}
	if iss, ok := m.Get("iss"); ok {
		return name == p.Settings(iss.s).SessionClaim
	}
	return name == p.Default.SessionClaim
}
