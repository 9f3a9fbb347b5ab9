package cluster

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/revokd/revokd/internal/atomicfile"
)

// MaxKeys is how many keys a ring holds.
const MaxKeys = 8

// What a change of the ring is refused for.
var (
	ErrNoKey      = errors.New("cluster: no gossip key")
	ErrKeySize    = errors.New("cluster: a gossip key has 16, 24 or 32 bytes")
	ErrUnknownKey = errors.New("cluster: no such gossip key on this node")
	ErrPrimaryKey = errors.New("cluster: the gossip key in use cannot be removed; use another one first")
	ErrKeyLimit   = fmt.Errorf("cluster: more than %d gossip keys; remove one first", MaxKeys)
	ErrKeyFile    = errors.New("cluster: invalid file of gossip keys")
)

// Key names a gossip key without giving it away.
type Key struct {
	ID      string // of a hash of the key
	Primary bool   // seals what this node sends
}

// KeyID is the id of a gossip key.
func KeyID(key []byte) string {
	h := sha256.New()
	h.Write([]byte("revokd gossip key id\x00"))
	h.Write(key)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// secret is one key. It has no String: it must not be printed by accident.
type secret struct {
	id     string
	key    []byte
	aead   cipher.AEAD
	sealed atomic.Uint64 // messages; random nonces allow 2^32
}

func newSecret(key []byte) (*secret, error) {
	if n := len(key); n != 16 && n != 24 && n != 32 {
		return nil, fmt.Errorf("%w, not %d", ErrKeySize, n)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	return &secret{id: KeyID(key), key: bytes.Clone(key), aead: aead}, nil
}

// ring holds the keys. memberlist's Keyring is not used: it edits, while removing, the slice it has handed to the goroutines that decrypt.
type ring struct {
	path string // of the file, or empty
	mu   sync.Mutex
	keys atomic.Pointer[[]*secret] // the primary first; replaced under mu, never edited
}

// openRing reads the file of keys, or takes the configured ones if there is none. Once keys have been changed by command the
// file exists and wins: an old configuration must not bring back a key that was removed.
func openRing(path string, configured [][]byte) (*ring, error) {
	r := &ring{path: path}
	keys := configured
	if path != "" {
		stored, err := readKeys(path)
		if err != nil {
			return nil, err
		}
		if stored != nil {
			keys = stored
		}
	}
	var secrets []*secret
	for _, key := range keys {
		s, err := newSecret(key)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(secrets, func(o *secret) bool { return o.id == s.id }) {
			secrets = append(secrets, s)
		}
	}
	if len(secrets) > MaxKeys {
		return nil, ErrKeyLimit
	}
	r.keys.Store(&secrets)
	return r, nil
}

// readKeys returns nil if there is no file: one key a line, in base64, the primary first.
func readKeys(path string) ([][]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s can be read by others, mode %04o; make it 0600 and change the keys", ErrKeyFile, path, info.Mode().Perm())
	}
	content, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for line := range bytes.Lines(content) {
		key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line)))
		if err != nil {
			return nil, fmt.Errorf("%w: %s, line %d is not base64", ErrKeyFile, path, len(keys)+1)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: %s is empty", ErrKeyFile, path)
	}
	return keys, nil
}

func (r *ring) all() []*secret { return *r.keys.Load() }

// set writes the file, then lets the keys take effect: a key that is in use is never one that a restart forgets.
func (r *ring) set(keys []*secret) error {
	if r.path != "" {
		var b bytes.Buffer
		for _, s := range keys {
			b.WriteString(base64.StdEncoding.EncodeToString(s.key))
			b.WriteByte('\n')
		}
		if err := atomicfile.Write(r.path, b.Bytes()); err != nil {
			return fmt.Errorf("cluster: write the gossip keys: %w", err)
		}
	}
	r.keys.Store(&keys)
	return nil
}

func (r *ring) install(key []byte) (string, error) {
	s, err := newSecret(key)
	if err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := r.all()
	switch {
	case len(keys) == 0:
		return "", fmt.Errorf("%w: this node gossips in the clear; restart all nodes with a key", ErrNoKey)
	case r.index(s.id) >= 0:
		return s.id, nil
	case len(keys) == MaxKeys:
		return "", ErrKeyLimit
	}
	return s.id, r.set(append(slices.Clone(keys), s))
}

func (r *ring) use(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(id)
	if i < 0 {
		return fmt.Errorf("%w: %q", ErrUnknownKey, id)
	}
	keys := slices.Clone(r.all())
	primary := keys[i]
	return r.set(slices.Insert(slices.Delete(keys, i, i+1), 0, primary))
}

func (r *ring) remove(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(id)
	switch {
	case i < 0:
		return fmt.Errorf("%w: %q", ErrUnknownKey, id)
	case i == 0:
		return ErrPrimaryKey
	}
	return r.set(slices.Delete(slices.Clone(r.all()), i, i+1))
}

func (r *ring) index(id string) int {
	return slices.IndexFunc(r.all(), func(s *secret) bool { return s.id == id })
}

func (r *ring) list() []Key {
	var list []Key
	for i, s := range r.all() {
		list = append(list, Key{ID: s.id, Primary: i == 0})
	}
	return list
}

// sealedVersion is memberlist's encryption version 1: version, nonce, AES-GCM. Version 0, with padding, is of the past.
const (
	sealedVersion  = 1
	sealedOverhead = 1 + 12 + 16
)

// seal appends the sealed plain to dst.
func (r *ring) seal(dst, plain, data []byte) []byte {
	primary := r.all()[0]
	primary.sealed.Add(1)
	return primary.aead.Seal(append(dst, sealedVersion), nil, plain, data)
}

// open returns a new slice; nil if no key of the ring has sealed b.
func (r *ring) open(b, data []byte) []byte {
	if len(b) <= sealedOverhead || b[0] != sealedVersion {
		return nil
	}
	for _, s := range r.all() {
		if plain, err := s.aead.Open(nil, nil, b[1:], data); err == nil {
			return plain
		}
	}
	return nil
}
