package revocation_test

import (
	"fmt"
	"time"

	"github.com/revokd/revokd/revocation"
)

// Log out all of a user's devices but one, then ask about two tokens.
func Example() {
	table, err := revocation.NewTable(revocation.TableConfig{Key: revocation.Key{1, 2, 3}})
	if err != nil {
		panic(err)
	}
	defer table.Close()
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC).UnixMilli()

	user, _ := revocation.ParseMatch("iss=https://id.example,sub=alice")
	phone, _ := revocation.ParseMatch("iss=https://id.example,sid=phone")
	plan, err := table.Plan(revocation.Request{Match: user, Keep: []revocation.Match{phone}}, now, now)
	if err != nil {
		panic(err)
	}
	for _, r := range plan.Revocations {
		record := table.Record(r)
		if _, err := table.Define(r.Shape, r.ExpiresAt, now, revocation.Admin); err != nil {
			panic(err)
		}
		if _, err := table.Merge(record, 1, now, true); err != nil {
			panic(err)
		}
	}
	for _, sid := range []string{"phone", "laptop"} {
		claims, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"https://id.example","sub":"alice","sid":%q,"iat":%d,"exp":%d}`, sid, now/1000-60, now/1000+60))
		if err != nil {
			panic(err)
		}
		v := table.Check(claims, now)
		fmt.Println(sid, v.Status)
	}
	// Output:
	// phone active
	// laptop revoked
}

func ExampleParseMatch() {
	m, err := revocation.ParseMatch("tenant_id=acme,level:=7")
	if err != nil {
		panic(err)
	}
	b, _ := m.MarshalJSON()
	fmt.Println(string(b))
	// Output: {"level":7,"tenant_id":"acme"}
}

func ExampleJoin() {
	a := revocation.Record{Class: revocation.ClassIssuedBefore, Value: 1000, ExpiresAt: 60}
	b := revocation.Record{Class: revocation.ClassIssuedBefore, Value: 2000, ExpiresAt: 30}
	j := revocation.Join(a, b)
	fmt.Println(j.Value, j.ExpiresAt, j == revocation.Join(b, a), revocation.Covers(j, a))
	// Output: 2000 60 true true
}
