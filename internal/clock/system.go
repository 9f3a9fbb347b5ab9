//go:build !faults

package clock

// System returns the clocks of the operating system.
func System() Clock { return system{} }
