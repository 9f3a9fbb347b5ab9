// Package revocation is the domain of revokd: what a revocation is, when it matches a token,
// how two of them merge, and the table that answers "is this token revoked?".
//
// # What it knows
//
// A [Revocation] is a [Match] (zero to four claims with their values), a rule and the instant
// until which it must be kept, ExpiresAt. The rules are
//
//   - deny: every matching token;
//   - issued-before and below: matching tokens whose iat, or another integer claim, is less than
//     a threshold;
//   - block and unblock: every matching token whatever its iat, until lifted;
//   - keep: an exemption from exactly one issued-before cutoff, the one it was made with.
//
// The sorted claim names of a match, with the claim that the rule compares, are its [Shape]. A
// check computes one keyed [Fingerprint] for each list of names that has live records; nothing is
// configured beforehand and shapes nobody uses cost nothing. Only fingerprints are stored: raw
// identifiers never leave the caller.
//
// # What it promises
//
//   - A token is Revoked if a deny matches, or a block in force, or a threshold that its claim is
//     below and no keep made with that threshold; no record can mask another.
//   - What cannot be judged is Unknown, never Active; the zero [Verdict] is Unknown.
//   - [Join] is commutative, associative and idempotent, so nodes that hold the same records agree
//     whatever order they came in, and joining never makes a deny, a cutoff or their expiry smaller.
//   - Bounds are enforced by refusal ([*FieldError]), never by clamping: a clamped deadline would be
//     a silent un-revocation.
//   - A record is found until its ExpiresAt plus the table's slack, by the time the caller passes.
//
// # Time
//
// Nothing here reads a clock. Instants are Unix milliseconds (int64) where a caller states them and
// Unix seconds (uint32, rounded up) where they are stored. The caller passes the time: guarded time
// to the table, the wall clock to [Table.Plan].
//
// # Concurrency
//
// [Table.Check], [Table.Begin], [Table.End] and [Table.Explain] are wait-free with respect to writers
// and allocate nothing (Explain excepted). All methods of Table may be called concurrently. Values
// (Claims, Match, Record) are not to be changed while a check reads them.
package revocation
