//go:build !faults

package replication

// faulty is whether tests can leave out rules. Here they are constants, and nothing of a known bug is in the program.
const faulty = false
