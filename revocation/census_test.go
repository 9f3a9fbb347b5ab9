package revocation

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestCensusBlocksEnding(t *testing.T) {
	table := newTable(t, Policy{})
	count := func(now int64) int { return table.Census(now, now+7*day).BlocksEnding }
	write(t, table, Request{Match: match(t, "iss=i,jti=a"), ExpiresAt: t0 + day}, t0)
	if n := count(t0); n != 0 {
		t.Errorf("%d without a block", n)
	}
	for name, expires := range map[string]int64{"sub=a": t0 + day, "sub=b": t0 + 7*day, "sub=c": t0 + 7*day + second, "sub=d": 0, "sub=e": t0 + 2*day} {
		write(t, table, Request{Action: Block, Match: match(t, "iss=i,"+name), ExpiresAt: expires}, t0)
	}
	write(t, table, Request{Action: Unblock, Match: match(t, "iss=i,sub=e")}, t0+second)
	for _, tc := range []struct {
		now  int64
		want int
	}{{t0 + second, 3}, {t0, 2}, {t0 + day, 3}, {t0 + day + second, 2}, {t0 + 8*day, 0}} {
		if n := count(tc.now); n != tc.want {
			t.Errorf("%d at t0 + %d s, want %d", n, (tc.now-t0)/second, tc.want)
		}
	}
}

func TestCensusKinds(t *testing.T) {
	table := newTable(t, Policy{})
	if c := table.Census(t0, t0); len(c.Kinds) != 0 || c.FilterWrong != 0 {
		t.Errorf("empty: %+v", c)
	}
	for i := range 5000 { // more than are looked at at once
		write(t, table, Request{Match: match(t, fmt.Sprintf("iss=i,jti=%d", i)), ExpiresAt: t0 + int64(1+i%2)*day}, t0)
	}
	write(t, table, Request{Match: match(t, "iss=i,sub=a"), IssuedBefore: t0}, t0)
	write(t, table, Request{Action: Block, Match: match(t, "iss=i,sub=a")}, t0)
	describe := func(now int64) (list []string) {
		for _, k := range table.Census(now, now).Kinds {
			list = append(list, fmt.Sprintf("%s %s %s %d", strings.Join(k.Shape.Names, ","), k.Shape.Compared, k.Class, k.Records))
		}
		return list
	}
	for _, tc := range []struct {
		now  int64
		want []string
	}{
		{t0, []string{"iss,jti  deny 5000", "iss,sub  block 1", "iss,sub iat issued_before 1"}},
		{t0 + day + 3600*second, []string{"iss,jti  deny 2500", "iss,sub  block 1"}},
	} {
		if got := describe(tc.now); !slices.Equal(got, tc.want) {
			t.Errorf("at t0 + %d s: %q, want %q", (tc.now-t0)/second, got, tc.want)
		}
	}
	if w := table.Census(t0, t0).FilterWrong; w < 0 || w > 0.02 {
		t.Errorf("the filter cannot exclude %v of absent keys", w)
	}
}
