package revocation

import "time"

// Status is the answer of a check. The zero Status is Unknown.
type Status uint8

// The answers.
const (
	Unknown Status = iota // cannot be judged: refuse with 503, not 401
	Active                // not revoked, as far as this view goes
	Revoked
)

func (s Status) String() string {
	switch s {
	case Active:
		return "active"
	case Revoked:
		return "revoked"
	}
	return "unknown"
}

// Cause says why a verdict is Unknown.
type Cause uint8

// The causes. CauseNone goes with Active and Revoked, and with the zero Verdict.
const (
	CauseNone     Cause = iota
	CauseNotReady       // the view is not complete yet
	CauseStale          // the view is older than asked for
	CauseLifetime       // exp - iat is longer than the issuer's max_token_lifetime, or cannot be told
	CauseExpired        // the token expired so long ago that its revocation may be forgotten
	CauseClaim          // a claim that a live shape names cannot be compared
	CauseClass          // a matching record has a class that this version does not know
	CauseProbes         // more than MaxProbes combinations of shapes and array elements
	// CauseUnanswered: a filter cannot exclude that the token is revoked, and nobody who knows has answered.
	CauseUnanswered
)

func (c Cause) String() string {
	switch c {
	case CauseNotReady:
		return "not_ready"
	case CauseStale:
		return "stale"
	case CauseLifetime:
		return "lifetime"
	case CauseExpired:
		return "expired"
	case CauseClaim:
		return "claim"
	case CauseClass:
		return "class"
	case CauseProbes:
		return "probes"
	case CauseUnanswered:
		return "unanswered"
	}
	return ""
}

// Rule is a stored record with its shape: what can be told about a revocation without its values.
type Rule struct {
	Shape     *Shape // shared; not to be changed
	Class     Class
	Reason    Reason
	ExpiresAt uint32 // Unix seconds
	Value     int64  // see [Record]
}

// Since returns when the rule was made, in Unix milliseconds: the time of a deny, the cutoff, the stamp. ok is
// false for a below rule, which does not tell.
func (r Rule) Since() (ms int64, ok bool) { return r.Value, r.Class != ClassBelow && r.Class.known() }

// Verdict is the answer of a check. The zero Verdict is Unknown.
type Verdict struct {
	Status Status
	Cause  Cause         // if Unknown
	Rule   Rule          // if Revoked: one rule that matched
	Age    time.Duration // how old the view may be, by the replica's own clock
}
