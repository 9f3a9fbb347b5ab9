package audit

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"strconv"
	"strings"
)

// Key makes the chain one that only its holders can make: HMAC-SHA-256 in the place of SHA-256. The zero Key is none.
type Key struct{ secret string }

// KeyBytes is the least length of a key.
const KeyBytes = 32

// ParseKey reads a key: at least [KeyBytes] random bytes in hex. Errors match [ErrInvalid].
func ParseKey(text string) (Key, error) {
	b, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil || len(b) < KeyBytes || len(b) > 1024 {
		return Key{}, fmt.Errorf("%w: an audit key is %d random bytes or more in hex", ErrInvalid, KeyBytes)
	}
	return Key{string(b)}, nil
}

// ID names the key without telling it.
func (k Key) ID() string {
	if k.secret == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("revokd audit key\x00" + k.secret))
	return hex.EncodeToString(sum[:8])
}

// String hides the key from whoever prints it.
func (k Key) String() string { return "key " + k.ID() }

// GoString is String.
func (k Key) GoString() string { return k.String() }

// The names of the two seals.
const (
	plainSeal = "sha256"
	keyedSeal = "hmac-sha256"
)

// seal makes the hashes of a chain. It belongs to one goroutine.
type seal struct {
	name, id string
	h        hash.Hash
}

func newSeal(k Key) *seal {
	if k.secret == "" {
		return &seal{name: plainSeal, h: sha256.New()}
	}
	return &seal{name: keyedSeal, id: k.ID(), h: hmac.New(sha256.New, []byte(k.secret))}
}

// hash replaces the hash of a line by that of the next, whose content it is given.
func (s *seal) hash(sum *[32]byte, content []byte) {
	s.h.Reset()
	s.h.Write(sum[:])
	s.h.Write(content)
	s.h.Sum(sum[:0])
}

// chain is where a chain stands: the number and the hash of its last line.
type chain struct {
	n    uint64
	sum  [32]byte
	seal *seal
}

// Head is the state of a chain at one of its lines. Whoever keeps one elsewhere can tell later that the chain still contains it.
type Head struct {
	N    uint64
	Hash [32]byte
}

// String is what [ParseHead] reads: the number and the hash.
func (h Head) String() string {
	return strconv.FormatUint(h.N, 10) + ":" + hex.EncodeToString(h.Hash[:])
}

// ParseHead reads a head. Errors match [ErrInvalid].
func ParseHead(text string) (h Head, err error) {
	number, digest, _ := strings.Cut(text, ":")
	b, hexErr := hex.DecodeString(digest)
	if h.N, err = strconv.ParseUint(number, 10, 64); err != nil || hexErr != nil || len(b) != len(h.Hash) || h.N == 0 {
		return Head{}, fmt.Errorf("%w: a head is the number of a line, a colon and its hash in hex", ErrInvalid)
	}
	copy(h.Hash[:], b)
	return h, nil
}

const (
	lineStart  = `{"n":`
	hashMember = `,"hash":"`
	lineEnd    = `"}`
	tailBytes  = len(hashMember) + 2*sha256.Size + len(lineEnd)
	maxLine    = 1 << 20 // bytes; Append writes far shorter ones, see maxField
)

// line is a line that has the form of one, whatever its hash is worth.
type line struct {
	n       uint64
	content []byte // what is hashed
	hash    [32]byte
	event   []byte // its second member, as it stands
}

// parse reads a line without its end.
func parse(b []byte) (l line, ok bool) {
	if len(b) > maxLine || len(b) < len(lineStart)+tailBytes || !bytes.HasPrefix(b, []byte(lineStart)) || !bytes.HasSuffix(b, []byte(lineEnd)) {
		return l, false
	}
	l.content = b[:len(b)-tailBytes]
	tail := b[len(l.content):]
	if !bytes.HasPrefix(tail, []byte(hashMember)) {
		return l, false
	}
	digest := tail[len(hashMember) : len(tail)-len(lineEnd)]
	if _, err := hex.Decode(l.hash[:], digest); err != nil || !bytes.Equal(digest, bytes.ToLower(digest)) {
		return l, false
	}
	rest := l.content[len(lineStart):]
	i := 0
	for i < len(rest) && i < 20 && rest[i] >= '0' && rest[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(string(rest[:i]), 10, 64)
	if err != nil || rest[0] == '0' {
		return l, false
	}
	rest, ok = bytes.CutPrefix(rest[i:], []byte(`,"event":"`))
	end := bytes.IndexByte(rest, '"')
	if !ok || end < 0 {
		return l, false
	}
	l.n, l.event = n, rest[:end]
	return l, true
}
