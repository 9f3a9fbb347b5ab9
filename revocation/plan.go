package revocation

import "time"

// Bounds for writers. Out of range is refused, never clamped.
const (
	MaxAhead         = 5 * time.Second  // of a cutoff that a writer states
	MaxAheadAbsolute = 60 * time.Second // of any cutoff or stamp, skews and held stamps included
	MaxCeiling       = 400 * 24 * time.Hour
)

// earliest is 2000-01-01 in milliseconds; a time before it was meant in seconds.
const earliest = 946_684_800_000

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
	Keep         []Match // with a cutoff: {jti}, {token.sha256} or the session claim, with or without iss, of what is to stay
	Reason       Reason
}

// MaxKeeps bounds Request.Keep.
const MaxKeeps = 8

// Revocation is a match, a rule and a deadline: what [Table.Plan] makes and [Key.Record] encodes.
type Revocation struct {
	Match     Match
	Shape     Shape
	Class     Class
	Value     int64 // see [Record]
	ExpiresAt uint32
	Reason    Reason
}

// Record returns the record of a revocation under the key.
func (k Key) Record(r Revocation) Record {
	return Record{
		Fingerprint: k.fingerprint(r.Match, r.Shape, r.Class),
		Value:       r.Value, Shape: r.Shape.ID(), ExpiresAt: r.ExpiresAt, Class: r.Class, Reason: r.Reason, Flags: writtenFlags,
	}
}

// Plan is the answer of [Table.Plan].
type Plan struct {
	// Revocations in the order in which they are to be written: keeps before the cutoff they belong to.
	Revocations []Revocation
	// AlreadyExpired: no token that the request names can be accepted anywhere, whatever leeway a verifier has, so there is nothing to store.
	AlreadyExpired bool
	// UsableAfter of the cutoff; 0 without one. See [UsableAfter].
	UsableAfter int64
}

// Main returns the revocation that the request asked for; the others are its keeps. Only a plan that is not AlreadyExpired has one.
func (p Plan) Main() Revocation { return p.Revocations[len(p.Revocations)-1] }

// UsableAfter returns the first whole second, in Unix milliseconds, at which a token with a whole-second iat passes a cutoff.
func UsableAfter(cutoff int64) int64 { return (cutoff + 999) / 1000 * 1000 }

// clocks are the two times of a writer, and how long what has expired is kept: see [Table.Plan].
type clocks struct{ wall, guarded, slack int64 }

// expired reports whether what ends at an instant is kept no longer, by both clocks.
func (c clocks) expired(ms int64) bool { return ms+c.slack <= min(c.wall, c.guarded) }

// from returns the deadline of what must be kept for d.
func (c clocks) from(d time.Duration) int64 { return max(c.wall, c.guarded) + d.Milliseconds() }

// Plan turns a request into revocations by the policy in force. Errors are *FieldError and nothing is changed.
//
// It takes the writer's two clocks, in Unix milliseconds, because they differ after the wall clock has jumped, and neither
// is safe for everything:
//
//   - What is new (a cutoff, the stamp of a block, the time of a deny) is at wall, and what a caller states may lie ahead of wall by
//     its bound: issuers stamp iat by wall clocks. Guarded time lags, perhaps for as long as the process runs, behind a wall
//     clock that was put right by a step forward; a cutoff at guarded time would then miss the latest tokens, and every
//     cutoff that a caller states would be refused as too far ahead.
//   - That everything the request names has expired must be so by both clocks, and for as long as the table's slack: verifiers accept
//     tokens for minutes beyond their exp, and a clock may be seconds ahead before anybody notices. A wall clock that has jumped ahead
//     would answer AlreadyExpired for tokens that are alive, which is forgetting because of a jump.
//   - What is kept for a duration from now is kept from the later of both, so that neither clock makes it end early.
//
// Whether wall can be believed at all is the caller's to decide, before it plans what states no time of its own.
func (t *Table) Plan(r Request, wall, guarded int64) (Plan, error) {
	return t.Policy().plan(r, clocks{wall, guarded, int64(t.slack) * 1000})
}

