//go:build faults

package voters

// faulty is whether tests can take out rules.
const faulty = true
