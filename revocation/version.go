//go:build !nextversion

package revocation

// writtenFlags are those of records that this version makes.
const writtenFlags = 0

// denyClass is the class of a plain deny.
func denyClass(Match) Class { return ClassDeny }

// laterDenies reports whether a class that is not listed in record.go denies every matching token: this version knows none.
func laterDenies(Class) bool { return false }