// plan is [Table.Plan]; p has been validated.
func (p *Policy) plan(r Request, now clocks) (Plan, error) {
	switch {
	case min(now.wall, now.guarded) < 0 || now.from(MaxCeiling+2*MaxAheadAbsolute) > int64(maxExpiresAt)*1000:
		return Plan{}, &FieldError{Field: "now", Kind: "out_of_range", ValueKind: "time", Limit: "1970 to 2104: the clock of this node is wrong"}
	case r.Reason >= reasonCount:
		return Plan{}, &FieldError{Field: "reason", Kind: "out_of_range", ValueKind: "integer", Limit: "a reason of the closed list"}
	case r.ExpiresAt != 0 && r.ExpiresAt < earliest:
		// Answering AlreadyExpired to what was meant in seconds would be a revocation that silently does nothing.
		return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "seconds", Limit: "not before 2000; this looks like seconds where milliseconds belong"}
	case r.ExpiresAt >= maxNumericDate*1000:
		return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "milliseconds", Limit: "a time before the year 5138; this looks like milliseconds where seconds belong"}
	case r.ExpiresAt > now.wall+p.Ceiling.Milliseconds():
		return Plan{}, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "at most the ceiling of " + p.Ceiling.String() + " ahead"}
	}
	switch r.Action {
	case Revoke:
	case Block, Unblock:
		return p.planBlock(r, now)
	default:
		return Plan{}, &FieldError{Field: "action", Kind: "out_of_range", ValueKind: "integer", Limit: "revoke, block or unblock"}
	}
	switch {
	case r.Below != nil && (r.IssuedBefore != 0 || r.Cutoff):
		return Plan{}, &FieldError{Field: "below", Kind: "conflict", Limit: "either below or issued_before"}
	case r.Below != nil:
		return p.planBelow(r, now)
	case r.IssuedBefore != 0 || r.Cutoff || len(r.Keep) > 0:
		return p.planCutoff(r, now)
	}
	// A plain deny is for what cannot come back with a later login: a token, a session, a signing key. Anything wider would
	// lock its owner out.
	token, session, key := false, false, false
	for _, c := range r.Match.claims {
		token = token || namesToken(c.name)
		session = session || p.namesSession(r.Match, c.name)
		key = key || c.name == HeaderKID
	}
	natural := now.from(p.maxTokenLifetime(r.Match))
	switch {
	case token:
		return planDeny(r, now, natural)
	case session:
		return planDeny(r, now, now.from(p.maxSessionLifetime(r.Match)))
	case !key:
		return p.planCutoff(r, now)
	}
	if _, err := thresholdExpiry(r.ExpiresAt, natural); err != nil {
		return Plan{}, err // the key has signed tokens until now
	}
	return planDeny(r, now, natural)
}

func seconds(ms int64) uint32 { return uint32((ms + 999) / 1000) }

// planDeny keeps a plain deny until a stated time, else until natural.
func planDeny(r Request, now clocks, natural int64) (Plan, error) {
	expires := r.ExpiresAt
	if expires == 0 {
		expires = natural
	}
	if now.expired(expires) {
		return Plan{AlreadyExpired: true}, nil
	}
	return Plan{Revocations: []Revocation{{
		Match: r.Match, Shape: Shape{Names: r.Match.Names()}, Class: denyClass(r.Match), Value: now.wall, ExpiresAt: seconds(expires), Reason: r.Reason,
	}}}, nil
}

func (p *Policy) planCutoff(r Request, now clocks) (Plan, error) {
	cutoff, lifetime := r.IssuedBefore, p.maxTokenLifetime(r.Match)
	natural := cutoff + lifetime.Milliseconds()
	switch {
	case cutoff == 0:
		skew := p.skew(r.Match)
		cutoff, natural = now.wall+skew.Milliseconds(), now.from(skew+lifetime)
	case cutoff > now.wall+MaxAhead.Milliseconds():
		return Plan{}, &FieldError{Field: "issued_before", Kind: "out_of_range", ValueKind: "time", Limit: "at most 5 s ahead"}
	case cutoff < earliest:
		return Plan{}, &FieldError{Field: "issued_before", Kind: "out_of_range", ValueKind: "seconds", Limit: "not before 2000; this looks like seconds where milliseconds belong"}
	}
	if len(r.Keep) > MaxKeeps {
		return Plan{}, &FieldError{Field: "keep", Kind: "too_large", ValueKind: "array", Limit: "at most 8"}
	}
	expires, err := thresholdExpiry(r.ExpiresAt, natural)
	if err != nil {
		return Plan{}, err
	}
	shape := Shape{Names: r.Match.Names(), Compared: IAT}
	plan := Plan{UsableAfter: UsableAfter(cutoff)}
	for _, kept := range r.Keep {
		k, err := p.keep(r.Match, kept)
		if err != nil {
			return Plan{}, err
		}
		plan.Revocations = append(plan.Revocations, Revocation{
			Match: k, Shape: Shape{Names: k.Names(), Compared: IAT, Keep: true, KeepOf: shape.Names},
			Class: ClassKeep, Value: cutoff, ExpiresAt: seconds(expires), Reason: r.Reason,
		})
	}
	if now.expired(expires) {
		return Plan{AlreadyExpired: true}, nil
	}
	plan.Revocations = append(plan.Revocations, Revocation{
		Match: r.Match, Shape: shape, Class: ClassIssuedBefore, Value: cutoff, ExpiresAt: seconds(expires), Reason: r.Reason,
	})
	return plan, nil
}

