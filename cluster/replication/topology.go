package replication

// MeshSize is the largest cluster in which every node holds a session with every other.
const MeshSize = 17

// Near reports whether two of n nodes hold a session, by their places in the order of names: all in a small cluster; in a larger one those at distances of powers of two on the
// ring, either way round, so that a record comes to everybody in a logarithmic number of steps.
func Near(a, b, n int) bool {
	distance := (a - b + n) % n
	back := n - distance
	return n <= MeshSize || distance&(distance-1) == 0 || back&(back-1) == 0
}
