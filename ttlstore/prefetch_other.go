//go:build !amd64 && !arm64

package ttlstore

// prefetch does nothing here: lookups load what it would have requested.
func prefetch(_, _ uintptr) {}
