//go:build nextversion

package revocation

// The synthetic later version, for tests of upgrades, has one flag more, which it sets on everything it makes, and one class more: it denies every matching token, joins as classes
// do that nobody knows, and is made of a plain deny whose match has the claim next_version. Earlier versions call such tokens Unknown.

const writtenFlags = 1 << 15

const classNext Class = 7

func denyClass(m Match) Class {
	if _, ok := m.Get("next_version"); ok {
		return classNext
	}
	return ClassDeny
}

func laterDenies(c Class) bool { return c == classNext }
