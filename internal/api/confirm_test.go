package api

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/pki"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// confirmationIn returns what an error asks to be confirmed; nil if nothing.
func confirmationIn(err error) *revokdv1.Confirmation {
	if e, ok := errors.AsType[*connect.Error](err); ok {
		for _, d := range e.Details() {
			if v, err := d.Value(); err == nil {
				if c, ok := v.(*revokdv1.Confirmation); ok {
					return c
				}
			}
		}
	}
	return nil
}

func wideRequest(claims map[string]string, options *revokdv1.WriteOptions) *revokdv1.RevokeRequest {
	return &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: claims}}, Options: options}
}

// What denies everything, or everything of an issuer, needs a second call with the code of the first: of the same caller, with the same content, in time, once.
func TestConfirm(t *testing.T) {
	now := noon
	s := startTLS(t, func(c *setup) { c.api.Now = func() time.Time { return now } })
	admin, other := s.source(t, pki.RoleAdmin, "root").ClientConfig("n1"), s.source(t, pki.RoleAdmin, "toor").ClientConfig("n1")
	s.as(admin)
	iss := map[string]string{"iss": "https://dev.revokd.test"}
	revoke := func(claims map[string]string, code, key string) (*revokdv1.RevokeResponse, *revokdv1.Confirmation) {
		t.Helper()
		r, err := s.client().Revoke(t.Context(), connect.NewRequest(wideRequest(claims, &revokdv1.WriteOptions{Confirmation: code, IdempotencyKey: key})))
		if err == nil {
			return r.Msg, nil
		}
		c := confirmationIn(err)
		if c == nil || connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Fatalf("%v", err)
		}
		return nil, c
	}
	live := func() int { return s.node.Status().Table.Items }
	for name, claims := range map[string]map[string]string{"{}": nil, "{iss}": iss} {
		before := live()
		_, c := revoke(claims, "", "")
		if c.GetCode() == "" || !c.GetExpiresAt().AsTime().Equal(now.Add(confirmTime)) || c.GetLiveRecords() != int64(before) || len(c.GetIssuers()) != 1 ||
			!strings.HasPrefix(c.GetEffect(), map[string]string{"{}": "every token of every issuer", "{iss}": "every token of the issuer"}[name]) {
			t.Errorf("%s: %v", name, c)
		}
		if live() != before {
			t.Errorf("%s: the first call has done something", name)
		}
		// Nothing but the same does it.
		if _, again := revoke(claims, c.GetCode()+"x", ""); again == nil {
			t.Error("another code")
		}
		swapped := iss
		if claims != nil {
			swapped = nil
		}
		if _, again := revoke(swapped, c.GetCode(), ""); again == nil {
			t.Error("another match")
		}
		s.as(other)
		if _, again := revoke(claims, c.GetCode(), ""); again == nil {
			t.Error("another caller")
		}
		s.as(admin)
		if _, err := s.client().Block(t.Context(), connect.NewRequest(&revokdv1.BlockRequest{
			Match: &revokdv1.Match{Claims: claims}, Options: &revokdv1.WriteOptions{Confirmation: c.GetCode()},
		})); confirmationIn(err) == nil || !strings.Contains(confirmationIn(err).GetEffect(), "old or new, until it is unblocked") {
			t.Errorf("another method: %v", err)
		}
		if r, again := revoke(claims, c.GetCode(), ""); again != nil || r.GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED || live() == before {
			t.Errorf("%s: the second call: %v", name, r)
		}
		if _, again := revoke(claims, c.GetCode(), ""); again == nil {
			t.Error("a code was good twice")
		}
		// A retry is the same call: its key says so.
		_, c = revoke(claims, "", "k"+name)
		for range 2 {
			if _, again := revoke(claims, c.GetCode(), "k"+name); again != nil {
				t.Error("a retry with the same key")
			}
		}
		if _, again := revoke(claims, c.GetCode(), "k2"+name); again == nil {
			t.Error("another call with the same code")
		}
		// In time, to the millisecond.
		_, c = revoke(claims, "", "")
		now = now.Add(confirmTime)
		if _, again := revoke(claims, c.GetCode(), ""); again == nil {
			t.Error("too late")
		}
	}
	// Many at once cannot be confirmed; what names more than an issuer need not be, nor what lifts.
	batch, err := s.client().RevokeBatch(t.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: []*revokdv1.RevokeRequest{wideRequest(iss, nil), wideRequest(nil, nil)}}))
	if err != nil || batch.Msg.GetResults()[0].GetError().GetDetail().GetKind() != "confirm" || batch.Msg.GetResults()[1].GetError().GetDetail().GetKind() != "confirm" {
		t.Errorf("a batch: %v, %v", batch, err)
	}
	for method, body := range map[string]string{
		"Revoke": `{"match":{"claims":{"iss":"https://dev.revokd.test","client_id":"canary"}}}`, "Unblock": `{"match":{}}`,
	} {
		if r := s.post(method, body); r.code != "ok" {
			t.Errorf("%s: %+v", method, r)
		}
	}
	// The audit has the first call as a refusal, and nobody's log has a code.
	_, c := revoke(nil, "", "")
	if !strings.Contains(s.auditText(), `"error":"confirm"`) || strings.Contains(s.log.String()+s.auditText(), c.GetCode()) {
		t.Error("the audit has no refusal, or a log the code")
	}
	if r := s.post("Revoke", `{"match":{}}`); r.code != "failed_precondition" || r.detail.GetKind() != "confirm" {
		t.Errorf("%+v", r)
	}
}

// Codes are bounded: of a caller, whose oldest makes place, and of all, who are refused then.
func TestConfirmationsAreBounded(t *testing.T) {
	var c confirmations
	make1 := func(caller string) *confirmation { return &confirmation{caller: caller, ends: noon.Add(confirmTime)} }
	var first *confirmation
	for i := range maxConfirms {
		r := make1(fmt.Sprint(i / maxOfCaller))
		if !c.add(r, noon) {
			t.Fatalf("the %dth", i+1)
		}
		if i == 0 {
			first = r
		}
	}
	if c.add(make1("new"), noon) {
		t.Error("one too many")
	}
	if !c.add(make1("0"), noon) || len(c.waiting) != maxConfirms || c.use(make1("0"), first.code, "", noon) {
		t.Errorf("a caller's own oldest did not make place: %d wait", len(c.waiting))
	}
	if !c.add(make1("new"), noon.Add(confirmTime)) || len(c.waiting) != 1 {
		t.Errorf("what is over did not go: %d wait", len(c.waiting))
	}
	if c.use(make1("new"), "", "", noon) {
		t.Error("no code is one")
	}
}
