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
	"github.com/revokd/revokd/revocation"
)

// matchItems returns items whose matches have these claims, and a jti each.
func matchItems(claims map[string]string, names ...string) (items []*revokdv1.RevokeRequest) {
	for _, jti := range names {
		m := &revokdv1.Match{Claims: map[string]string{"jti": jti}}
		for k, v := range claims {
			m.Claims[k] = v
		}
		items = append(items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: m}})
	}
	return items
}

// Those who write for a tenant, and for an issuer, may have so many live revocations, with certificates and with tokens, by every method. Beyond it a
// refusal says which limit it was, is counted and in the audit; what is there already, checks and admins go on.
func TestQuotas(t *testing.T) {
	const grant = "grants: [{iss: https://dev.revokd.test, tenant_id: canary-acme}], records: 4"
	s := startTLS(t, func(c *setup) {
		c.api.Now = func() time.Time { return noon }
		c.node.IssuerRecords = 6
		c.api.Credentials = parse(t, "tokens: [{name: till, sha256: $WRITER, role: writer, expires: 2026-12-01T00:00:00Z, "+grant+"}]\ncertificates: [{name: shop, "+grant+"}]")
	})
	const iss = `"iss":"https://dev.revokd.test"`
	shop, free, root := s.source(t, pki.RoleWriter, "shop").ClientConfig("n1"), s.source(t, pki.RoleWriter, "free").ClientConfig("n1"), s.source(t, pki.RoleAdmin, "root").ClientConfig("n1")
	bare := s.source(t, pki.RoleReader, "bare").ClientConfig("n1")
	till := func() { s.as(bare); s.showing(tokenOf("writer")) }
	acme := func(jti string) string {
		return `{"match":{"claims":{` + iss + `,"tenant_id":"canary-acme","jti":"canary-` + jti + `"}}}`
	}
	other := func(jti string) string { return `{"match":{"claims":{` + iss + `,"jti":"canary-` + jti + `"}}}` }
	ok := func(what string, r reply) {
		t.Helper()
		if r.code != "ok" {
			t.Errorf("%s: %+v", what, r)
		}
	}
	refused := func(what string, r reply, field, limit string) {
		t.Helper()
		if d := r.detail; r.code != "resource_exhausted" || d.GetKind() != "quota" || d.GetField() != field || d.GetLimit() != limit || r.retry != "30" {
			t.Errorf("%s: %+v", what, r)
		}
	}
	const ofGrant, ofIssuer = "at most 4 live revocations for one {iss,tenant_id}: records of the credential", "at most 6 live revocations for one {iss}: --issuer-records"
	s.as(shop)
	ok("the first", s.post("Revoke", acme("a")))
	ok("the second", s.post("Block", `{"match":{"claims":{`+iss+`,"tenant_id":"canary-acme","sub":"canary-b"}}}`))
	ok("the same user", s.post("Unblock", `{"match":{"claims":{`+iss+`,"tenant_id":"canary-acme","sub":"canary-b"}}}`))
	till()
	ok("the third, with a token", s.post("Revoke", acme("c")))
	ok("the fourth", s.post("Revoke", acme("d")))
	refused("the fifth", s.post("Revoke", acme("e")), "match", ofGrant)
	refused("a block", s.post("Block", `{"match":{"claims":{`+iss+`,"tenant_id":"canary-acme","sub":"canary-f"}}}`), "match", ofGrant)
	ok("what is there", s.post("Revoke", acme("a")))
	s.as(shop)
	refused("the fifth, with a certificate", s.post("Revoke", acme("e")), "match", ofGrant)
	if r := s.connectError(errorOf(s.client(connect.WithGRPC()).Revoke(t.Context(), connect.NewRequest(matchItems(map[string]string{"iss": "https://dev.revokd.test", "tenant_id": "canary-acme"}, "canary-e")[0])))); r.detail.GetKind() != "quota" || r.code != "resource_exhausted" {
		t.Errorf("gRPC: %+v", r)
	}
	if _, err := s.client().Rehearse(t.Context(), connect.NewRequest(&revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Revoke{
		Revoke: matchItems(map[string]string{"iss": "https://dev.revokd.test", "tenant_id": "canary-acme"}, "canary-e")[0],
	}})); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a rehearsal: %v", err)
	}

	s.as(free)
	ok("the fifth of the issuer", s.post("Revoke", other("a")))
	items := matchItems(map[string]string{"iss": "https://dev.revokd.test"}, "canary-a", "canary-b", "canary-c")
	batch, err := s.client().RevokeBatch(t.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: items}))
	if err != nil || batch.Msg.GetResults()[1].GetResponse() == nil || batch.Msg.GetResults()[2].GetError().GetDetail().GetLimit() != ofIssuer {
		t.Errorf("a batch: %v, %v", batch, err)
	}
	stream := s.client().RevokeStream(t.Context())
	if err := errors.Join(stream.Send(&revokdv1.RevokeStreamRequest{Items: items}), stream.CloseRequest()); err != nil {
		t.Error(err)
	}
	answer, err := stream.Receive()
	if err != nil || answer.GetCovered() != 2 || answer.GetRefused() != 1 || answer.GetErrors()[0].GetError().GetDetail().GetKind() != "quota" {
		t.Errorf("a stream: %v, %v", answer, err)
	}
	if err := stream.CloseResponse(); err != nil {
		t.Error(err)
	}
	refused("beyond the issuer's", s.post("Revoke", other("c")), "match.iss", ofIssuer)
	ok("another issuer", s.post("Revoke", `{"match":{"claims":{"iss":"https://other.example","jti":"canary-a"}}}`))
	if r := s.post("CheckBatch", `{"items":[{"claims":{`+iss+`,"jti":"canary-b","iat":1793620000,"exp":1793630000}}]}`); r.field("results.0.response.verdict") != "VERDICT_REVOKED" {
		t.Errorf("a check: %s", r.field("results.0"))
	}

	s.as(root)
	for i := range 10 {
		ok("an admin", s.post("Revoke", acme(fmt.Sprint("root", i))))
	}
	if _, text := s.get("/metrics"); !strings.Contains(text, `revokd_api_refused_total{kind="quota",method="/revokd.v1.RevocationService/Revoke"} 4`) {
		t.Error("the refusals are not counted")
	}
	if n := strings.Count(s.auditText(), `"outcome":"refused","error":"quota"`); n != 8 {
		t.Errorf("%d refusals in the audit", n)
	}
}

