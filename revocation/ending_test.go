package revocation

import "testing"

func TestBlocksEnding(t *testing.T) {
	table := newTable(t, Policy{})
	count := func(now int64) int { return table.BlocksEnding(now, now+7*day) }
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
