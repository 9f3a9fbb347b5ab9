package revocation

// Names finds, for tokens, what records over one list of claim names have in their fingerprints: so that whoever holds many tokens learns which of
// them a record concerns without looking at each. Create it with [Ring.Names]. It is immutable.
type Names struct {
	group group
}

// Names returns a finder for the names of a shape in records under a key; false if the ring has no key with that number.
func (r Ring) Names(s Shape, number uint8) (*Names, bool) {
	if !r.has(number) {
		return nil, false
	}
	made := &shape{Shape: s, starts: r.starts(s.Names), names: newClaimNames(s.Names)}
	return &Names{newGroup(made, number&1, 0)}, true
}

// AppendBases appends the bases of a token: one for each value of an array, none if the token lacks one of the claims or has one that cannot be compared.
func (n *Names) AppendBases(dst []Fingerprint, c *Claims) []Fingerprint {
	var room [maxShapeNames]*Value
	values := room[:n.group.n]
	elems, at, outcome := n.group.values(c, values)
	if outcome != KindString {
		return dst
	}
	if at < 0 {
		return append(dst, n.group.start.hash(values))
	}
	for i := range elems {
		values[at] = &elems[i]
		dst = append(dst, n.group.start.hash(values))
	}
	return dst
}

// Tweak returns what turns the base of a token into the fingerprint of records of a shape and class, and back, by XOR.
func (s Shape) Tweak(c Class) Fingerprint { return tweak(s, c.group()) }

// Xor adds a tweak to a base, or takes it from a fingerprint.
func (f Fingerprint) Xor(t Fingerprint) Fingerprint { return f.xor(t) }

// Revokes reports whether records of a class can revoke anything: an unblock and a keep cannot.
func (c Class) Revokes() bool { return c != ClassUnblock && c != ClassKeep }
