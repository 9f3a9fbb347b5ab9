package revocation

import (
	"slices"
	"time"
)

// Bounds for writers. Out of range is refused, never clamped.
const (
	MaxAhead         = 5 * time.Second  // of a cutoff that a writer states
	MaxAheadAbsolute = 60 * time.Second // of any cutoff or stamp, skews and held stamps included
	MaxCeiling       = 400 * 24 * time.Hour
)

// earliestCutoff is 2000-01-01 in milliseconds; a cutoff before it was meant in seconds.
const earliestCutoff = 946_684_800_000

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
}

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

// Policy is what turns requests into revocations: the ceiling and the settings of issuers.
type Policy struct {
	Ceiling time.Duration // furthest ExpiresAt; default and at most 400 days
	Default Settings      // of issuers that are not listed
	Issuers map[string]Settings
}

// Validate checks p and fills in defaults. Errors are *FieldError.
func (p *Policy) Validate() error {
	if p.Ceiling == 0 {
		p.Ceiling = MaxCeiling
	}
	if p.Ceiling < time.Second || p.Ceiling > MaxCeiling {
		return &FieldError{Field: "ceiling", Kind: "out_of_range", ValueKind: "duration", Limit: "1 s to 400 days"}
	}
	check := func(s Settings) (Settings, error) {
		s = s.withDefaults()
		switch {
		case s.MaxTokenLifetime < time.Second || s.MaxTokenLifetime > p.Ceiling:
			return s, &FieldError{Field: "max_token_lifetime", Kind: "out_of_range", ValueKind: "duration", Limit: "1 s to the ceiling"}
		case s.MaxSessionLifetime < time.Second || s.MaxSessionLifetime > p.Ceiling:
			return s, &FieldError{Field: "max_session_lifetime", Kind: "out_of_range", ValueKind: "duration", Limit: "1 s to the ceiling"}
		case s.Skew < 0 || s.Skew > MaxAheadAbsolute-MaxAhead:
			return s, &FieldError{Field: "issuer_skew", Kind: "out_of_range", ValueKind: "duration", Limit: "0 to 55 s"}
		}
		var err error
		s.SessionClaim, err = CanonicalName(s.SessionClaim)
		return s, err
	}
	var err error
	if p.Default, err = check(p.Default); err != nil {
		return err
	}
	issuers := make(map[string]Settings, len(p.Issuers))
	for iss, s := range p.Issuers {
		if issuers[iss], err = check(s); err != nil {
			return err
		}
	}
	p.Issuers = issuers
	return nil
}

// Settings returns the settings of an issuer.
func (p *Policy) Settings(issuer string) Settings {
	if s, ok := p.Issuers[issuer]; ok {
		return s
	}
	return p.Default
}

// maxTokenLifetime returns the longest lifetime of a token that m can match.
func (p *Policy) maxTokenLifetime(m Match) time.Duration {
	if iss, ok := m.Get("iss"); ok {
		return p.Settings(iss.s).MaxTokenLifetime
	}
	return p.longest()
}

func (p *Policy) longest() time.Duration {
	d := p.Default.MaxTokenLifetime
	for _, s := range p.Issuers {
		d = max(d, s.MaxTokenLifetime)
	}
	return d
}

// plainName: such a claim in a match allows a plain deny: what they name cannot come back with a later login.
func (p *Policy) plainName(m Match, name string) bool {
	switch name {
	case "jti", TokenSHA256, "sid", HeaderKID:
		return true
	}
	if iss, ok := m.Get("iss"); ok {
		return name == p.Settings(iss.s).SessionClaim
	}
	return name == p.Default.SessionClaim
}

// Action is what a [Request] asks for.
type Action uint8

// The actions.
const (
	Revoke Action = iota
	Block
	Unblock
)

// Below is a threshold on an integer claim such as a token version.
type Below struct {
	Claim string
	Value int64
}

// Request is what a writer asks for. Instants are Unix milliseconds, 0 = not stated.
type Request struct {
	Action       Action
	Match        Match
	Below        *Below  // tokens whose claim is below, missing or malformed
	IssuedBefore int64   // the cutoff; else the match decides between a plain deny and a cutoff at now
	Cutoff       bool    // a cutoff even where the match allows a plain deny
	ExpiresAt    int64   // default: see DESIGN, section 10
	Keep         []Match // with a cutoff: {jti}, {sid} or {token.sha256}, with iss, of what is to stay
	Reason       Reason
}

// MaxKeeps bounds Request.Keep.
const MaxKeeps = 8

// Revocation is a match, a rule and a deadline: what [Policy.Plan] makes and [Key.Record] encodes.
type Revocation struct {
	Match     Match
	Shape     Shape
	Class     Class
	Value     int64
	ExpiresAt uint32
	Reason    Reason
}

