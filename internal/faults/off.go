//go:build !faults

package faults

// Mutant reports whether the process is to run with the bug of that name.
func Mutant(string) bool { return false }

// Value returns what the control file sets name to, empty if it does not.
func Value(string) string { return "" }
