package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/revokd/revokd/revocation"
)

// issuer is that of a node started with --dev, so that agents and tables hold the same records.
const issuer = "https://dev.revokd.test"

// absentFrom is the number of the first key that nobody holds.
const absentFrom = 1 << 40

// key is the i-th token id: a UUID in text, 36 bytes, for everybody.
func key(i int) string {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], mix(uint64(i)))
	binary.LittleEndian.PutUint64(b[8:], mix(uint64(i)+0x9e3779b97f4a7c15))
	var t [36]byte
	hex.Encode(t[:8], b[:4])
	hex.Encode(t[9:13], b[4:6])
	hex.Encode(t[14:18], b[6:8])
	hex.Encode(t[19:23], b[8:10])
	hex.Encode(t[24:], b[10:])
	t[8], t[13], t[18], t[23] = '-', '-', '-', '-'
	return string(t[:])
}

// mix is the finalizer of SplitMix64: a permutation.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// claimsOf are those of a token, as a service has them after it has verified it.
func claimsOf(i int, now time.Time) *revocation.Claims {
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":%q,"sub":"user-%s","jti":%q,"sid":"session-%s","client_id":"web","tenant_id":"acme","iat":%d,"exp":%d}`,
		issuer, key(i), key(i), key(i), now.Unix()-60, now.Unix()+3*3600))
	if err != nil {
		panic(err) // the text is this program's
	}
	c.SetHeaderKID("k1")
	return c
}

// records makes the record of a plain deny of the i-th value of a claim.
type records struct {
	claim string
	shape revocation.Shape
	one   revocation.Record
	names *revocation.Names
	token revocation.Claims
	bases []revocation.Fingerprint
}

func newRecords(k revocation.Key, claim string, expires time.Time) (*records, error) {
	s := &records{claim: claim, shape: revocation.Shape{Names: []string{"iss", claim}}}
	if claim < "iss" {
		s.shape.Names = []string{claim, "iss"}
	}
	s.names, _ = revocation.NewRing(k).Names(s.shape, 0) // the ring has the key
	s.one = revocation.Record{Shape: s.shape.ID(), Class: revocation.ClassDeny, Value: time.Now().UnixMilli(), ExpiresAt: uint32(expires.Unix())}
	return s, s.token.Set("iss", revocation.String(issuer))
}

// record returns that of a value; hashing it is what a node does when it is told.
func (s *records) record(value string) (revocation.Record, error) {
	if err := s.token.Set(s.claim, revocation.String(value)); err != nil {
		return revocation.Record{}, err
	}
	s.bases = s.names.AppendBases(s.bases[:0], &s.token)
	if len(s.bases) != 1 {
		return revocation.Record{}, fmt.Errorf("%d fingerprints", len(s.bases))
	}
	r := s.one
	r.Fingerprint = s.bases[0].Xor(s.shape.Tweak(revocation.ClassDeny))
	return r, nil
}
