package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// auditLines returns the audit log as "method outcome count target rule claims compared reason kind field comment".
func (f *fixture) auditLines() (lines []string, ids []string) {
	f.Helper()
	for text := range strings.Lines(f.log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			f.Fatal(err)
		}
		if l["@module"] != "audit" || l["@message"] != "write" {
			continue
		}
		s := ""
		for _, key := range []string{"method", "outcome", "count", "target", "rule", "claims", "compared", "reason", "kind", "field", "comment"} {
			s += fmt.Sprint(l[key], "|")
		}
		lines, ids = append(lines, s), append(ids, fmt.Sprint(l["request"]))
	}
	return lines, ids
}

// Every write has its line, whatever became of it, and no line has a value: close looks for the canary and for tokens.
func TestAudit(t *testing.T) {
	f := start(t)
	token := f.mint(devissuer.Params{Sub: canary, Sid: canary})
	for _, tc := range []struct{ method, body, want string }{
		{"Revoke", `{"token":"` + token + `","reason":"REASON_LOGOUT","comment":"ticket 7"}`, "Revoke|revoked|1|token|deny|iss,jti||logout|||ticket 7|"},
		{"Revoke", `{"token":"` + token + `"}`, "Revoke|covered|1|token|deny|iss,jti||||||"},
		{"Revoke", `{"token":"` + token + `","scope":"SCOPE_SUBJECT"}`, "Revoke|revoked|1|subject|issued_before|iss,sub|iat|||||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","jti":"canary"}},"expiresAt":"2026-01-01T00:00:00Z"}`, "Revoke|already_expired|1|match||iss,jti||||||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","sub":"canary"}},"below":{"claim":"ver","value":"7"}}`, "Revoke|revoked|1|match|below|iss,sub|ver|||||"},
		{"Block", `{"match":{"claims":{"iss":"i","sub":"canary"}},"reason":"REASON_USER_SUSPENDED"}`, "Block|revoked|1|match|block|iss,sub||user-suspended||||"},
		{"Unblock", `{"match":{"claims":{"iss":"i","sub":"canary"}}}`, "Unblock|unblocked|1|match|unblock|iss,sub||||||"},
		{"Revoke", `{"token":"` + token + `x"}`, "Revoke|refused|1|token|||||malformed|token||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","sub":"canary"}},"comment":"` + strings.Repeat("a", 300) + `"}`, "Revoke|refused|1|match||iss,sub|||too_large|comment|" + strings.Repeat("a", 256) + "|"},
		{"Revoke", `{"match":{"claims":{"a":"canary","b":"","c":"","d":"","e":""}}}`, "Revoke|refused|1|match||(too many)|||too_large|match||"},
		{"Block", `{"match":{"claims":{"iss":"","sub":"canary"}}}`, "Block|refused|1|match|block|iss,sub|||malformed|match.iss||"},
		{"Unblock", `canary`, "Unblock|refused|1|match|unblock||||malformed|body||"},
		{"RevokeBatch", `{"items":[{"token":"` + token + `"},{"token":"` + token + `"},{"token":"canary"}]}`, "RevokeBatch|covered|2|token|deny|iss,jti||||||"},
		{"RevokeBatch", `{"items":[]}`, "RevokeBatch|refused|1||||||out_of_range|items||"},
		{"Check", `{"token":"` + token + `"}`, ""},
	} {
		before, _ := f.auditLines()
		r := f.post(tc.method, tc.body)
		after, ids := f.auditLines()
		after, ids = after[len(before):], ids[len(before):]
		switch {
		case tc.want == "" && len(after) == 0:
		case len(after) == 0 || after[0] != tc.want:
			t.Errorf("%s %.80s: %q, want %q", tc.method, tc.body, after, tc.want)
		case r.request != ids[0] || len(ids[0]) != 16:
			t.Errorf("%s: answered with the id %q, logged with %q", tc.method, r.request, ids[0])
		}
	}
	if lines, _ := f.auditLines(); !strings.HasPrefix(lines[len(lines)-2], "RevokeBatch|refused|1|token|||||malformed|token||") {
		t.Errorf("the refused item of a batch: %q", lines[len(lines)-2])
	}
}

// Changes of the cluster have their lines too, with names of nodes and ids of keys; questions have none.
func TestAuditOfCluster(t *testing.T) {
	f := start(t, func(c *setup) { c.paired = true })
	service := revokdv1connect.NewClusterServiceClient(f.http, f.url)
	voters := func(r *revokdv1.ChangeVotersRequest) {
		_, _ = service.ChangeVoters(t.Context(), connect.NewRequest(r)) // the log says what became of it
	}
	keys := func(r *revokdv1.GossipKeysRequest) { _, _ = service.GossipKeys(t.Context(), connect.NewRequest(r)) }
	secret := base64.StdEncoding.EncodeToString(make([]byte, 32))
	voters(&revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Add{Add: "n1"}})
	voters(&revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Remove{Remove: "n1"}})
	voters(&revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_AcceptLoss{AcceptLoss: "n7"}})
	keys(&revokdv1.GossipKeysRequest{})
	keys(&revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Install{Install: secret}})
	if _, err := service.Join(t.Context(), connect.NewRequest(&revokdv1.JoinRequest{Addresses: []string{"127.0.0.1:9"}})); err != nil {
		t.Error(err)
	}
	var got []string
	for text := range strings.Lines(f.log.String()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatal(err)
		}
		if l["@module"] == "audit" && l["@message"] == "cluster" {
			got = append(got, fmt.Sprint(l["method"], " ", l["change"], " ", l["name"], " ", l["outcome"], " ", l["kind"]))
		}
	}
	want := []string{
		"ChangeVoters add n1 done ", "ChangeVoters remove n1 refused voters", "ChangeVoters accept_loss n7 refused voters",
		"GossipKeys install " + cluster.KeyID(make([]byte, 32)) + " refused no_cluster", "Join join 127.0.0.1:9 done ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if strings.Contains(f.log.String(), secret) {
		t.Error("the log has a key")
	}
}

// A write that fewer nodes than asked for have confirmed is in force: the log must not call it refused.
func TestAuditOfUnconfirmed(t *testing.T) {
	err := fmt.Errorf("%w: %w", node.ErrAck, context.DeadlineExceeded)
	if l := (audited{}).failed(err); l.outcome != "unconfirmed" || l.kind != "ack" {
		t.Errorf("%+v", l)
	}
}

// A message of many different items does not flood the log.
func TestAuditIsBounded(t *testing.T) {
	f := start(t)
	a := f.server.audit(t.Context(), "/x/Many", "1")
	for i := range 500 {
		a.add(ofRevoke(&revokdv1.RevokeRequest{Comment: fmt.Sprint(i)}))
	}
	a.write()
	lines, _ := f.auditLines()
	if len(lines) != maxAuditLines || lines[maxAuditLines-1] != "Many|others|437|||||||||" {
		t.Errorf("%d lines, the last is %q", len(lines), lines[len(lines)-1])
	}
}

// The items of a stream are in the log under one id.
func TestAuditOfStream(t *testing.T) {
	f := start(t)
	s := f.stream()
	var items []*revokdv1.RevokeRequest
	for i := range 3 {
		items = append(items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "i", "jti": fmt.Sprint(canary, i)}}}})
	}
	items = append(items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: canary}})
	if err := s.Send(&revokdv1.RevokeStreamRequest{Items: items}); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseRequest(); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := s.Receive(); err != nil {
			break
		}
	}
	_ = s.CloseResponse()
	lines, ids := f.auditLines()
	if len(lines) != 2 || lines[0] != "RevokeStream|revoked|3|match|deny|iss,jti||||||" || lines[1] != "RevokeStream|refused|1|token|||||malformed|token||" || ids[0] != ids[1] || ids[0] != s.ResponseHeader().Get(headerRequestID) {
		t.Errorf("%q, %v", lines, ids)
	}
}
