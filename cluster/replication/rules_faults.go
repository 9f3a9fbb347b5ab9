//go:build faults

package replication

// faulty is whether tests can leave out rules: see [Config.Mutant].
const faulty = true
