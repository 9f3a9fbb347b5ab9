//go:build race

package journal_test

// Enumerations are not about races, and twenty times as slow under the detector: it sees one state in so many.
const sparse = 32
