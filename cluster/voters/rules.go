//go:build !faults

package voters

// faulty is whether tests can take out rules. Here they are constants, and nothing of a known bug is in the program.
const faulty = false