// Record returns the record of a revocation under the key.
func (k Key) Record(r Revocation) Record {
	return Record{
		Fingerprint: k.fingerprint(r.Match, r.Shape, r.Class),
		Value:       r.Value, Shape: r.Shape.ID(), ExpiresAt: r.ExpiresAt, Class: r.Class, Reason: r.Reason,
	}
}

// Plan is the answer of [Policy.Plan].
type Plan struct {
	// Revocations in the order in which they are to be written: keeps before the cutoff they belong to.
	Revocations []Revocation
	// AlreadyExpired: no token that the request names can be alive, so there is nothing to store.
	AlreadyExpired bool
	// UsableAfter is the first whole second, in milliseconds, at which a token issued with a whole-second iat passes the cutoff; 0 without one.
	UsableAfter int64
}

// Main returns the revocation that the request asked for; the others are its keeps.
func (p Plan) Main() Revocation { return p.Revocations[len(p.Revocations)-1] }

// Plan turns a request into revocations; now is the writer's wall clock in Unix milliseconds. p must have
// been validated. Errors are *FieldError and nothing is changed.
func (p *Policy) Plan(r Request, now int64) (Plan, error) {
	if r.Reason >= reasonCount {
		return Plan{}, &FieldError{Field: "reason", Kind: "out_of_range", ValueKind: "integer", Limit: "a reason of the closed list"}
	}
	if r.ExpiresAt != 0 {
		switch {
		case r.ExpiresAt < 0 || r.ExpiresAt >= maxNumericDate*1000:
			return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "milliseconds", Limit: "a time before the year 5138; this looks like milliseconds where seconds belong"}
		case r.ExpiresAt > now+p.Ceiling.Milliseconds():
			return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "at most the ceiling of " + p.Ceiling.String() + " ahead"}
		}
	}
	if r.Action != Revoke {
		return p.planBlock(r, now)
	}
	switch {
	case r.Below != nil && (r.IssuedBefore != 0 || r.Cutoff):
		return Plan{}, &FieldError{Field: "below", Kind: "conflict", Limit: "either below or issued_before"}
	case r.Below != nil:
		return p.planBelow(r, now)
	}
	plain := false
	for _, c := range r.Match.claims {
		plain = plain || p.plainName(r.Match, c.name)
	}
	if plain && r.IssuedBefore == 0 && !r.Cutoff && len(r.Keep) == 0 {
		return p.planDeny(r, now)
	}
	return p.planCutoff(r, now)
}

func seconds(ms int64) uint32 { return uint32((ms + 999) / 1000) }

func (p *Policy) planDeny(r Request, now int64) (Plan, error) {
	natural := now + p.maxTokenLifetime(r.Match).Milliseconds()
	token, session := false, false
	for _, c := range r.Match.claims {
		token = token || c.name == "jti" || c.name == TokenSHA256
		session = session || c.name != HeaderKID && p.plainName(r.Match, c.name)
	}
	expires := r.ExpiresAt
	switch {
	case token:
	case session:
		s := p.Default
		if iss, ok := r.Match.Get("iss"); ok {
			s = p.Settings(iss.s)
		}
		natural = now + s.MaxSessionLifetime.Milliseconds()
	case expires != 0 && expires < natural:
		return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "not before now + max_token_lifetime: tokens signed with the key live that long"}
	}
	if expires == 0 {
		expires = natural
	}
	if expires <= now {
		return Plan{AlreadyExpired: true}, nil
	}
	return Plan{Revocations: []Revocation{{
		Match: r.Match, Shape: Shape{Names: r.Match.Names()}, Class: ClassDeny, Value: now, ExpiresAt: seconds(expires), Reason: r.Reason,
	}}}, nil
}

func (p *Policy) planCutoff(r Request, now int64) (Plan, error) {
	cutoff := r.IssuedBefore
	switch {
	case cutoff == 0:
		skew := time.Duration(0)
		if iss, ok := r.Match.Get("iss"); ok {
			skew = p.Settings(iss.s).Skew
		} else {
			skew = p.largestSkew()
		}
		cutoff = now + skew.Milliseconds()
	case cutoff > now+MaxAhead.Milliseconds():
		return Plan{}, &FieldError{Field: "issued_before", Kind: "out_of_range", ValueKind: "time", Limit: "at most 5 s ahead"}
	case cutoff < earliestCutoff:
		return Plan{}, &FieldError{Field: "issued_before", Kind: "out_of_range", ValueKind: "seconds", Limit: "not before 2000; this looks like seconds where milliseconds belong"}
	}
	natural := cutoff + p.maxTokenLifetime(r.Match).Milliseconds()
	expires, err := p.thresholdExpiry(r.ExpiresAt, natural)
	if err != nil {
		return Plan{}, err
	}
	if expires <= now {
		return Plan{AlreadyExpired: true}, nil
	}
	shape := Shape{Names: r.Match.Names(), Compared: IAT}
	plan := Plan{UsableAfter: (cutoff + 999) / 1000 * 1000}
	if len(r.Keep) > MaxKeeps {
		return Plan{}, &FieldError{Field: "keep", Kind: "too_large", ValueKind: "array", Limit: "at most 8"}
	}
	for _, kept := range r.Keep {
		k, err := keep(r.Match, kept)
		if err != nil {
			return Plan{}, err
		}
		plan.Revocations = append(plan.Revocations, Revocation{
			Match: k, Shape: Shape{Names: k.Names(), Compared: IAT, Keep: true, KeepOf: shape.Names},
			Class: ClassKeep, Value: cutoff, ExpiresAt: seconds(expires), Reason: r.Reason,
		})
	}
	plan.Revocations = append(plan.Revocations, Revocation{
		Match: r.Match, Shape: shape, Class: ClassIssuedBefore, Value: cutoff, ExpiresAt: seconds(expires), Reason: r.Reason,
	})
	return plan, nil
}

