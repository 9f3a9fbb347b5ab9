//go:build nextversion

package main

// version of the synthetic later version, for tests of upgrades: package revocation says what it does in another way.
func init() { version = "next" }
