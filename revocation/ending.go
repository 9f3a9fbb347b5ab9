package revocation

// BlocksEnding counts the blocks in force that end until an instant; now and until are guarded time in Unix milliseconds. A block ends
// at its ExpiresAt and nobody lifts it, so whoever made it should know before. It looks at every record if there is a block
// at all, and at none otherwise: for a timer, not for a request.
func (t *Table) BlocksEnding(now, until int64) (n int) {
	sec, last := unixSeconds(now), unixSeconds(until)
	blocks := false
	for _, s := range t.view.Load().shapes {
		e := s.entry(ClassBlock)
		blocks = blocks || e != nil && e.horizon.Load() >= sec
	}
	if !blocks {
		return 0
	}
	t.Range(Fingerprint{}, now, func(r Record, _ uint64) bool {
		if r.Class == ClassBlock && r.ExpiresAt >= sec && r.ExpiresAt <= last {
			n++
		}
		return true
	})
	return n
}
