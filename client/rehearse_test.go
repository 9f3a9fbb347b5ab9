package client

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/revocation"
)

// A rehearsal says what the write would do, with the options that count for it, and does nothing.
func TestRehearse(t *testing.T) {
	s := newServer(t, "127.0.0.1:0")
	c := open(t, Config{Addrs: []string{s.addr}})
	for _, jti := range []string{"a", "b"} { // the checks that the node has seen
		if v := s.node.Check(claims(t, jti)); v.Status != revocation.Active {
			t.Fatalf("%+v", v)
		}
	}
	before := time.Now().Add(-time.Minute)
	ends := time.Now().Add(2 * time.Hour).Truncate(time.Second)
	one, err := c.RehearseRevoke(t.Context(), Match{"iss": "i", "jti": "a"}, ExpiresAt(ends), Reason("logout"), Comment("a drill"))
	if err != nil || one.Outcome != "revoked" || !one.ExpiresAt.Equal(ends) || one.ShapeLive || one.ShapeRecords != 0 || one.Checks != 2 || one.WouldRefuse != 1 || one.AlreadyRefused != 0 || one.Since.Before(before) {
		t.Errorf("a token: %+v %v", one, err)
	}
	all, err := c.RehearseRevoke(t.Context(), Match{"iss": "i", "sub": "alice"})
	if err != nil || all.Outcome != "revoked" || all.WouldRefuse != 2 || all.UsableAfter.Before(before) || all.ExpiresAt.Before(all.UsableAfter) {
		t.Errorf("a subject: %+v %v", all, err)
	}
	past, err := c.RehearseRevoke(t.Context(), Match{"iss": "i", "sub": "alice"}, IssuedBefore(time.Now().Add(-time.Hour)))
	if err != nil || past.Outcome != "revoked" || past.WouldRefuse != 0 {
		t.Errorf("an earlier cutoff: %+v %v", past, err)
	}
	block, err := c.RehearseBlock(t.Context(), Match{"iss": "i", "sub": "alice"}, ExpiresAt(ends))
	if err != nil || block.Outcome != "revoked" || block.WouldRefuse != 2 || !block.ExpiresAt.Equal(ends) {
		t.Errorf("a block: %+v %v", block, err)
	}
	if n := s.node.Status().Table.Items; n != 0 {
		t.Errorf("%d records were written", n)
	}
	want(t, c, "a", revocation.Active)

	// After the write the same rehearsal has nothing left to do.
	if _, err := c.Revoke(t.Context(), Match{"iss": "i", "jti": "a"}, ExpiresAt(ends)); err != nil {
		t.Fatal(err)
	}
	again, err := c.RehearseRevoke(t.Context(), Match{"iss": "i", "jti": "a"}, ExpiresAt(ends))
	if err != nil || again.Outcome != "covered" || !again.ShapeLive {
		t.Errorf("again: %+v %v", again, err)
	}

	// What the write would be refused for. What the client itself can tell reaches no node.
	for what, call := range map[string]struct {
		fn   func() (Rehearsal, error)
		code connect.Code
	}{
		"a value that is too long": {func() (Rehearsal, error) {
			return c.RehearseRevoke(t.Context(), Match{"iss": "i", "sub": strings.Repeat("x", 600)})
		}, connect.CodeInvalidArgument},
		"a block that ends too late": {func() (Rehearsal, error) {
			return c.RehearseBlock(t.Context(), Match{"iss": "i", "sub": "x"}, ExpiresAt(time.Now().Add(1000*24*time.Hour)))
		}, connect.CodeInvalidArgument},
		"a value of no kind":    {func() (Rehearsal, error) { return c.RehearseRevoke(t.Context(), Match{"sub": 1.5}) }, connect.CodeUnknown},
		"the same, for a block": {func() (Rehearsal, error) { return c.RehearseBlock(t.Context(), Match{"sub": 1.5}) }, connect.CodeUnknown},
		"a reason that is not in list": {func() (Rehearsal, error) {
			return c.RehearseRevoke(t.Context(), Match{"iss": "i", "jti": "x"}, Reason("whim"))
		}, connect.CodeUnknown},
		"the same, for one": {func() (Rehearsal, error) {
			return c.RehearseBlock(t.Context(), Match{"iss": "i", "jti": "x"}, Reason("whim"))
		}, connect.CodeUnknown},
	} {
		if r, err := call.fn(); err == nil || connect.CodeOf(err) != call.code || r != (Rehearsal{}) {
			t.Errorf("%s: %+v %v", what, r, err)
		}
	}
}
