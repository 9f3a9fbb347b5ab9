//go:build !race

package ttlstore

const raceEnabled = false
