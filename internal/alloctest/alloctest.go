// Package alloctest is the oracle of fuzz targets and tests for what a parser may allocate: an attacker who sends little must not make a node take much.
//
// The counter that it reads is the whole process's, so what others allocate meanwhile counts too; a limit leaves room for that, or the measurement is repeated. Functions may be used
// by one goroutine at a time. To read the counter stops all threads: .ci/fuzz has one for each worker.
package alloctest

import (
	"runtime"
	"testing"
)

// tries is how often what seems too much is measured.
const tries = 3

// Bytes returns how many bytes fn allocates.
func Bytes(fn func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// AtMost fails the test if fn allocates more than most bytes. It is called again, at most twice, when it seems to, and must do the same each time.
func AtMost(t testing.TB, most int, fn func()) {
	t.Helper()
	least := ^uint64(0)
	for range tries {
		if least = min(least, Bytes(fn)); least <= uint64(most) {
			return
		}
	}
	t.Errorf("%d bytes are allocated, at most %d are allowed", least, most)
}
