//go:build race

package ttlstore

// The race detector does not see mapped memory.
const raceEnabled = true