func errorOf[A any](_ *connect.Response[A], err error) error { return err }

// A writer has a share of the live combinations of claim names, and all writers together leave some to admins.
func TestShapesOfWriters(t *testing.T) {
	s := startTLS(t)
	shape := func(i int) string {
		return fmt.Sprintf(`{"match":{"claims":{"iss":"https://dev.revokd.test","claim%d":"canary"}}}`, i)
	}
	next := 0
	must := func(count int, role pki.Role, name string) {
		t.Helper()
		s.as(s.source(t, role, name).ClientConfig("n1"))
		for range count {
			if r := s.post("Revoke", shape(next)); r.code != "ok" {
				t.Fatalf("shape %d, of %s: %+v", next, name, r)
			}
			next++
		}
	}
	refused := func(limit string) {
		t.Helper()
		if r := s.post("Revoke", shape(next)); r.code != "resource_exhausted" || r.detail.GetKind() != "shapes" || !strings.HasPrefix(r.detail.GetLimit(), limit) {
			t.Errorf("%+v", r)
		}
	}
	must(revocation.WriterShapes, pki.RoleWriter, "w1")
	refused("at most 16 combinations")
	must(revocation.WriterShapes, pki.RoleWriter, "w2")
	if r := s.post("Revoke", strings.Replace(shape(0), "canary", "canary2", 1)); r.code != "ok" {
		t.Errorf("one that is live: %+v", r)
	}
	must(revocation.WriterShapes, pki.RoleWriter, "w3")
	must(revocation.MaxLiveShapes-revocation.AdminShapes-3*revocation.WriterShapes, pki.RoleWriter, "w4")
	refused("at most 64 combinations of claim names with live records, 8 of them for admins")
	must(revocation.AdminShapes, pki.RoleAdmin, "root")
	refused("at most 64 combinations")
}
