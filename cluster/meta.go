package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// State is how far a node has come. Numbers go over the wire: append.
type State uint8

// The states of a node. The zero State is invalid.
const (
	Starting  State = iota + 1 // nothing has been read yet
	Replaying                  // reads its journal
	Syncing                    // compares itself with a peer
	Ready                      // answers
	Leaving                    // is about to go
)

var stateNames = [...]string{Starting: "starting", Replaying: "replaying", Syncing: "syncing", Ready: "ready", Leaving: "leaving"}

// String is the state in one word, or its number if a later version has named it.
func (s State) String() string {
	if s > 0 && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Meta is what a node says about itself. It is a hint: nothing in it is proven, see the package comment.
type Meta struct {
	// State is required.
	State State
	// APIAddr is where its API listens, host:port; at most [MaxAPIAddr] bytes.
	APIAddr string
	// Version is that of its program; at most [MaxVersion] bytes.
	Version string
	// Epoch is the number of its run: another one after each start.
	Epoch uint64
	// Incarnation is that of its data directory.
	Incarnation [16]byte
	// Cluster is the cluster's id. Nodes that know different ids do not admit one another; zero means that the node does not know it yet.
	Cluster [16]byte
	// Voters is the number of the voter configuration that it follows.
	Voters uint64
	// Certificate is the SHA-256 of the certificate that its API shows.
	Certificate [32]byte
}

// Bounds on the text in a [Meta].
const (
	MaxAPIAddr = 255
	MaxVersion = 64
)

// ErrMeta is matched by errors about metadata that cannot be encoded or decoded.
var ErrMeta = errors.New("cluster: invalid metadata")

// metaFormat changes when a node that knows only the old format must not admit the new one. Fields are appended without changing it.
const metaFormat = 1

// metaFixed: format 1, state 1, epoch 8, incarnation 16, cluster 16, voters 8, certificate 32.
const metaFixed = 1 + 1 + 8 + 16 + 16 + 8 + 32

func (m *Meta) encode() ([]byte, error) {
	switch {
	case m.State == 0:
		return nil, fmt.Errorf("%w: no state", ErrMeta)
	case len(m.APIAddr) > MaxAPIAddr || !printable(m.APIAddr):
		return nil, fmt.Errorf("%w: API address: longer than %d bytes, or not printable ASCII", ErrMeta, MaxAPIAddr)
	case len(m.Version) > MaxVersion || !printable(m.Version):
		return nil, fmt.Errorf("%w: version: longer than %d bytes, or not printable ASCII", ErrMeta, MaxVersion)
	}
	b := make([]byte, 0, metaFixed+2+len(m.APIAddr)+len(m.Version))
	b = append(b, metaFormat, byte(m.State))
	b = binary.BigEndian.AppendUint64(b, m.Epoch)
	b = append(b, m.Incarnation[:]...)
	b = append(b, m.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, m.Voters)
	b = append(b, m.Certificate[:]...)
	b = append(append(b, byte(len(m.APIAddr))), m.APIAddr...)
	b = append(append(b, byte(len(m.Version))), m.Version...)
	return b, nil
}

// decodeMeta ignores what follows the fields it knows: later versions append.
func decodeMeta(b []byte) (Meta, error) {
	var m Meta
	if len(b) < metaFixed {
		return Meta{}, fmt.Errorf("%w: %d bytes", ErrMeta, len(b))
	}
	if b[0] != metaFormat || b[1] == 0 {
		return Meta{}, fmt.Errorf("%w: format %d, state %d", ErrMeta, b[0], b[1])
	}
	m.State = State(b[1])
	m.Epoch = binary.BigEndian.Uint64(b[2:])
	copy(m.Incarnation[:], b[10:])
	copy(m.Cluster[:], b[26:])
	m.Voters = binary.BigEndian.Uint64(b[42:])
	copy(m.Certificate[:], b[50:])
	b = b[metaFixed:]
	for _, field := range []struct {
		into *string
		max  int
	}{{&m.APIAddr, MaxAPIAddr}, {&m.Version, MaxVersion}} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return Meta{}, fmt.Errorf("%w: cut short", ErrMeta)
		}
		*field.into = string(b[1 : 1+int(b[0])])
		b = b[1+int(b[0]):]
		if len(*field.into) > field.max || !printable(*field.into) {
			return Meta{}, fmt.Errorf("%w: text is too long, or not printable ASCII", ErrMeta)
		}
	}
	return m, nil
}

// printable says whether s may be shown on a terminal and written into a log as it is.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
