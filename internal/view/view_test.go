package view

import (
	"errors"
	"testing"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/revocation"
)

// A node that makes cutoffs in the far future, or records that never end, is not followed; what others have already taken from it is.
func TestMergeBounds(t *testing.T) {
	table := filled(t)
	match, err := revocation.ParseMatch("iss=a,sub=v")
	if err != nil {
		t.Fatal(err)
	}
	record := func(value int64, expires int64) *replication.Record {
		r := Encode(revocation.Key{1}.Record(revocation.Revocation{
			Match: match, Shape: revocation.Shape{Names: []string{"iss", "sub"}, Compared: revocation.IAT}, Class: revocation.ClassIssuedBefore, Value: value, ExpiresAt: uint32(expires / 1000),
		}))
		return &r
	}
	const day = 24 * 3600 * 1000
	ceiling := revocation.MaxCeiling.Milliseconds()
	ahead := revocation.MaxAheadAbsolute.Milliseconds()
	for _, test := range []struct {
		name            string
		value, expires  int64
		direct, trusted bool
		refused         bool
	}{
		{"now", now, now + day, true, true, false},
		{"as far ahead as clocks may be", now + ahead, now + day, true, true, false},
		{"further", now + ahead + 1, now + day, true, true, true},
		{"a year ahead", now + 365*day, now + day, true, true, true},
		{"beyond the ceiling", now, now + ceiling + 3*ahead, true, true, true},
		{"taken by others before", now + ahead + 1, now + day, false, true, false},
		{"with a clock that cannot judge", now + ahead + 1, now + day, true, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &Store{Table: table, Trusted: func() bool { return test.trusted }}
			_, err := s.Merge(record(test.value, test.expires), 1, replication.Now{Wall: now, Guarded: now}, test.direct)
			var field *revocation.FieldError
			if refused := errors.As(err, &field); refused != test.refused || err != nil && !refused {
				t.Errorf("refused %v: %v", refused, err)
			}
		})
	}
}

// What only a join covers lies on the disk in parts, of which some may expire first: it, and what gives the join its name, are for the disk too.
func TestMergeLoose(t *testing.T) {
	s := &Store{Table: filled(t)}
	match, err := revocation.ParseMatch("iss=a,sub=v")
	if err != nil {
		t.Fatal(err)
	}
	const hour = 3600 * 1000
	merge := func(value, expires int64, d replication.Dot) replication.Merged {
		r := Encode(revocation.Key{1}.Record(revocation.Revocation{
			Match: match, Shape: revocation.Shape{Names: []string{"iss", "sub"}, Compared: revocation.IAT}, Class: revocation.ClassIssuedBefore, Value: value, ExpiresAt: uint32(expires / 1000),
		}))
		m, err := s.Merge(&r, d, replication.Now{Wall: now, Guarded: now}, true)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for i, test := range []struct {
		value, expires int64
		dot            replication.Dot
		want           replication.Merged
	}{
		{now, now + 9*hour, replication.MakeDot(1, 1), replication.Merged{Changed: true}},
		{now + 9, now + hour, replication.MakeDot(1, 2), replication.Merged{Changed: true, Unnamed: true}},
		{now + 5, now + 8*hour, replication.MakeDot(1, 3), replication.Merged{Loose: true}},
		{now + 9, now + 9*hour, replication.MakeDot(2, 1), replication.Merged{Loose: true}}, // the join gets its name
		{now + 5, now + 8*hour, replication.MakeDot(1, 4), replication.Merged{}},
	} {
		if got := merge(test.value, test.expires, test.dot); got != test.want {
			t.Errorf("%d: %+v, want %+v", i, got, test.want)
		}
	}
}
