package app

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/revokd/revokd/internal/atomicfile"
	"github.com/revokd/revokd/internal/devissuer"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// Names in a node's directory.
const (
	identityFile = "identity.json"
	journalDir   = "journal"
	ringFile     = "fingerprint.ring" // the fingerprint keys, once there have been others than the first
)

const (
	identityVersion = 1
	maxIdentity     = 1 << 20
)

// identity is what a dev node makes for itself once: without it neither its journal nor its tokens are of use.
type identity struct {
	key    revocation.Key
	issuer *devissuer.Issuer
}

// storedIdentity is the file.
type storedIdentity struct {
	Version        int             `json:"version"`
	FingerprintKey string          `json:"fingerprint_key"` // hex
	Issuer         json.RawMessage `json:"issuer"`
}

// devIdentity loads the identity of a dev node, or makes it in a directory that has none.
//
// A node that joins others gets theirs from join, nil if it joins nobody; one that has an identity already keeps it, if it is the same.
func devIdentity(dir string, join func() (*identity, error)) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	id, err := loadIdentity(path)
	if !errors.Is(err, os.ErrNotExist) {
		return id, err
	}
	// A new key would leave the journal unreadable, and make a node that looks right and knows nothing.
	if entries, err := os.ReadDir(filepath.Join(dir, journalDir)); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is missing but there is a journal: put it back, or remove %s to start anew without the revocations", path, dir)
	}
	if join == nil {
		join = makeIdentity
	}
	id, err = join()
	if err != nil {
		return nil, err
	}
	if err := id.store(path); err != nil && !errors.Is(err, os.ErrExist) { // another process may have been faster
		return nil, err
	}
	return loadIdentity(path)
}

func loadIdentity(path string) (*identity, error) {
	b, err := readLimited(path, maxIdentity)
	if err != nil {
		return nil, err
	}
	var stored storedIdentity
	if err := strictJSON(b, &stored); err != nil {
		return nil, fmt.Errorf("%s: malformed: %w", path, err)
	}
	if stored.Version != identityVersion {
		return nil, fmt.Errorf("%s: version %d: this program reads version %d", path, stored.Version, identityVersion)
	}
	id := &identity{}
	if id.key, err = parseKey(stored.FingerprintKey); err != nil {
		return nil, fmt.Errorf("%s: fingerprint_key: %w", path, err)
	}
	if id.issuer, err = devissuer.Unmarshal(stored.Issuer); err != nil {
		return nil, fmt.Errorf("%s: issuer: %w", path, err)
	}
	return id, nil
}

func makeIdentity() (*identity, error) {
	id := &identity{}
	rand.Read(id.key[:])
	var err error
	id.issuer, err = devissuer.New()
	return id, err
}

// joinedIdentity is what a dev node was told by the one it joins.
func joinedIdentity(told *revokdv1.IdentityResponse) (*identity, error) {
	id := &identity{}
	if copy(id.key[:], told.GetFingerprintKey()) != len(id.key) || id.key == (revocation.Key{}) {
		return nil, errors.New("the node to join has told no fingerprint key")
	}
	var err error
	if id.issuer, err = devissuer.Unmarshal(told.GetDevIssuer()); err != nil {
		return nil, errors.New("the node to join has told no issuer")
	}
	return id, nil
}

func (id *identity) store(path string) error {
	b, err := json.MarshalIndent(storedIdentity{identityVersion, hex.EncodeToString(id.key[:]), id.issuer.Marshal()}, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Create(path, append(b, '\n'))
}

// readKey reads a fingerprint key file: 32 hex digits.
func readKey(path string) (revocation.Key, error) {
	b, err := readLimited(path, 4096)
	if err != nil {
		return revocation.Key{}, err
	}
	key, err := parseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return key, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func parseKey(text string) (key revocation.Key, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(key) {
		return key, errors.New("malformed: want 16 random bytes as 32 hex digits")
	}
	copy(key[:], b)
	if key == (revocation.Key{}) {
		return key, errors.New("out of range: all zero is no key")
	}
	return key, nil
}

// readLimited reads a small file.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: too large: at most %d bytes", path, limit)
	}
	return b, err
}

// strictJSON reads one JSON value and refuses unknown keys and what follows it.
func strictJSON(b []byte, to any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}