// keep returns the match of an exemption: the deny's claims and those that name the kept token or session.
func keep(deny, kept Match) (Match, error) {
	bad := func(limit string) (Match, error) {
		return Match{}, &FieldError{Field: "keep", Kind: "not_allowed", Limit: limit}
	}
	if n := len(kept.claims); n == 0 || n > 2 {
		return bad("iss with one of jti, token.sha256 or the session claim")
	}
	more := false
	for _, c := range kept.claims {
		held, ok := deny.Get(c.name)
		if ok && held != c.value {
			return bad("what is kept must match what is revoked")
		}
		more = more || !ok && c.name != "iss"
	}
	if !more {
		return bad("it must name a token or session within what is revoked")
	}
	return deny.with(kept), nil
}

func (p *Policy) largestSkew() time.Duration {
	d := p.Default.Skew
	for _, s := range p.Issuers {
		d = max(d, s.Skew)
	}
	return d
}

func (p *Policy) thresholdExpiry(asked, natural int64) (int64, error) {
	if asked != 0 && asked < natural {
		return 0, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "not before the cutoff + max_token_lifetime: older tokens live that long"}
	}
	return max(asked, natural), nil
}

func (p *Policy) planBelow(r Request, now int64) (Plan, error) {
	if len(r.Keep) > 0 {
		return Plan{}, &FieldError{Field: "keep", Kind: "not_allowed", Limit: "only with an iat cutoff"}
	}
	claim, err := CanonicalName(r.Below.Claim)
	switch {
	case err != nil:
		return Plan{}, err
	case claim == IAT:
		return Plan{}, &FieldError{Field: "below", Kind: "not_allowed", ValueKind: "iat", Limit: "issued_before compares iat"}
	}
	expires, err := p.thresholdExpiry(r.ExpiresAt, now+p.maxTokenLifetime(r.Match).Milliseconds())
	if err != nil {
		return Plan{}, err
	}
	return Plan{Revocations: []Revocation{{
		Match: r.Match, Shape: Shape{Names: r.Match.Names(), Compared: claim}, Class: ClassBelow,
		Value: r.Below.Value, ExpiresAt: seconds(expires), Reason: r.Reason,
	}}}, nil
}

// planBlock stamps with now; [Table.Stamp] raises the stamp above the one held.
func (p *Policy) planBlock(r Request, now int64) (Plan, error) {
	if r.Below != nil || r.IssuedBefore != 0 || r.Cutoff || len(r.Keep) > 0 {
		return Plan{}, &FieldError{Field: "match", Kind: "conflict", Limit: "a block takes a match and expires_at only"}
	}
	rev := Revocation{Match: r.Match, Shape: Shape{Names: r.Match.Names()}, Class: ClassBlock, Value: now, Reason: r.Reason}
	switch {
	case r.Action == Unblock:
		if r.ExpiresAt != 0 {
			return Plan{}, &FieldError{Field: "expires_at", Kind: "not_allowed", Limit: "an unblock outlives what it lifts"}
		}
		rev.Class = ClassUnblock
		rev.ExpiresAt = unblockExpiry(now, p.Ceiling)
	case r.ExpiresAt == 0:
		rev.ExpiresAt = seconds(now + p.Ceiling.Milliseconds())
	case r.ExpiresAt <= now:
		return Plan{AlreadyExpired: true}, nil
	default:
		rev.ExpiresAt = seconds(r.ExpiresAt)
	}
	return Plan{Revocations: []Revocation{rev}}, nil
}

// unblockExpiry outlives every block with an older stamp: those end at their stamp's ceiling at the latest.
func unblockExpiry(stamp int64, ceiling time.Duration) uint32 {
	return seconds(stamp + ceiling.Milliseconds() + MaxAheadAbsolute.Milliseconds())
}

// IssuerNames lists the issuers of p in order, for people.
func (p *Policy) IssuerNames() []string {
	names := make([]string, 0, len(p.Issuers))
	for n := range p.Issuers {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