// keep returns the match of an exemption: the deny's claims and the one that names the kept token or session.
func (p *Policy) keep(deny, kept Match) (Match, error) {
	bad := func(limit string) (Match, error) {
		return Match{}, &FieldError{Field: "keep", Kind: "not_allowed", Limit: limit}
	}
	joined := deny.with(kept)
	named := 0
	for _, c := range kept.claims {
		held, ok := deny.Get(c.name)
		switch {
		case ok && held != c.value:
			return bad("what is kept must match what is revoked")
		case c.name == "iss":
		case !namesToken(c.name) && !p.namesSession(joined, c.name):
			return bad("iss and one of jti, token.sha256 or the session claim")
		case ok:
			return bad("it must name a token or session within what is revoked")
		default:
			named++
		}
	}
	if named != 1 {
		return bad("iss and one of jti, token.sha256 or the session claim")
	}
	return joined, nil
}

func thresholdExpiry(asked, natural int64) (int64, error) {
	if asked != 0 && asked < natural {
		return 0, &FieldError{Field: "expires_at", Kind: "out_of_range", ValueKind: "time", Limit: "not before the cutoff, or now, + max_token_lifetime: older tokens live that long"}
	}
	return max(asked, natural), nil
}

func (p *Policy) planBelow(r Request, now clocks) (Plan, error) {
	if len(r.Keep) > 0 {
		return Plan{}, &FieldError{Field: "keep", Kind: "not_allowed", Limit: "only with an iat cutoff"}
	}
	claim, err := writtenName(r.Below.Claim)
	switch {
	case err != nil:
		return Plan{}, err
	case claim == IAT:
		return Plan{}, &FieldError{Field: "below", Kind: "not_allowed", ValueKind: "iat", Limit: "issued_before compares iat"}
	}
	expires, err := thresholdExpiry(r.ExpiresAt, now.from(p.maxTokenLifetime(r.Match)))
	if err != nil {
		return Plan{}, err
	}
	return Plan{Revocations: []Revocation{{
		Match: r.Match, Shape: Shape{Names: r.Match.Names(), Compared: claim}, Class: ClassBelow,
		Value: r.Below.Value, ExpiresAt: seconds(expires), Reason: r.Reason,
	}}}, nil
}

// planBlock stamps with the wall clock; [Table.Stamp] raises the stamp above the one held.
func (p *Policy) planBlock(r Request, now clocks) (Plan, error) {
	if r.Below != nil || r.IssuedBefore != 0 || r.Cutoff || len(r.Keep) > 0 {
		return Plan{}, &FieldError{Field: "match", Kind: "conflict", Limit: "a block takes a match and expires_at only"}
	}
	rev := Revocation{Match: r.Match, Shape: Shape{Names: r.Match.Names()}, Class: ClassBlock, Value: now.wall, Reason: r.Reason}
	switch {
	case r.Action == Unblock:
		if r.ExpiresAt != 0 {
			return Plan{}, &FieldError{Field: "expires_at", Kind: "not_allowed", Limit: "an unblock outlives what it lifts"}
		}
		rev.Class = ClassUnblock
		rev.ExpiresAt = unblockExpiry(now.wall)
	case r.ExpiresAt == 0:
		rev.ExpiresAt = seconds(now.wall + p.Ceiling.Milliseconds())
	case now.expired(r.ExpiresAt):
		return Plan{AlreadyExpired: true}, nil
	default:
		rev.ExpiresAt = seconds(r.ExpiresAt)
	}
	return Plan{Revocations: []Revocation{rev}}, nil
}

// longestBlock is how far a block can end behind its stamp, in milliseconds, whatever the ceiling was when it was made.
const longestBlock = int64((MaxCeiling + MaxAheadAbsolute) / time.Millisecond)

// unblockExpiry outlives every block with an older stamp.
func unblockExpiry(stamp int64) uint32 { return seconds(stamp + longestBlock) }
