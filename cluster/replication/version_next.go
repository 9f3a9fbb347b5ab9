//go:build nextversion

package replication

import "github.com/revokd/revokd/cluster/replication/internal/next"

// protocolVersion is that of a synthetic later version, for tests of upgrades.
const protocolVersion = 2

// outgoing writes the message that begins at start as that version does.
func outgoing(b []byte, start int) []byte { return append(b[:start], next.Message(b[start:])...) }
