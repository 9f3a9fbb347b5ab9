//go:build !race

package journal_test

const sparse = 1
