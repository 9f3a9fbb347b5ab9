//go:build amd64 || arm64

package ttlstore

// prefetch requests two cache lines by address. It does not wait for them, and does nothing for an address that is not mapped.
func prefetch(a, b uintptr)
