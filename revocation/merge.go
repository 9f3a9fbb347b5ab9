package revocation

// Join merges two records of one key (fingerprint and class group). It is the join of a semilattice:
// commutative, associative, idempotent; the result denies at least what either did, for at least as
// long, but for an unblock, which wins over blocks with an older stamp.
//
//	deny            earlier time made, later ExpiresAt
//	thresholds      larger threshold, later ExpiresAt
//	block, unblock  the larger stamp with its ExpiresAt; at a tie block, then the later ExpiresAt
//	keep, unknown   larger value, later ExpiresAt
//
// Reasons join by max and flags by or; those of a block follow the winning stamp.
func Join(a, b Record) Record {
	if a.Class.group() == ClassBlock && b.Class.group() == ClassBlock {
		return joinBlock(a, b)
	}
	r := a
	if a.Class == ClassDeny {
		r.Value = min(a.Value, b.Value)
	} else {
		r.Value = max(a.Value, b.Value)
	}
	r.ExpiresAt = max(a.ExpiresAt, b.ExpiresAt)
	r.Reason = max(a.Reason, b.Reason)
	r.Flags = a.Flags | b.Flags
	return r
}

func joinBlock(a, b Record) Record {
	switch {
	case a.Value > b.Value:
		return a
	case b.Value > a.Value:
		return b
	case a.Class != b.Class:
		if a.Class == ClassBlock {
			return a
		}
		return b
	}
	a.ExpiresAt = max(a.ExpiresAt, b.ExpiresAt)
	a.Reason = max(a.Reason, b.Reason)
	a.Flags |= b.Flags
	return a
}

// Covers reports whether merging r into held would change nothing.
func Covers(held, r Record) bool { return Join(held, r) == held }
