package api

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/internal/pki"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// parse reads credentials; $ROLE stands for the hash of the token of that role.
func parse(t testing.TB, text string) *credentials.Set {
	t.Helper()
	for _, role := range pki.ClientRoles() {
		e, err := credentials.NewEntry(tokenOf(string(role)), "x", role, nil, 0, 0, noon, noon)
		if err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "$"+strings.ToUpper(string(role))+",", e.SHA256+",")
	}
	set, err := credentials.Parse([]byte(text), noon)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// showing makes the fixture's client show a token.
func (f *fixture) showing(token string) {
	base := f.http.Transport
	if shows, ok := base.(*bearer.Transport); ok {
		base = shows.Base
	}
	f.http = &http.Client{Transport: &bearer.Transport{Base: base, Token: token}, Timeout: f.http.Timeout}
}

// A writer is held to what he is granted by every method that writes, whether he shows a certificate or a token.
func TestGrants(t *testing.T) {
	const grants = "grants: [{iss: https://dev.revokd.test, tenant_id: canary-acme}]"
	s := startTLS(t, func(c *setup) {
		c.api.Dev, c.api.Now = nil, func() time.Time { return noon }
		c.api.Credentials = parse(t, "tokens: [{name: till, sha256: $WRITER, role: writer, expires: 2026-12-01T00:00:00Z, "+grants+"}]\ncertificates: [{name: shop, "+grants+"}]")
	})
	shop := s.source(t, pki.RoleWriter, "shop").ClientConfig("n1")
	inside := s.mint(devissuer.Params{Sub: "canary-a", Sid: "canary-s", Claims: map[string]any{"tenant_id": "canary-acme"}})
	outside := s.mint(devissuer.Params{Sub: "canary-b", Sid: "canary-t", Claims: map[string]any{"tenant_id": "canary-other"}})
	m := func(claims string) string { return `{"match":{"claims":{` + claims + `}}}` }
	const iss, tenant, sub = `"iss":"https://dev.revokd.test"`, `"tenant_id":"canary-acme"`, `"sub":"canary-x"`
	rows := []struct{ method, body, want string }{
		{"Revoke", m(iss + "," + tenant + "," + sub), "ok"},
		{"Revoke", m(iss + "," + tenant), "ok"},
		{"Revoke", m(iss + "," + sub), "grant"},
		{"Revoke", m(iss), "grant"},
		{"Revoke", m(`"iss":"https://other.example",` + tenant), "grant"},
		{"Revoke", m(iss + `,"tenant_id":"canary-other"`), "grant"},
		{"Revoke", `{"match":{"claims":{` + iss + `},"integers":{"tenant_id":"7"}}}`, "grant"},
		{"Revoke", `{"match":{}}`, "not_allowed"},
		{"Block", m(iss + "," + tenant + "," + sub), "ok"},
		{"Block", m(iss + "," + sub), "grant"},
		{"Unblock", m(iss + "," + tenant + "," + sub), "ok"},
		{"Unblock", m(iss + "," + sub), "grant"},
		// A token says itself of which tenant it is; the match gets that claim.
		{"Revoke", `{"token":"` + inside + `","scope":"SCOPE_SUBJECT"}`, "ok"},
		{"Revoke", `{"token":"` + inside + `"}`, "ok"},
		{"Revoke", `{"token":"` + outside + `"}`, "grant"},
		{"Revoke", `{"token":"` + outside + `","scope":"SCOPE_SESSION"}`, "grant"},
		// What is kept is within what is revoked.
		{"Revoke", `{"match":{"claims":{` + iss + "," + tenant + `,"sub":"canary-y"}},"keep":{"session":"canary-z"}}`, "ok"},
		{"Revoke", `{"match":{"claims":{` + iss + "," + tenant + `,"sub":"canary-y"}},"keep":{"jti":"canary-z"}}`, "ok"},
		{"Revoke", `{"match":{"claims":{` + iss + "," + tenant + `,"sub":"canary-y"}},"keep":{"token":"` + outside + `"}}`, "ok"},
	}
	for who, as := range map[string]func(){
		"revokd://prod/writer/shop": func() { s.as(shop) },
		"token:till/":               func() { s.as(s.source(t, pki.RoleReader, "bare").ClientConfig("n1")); s.showing(tokenOf("writer")) },
	} {
		as()
		for _, row := range rows {
			before := strings.Count(s.auditText(), `"who":"`+who)
			r := s.post(row.method, row.body)
			if got := r.detail.GetKind(); row.want == "ok" && r.code != "ok" || row.want != "ok" && (r.code != "permission_denied" || got != row.want) {
				t.Errorf("%s: %s %s: %+v, want %s", who, row.method, row.body, r, row.want)
			}
			if strings.Count(s.auditText(), `"who":"`+who) != before+1 {
				t.Errorf("%s: %s is not in the audit once", who, row.method)
			}
		}
		// In a batch and in a stream the others go on.
		items := []*revokdv1.RevokeRequest{
			{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://dev.revokd.test", "tenant_id": "canary-acme", "sub": "canary-q" + who[:5]}}}},
			{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://dev.revokd.test", "sub": "canary-q"}}}},
		}
		batch, err := s.client().RevokeBatch(t.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: items}))
		if err != nil || batch.Msg.GetResults()[0].GetError() != nil || batch.Msg.GetResults()[1].GetError().GetDetail().GetKind() != "grant" {
			t.Errorf("%s: a batch: %v, %v", who, batch, err)
		}
		stream := s.client().RevokeStream(t.Context())
		if err := errors.Join(stream.Send(&revokdv1.RevokeStreamRequest{Items: items}), stream.CloseRequest()); err != nil {
			t.Error(err)
		}
		answer, err := stream.Receive()
		if err != nil || answer.GetRefused() != 1 || answer.GetCovered() != 1 || answer.GetErrors()[0].GetError().GetDetail().GetKind() != "grant" {
			t.Errorf("%s: a stream: %v, %v", who, answer, err)
		}
		if err := stream.CloseResponse(); err != nil {
			t.Error(err)
		}
	}
	// A match that is granted is one that revokes.
	s.as(shop)
	if r := s.post("Check", `{"token":"`+inside+`"}`); r.code != "ok" || r.message.(*revokdv1.CheckResponse).GetVerdict() != revokdv1.Verdict_VERDICT_REVOKED {
		t.Errorf("%+v", r)
	}
}

// Two tokens of a name are good at once; one that is taken out, or ends, is not, and neither are the streams that it opened.
func TestRotation(t *testing.T) {
	now := noon
	entry := func(role, expires string) string {
		return "{name: login, sha256: $" + strings.ToUpper(role) + ", role: 'subscriber,writer', expires: '" + expires + "'}"
	}
	const late = "2026-12-01T00:00:00Z"
	both := parse(t, "tokens: ["+entry("writer", late)+","+entry("reader", late)+"]")
	s := startTLS(t, func(c *setup) { c.api.Credentials, c.api.Now = both, func() time.Time { return now } })
	s.as(s.source(t, pki.RoleReader, "bare").ClientConfig("n1"))
	code := func(token string) string {
		s.showing(tokenOf(token))
		return s.post("Status", "{}").code
	}
	open := func(token string) *connect.BidiStreamForClient[revokdv1.RevokeStreamRequest, revokdv1.RevokeStreamResponse] {
		s.showing(tokenOf(token))
		stream := s.client().RevokeStream(t.Context())
		err := stream.Send(&revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{{
			Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": "https://dev.revokd.test", "sid": "canary"}}},
		}}})
		if _, received := stream.Receive(); err != nil || received != nil {
			t.Fatal(err, received)
		}
		return stream
	}
	if code("writer") != "ok" || code("reader") != "ok" {
		t.Error("two tokens, and not both are good")
	}
	old, fresh := open("writer"), open("reader")
	s.server.SetCredentials(parse(t, "tokens: ["+entry("reader", late)+"]"))
	if _, err := old.Receive(); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the stream of a token that was taken out: %v", err)
	}
	if code("writer") != "unauthenticated" || code("reader") != "ok" {
		t.Error("after one was taken out")
	}
	// The stream of the other one goes on.
	if err := fresh.CloseRequest(); err != nil {
		t.Error(err)
	}
	if _, err := fresh.Receive(); err != nil {
		t.Errorf("the stream of the token that stayed: %v", err)
	}
	_ = fresh.CloseResponse()
	_ = old.CloseResponse()
	// A token ends at the instant that the file says, and so do the streams that are open.
	s.server.SetCredentials(parse(t, "tokens: ["+entry("reader", "2026-11-02T12:00:01Z")+"]"))
	ending := open("reader") // half a second is left
	if _, err := ending.Receive(); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("the stream of a token that has ended: %v", err)
	}
	_ = ending.CloseResponse()
	if now = noon.Add(time.Second / 2); code("reader") != "unauthenticated" {
		t.Error("a token that has ended")
	}
	s.server.SetCredentials(nil)
	if code("reader") != "ok" {
		t.Error("without a file the certificate counts")
	}
	for _, role := range pki.ClientRoles() {
		if strings.Contains(s.log.String(), tokenOf(string(role))) {
			t.Errorf("the log holds the token of a %s", role)
		}
	}
}

// Ten tokens a minute that are not in force are answered alike, the eleventh is told that it is too many; one that is good is good all the same, and
// so are other addresses.
func TestFailuresOfAnAddress(t *testing.T) {
	now := noon
	f := start(t, func(c *setup) { c.api.Credentials, c.api.Now = tokens(t), func() time.Time { return now } })
	ask := func(addr, header string) (int, http.Header, string) {
		r := httptest.NewRequest(http.MethodPost, "http://localhost"+revokdv1connect.RevocationServiceStatusProcedure, strings.NewReader("{}"))
		r.RemoteAddr = addr
		r.Header.Set("Content-Type", "application/json")
		if header != "" {
			r.Header.Set("Authorization", header)
		}
		w := httptest.NewRecorder()
		f.server.handle(w, r)
		return w.Code, w.Header(), w.Body.String()
	}
	const a, b = "127.0.0.1:1", "127.0.0.2:1"
	_, _, uniform := ask(b, "") // not even tried
	wrong := []string{"Bearer " + tokenOf("nobody"), "Bearer x", "Basic dXNlcjpwYXNz", "Bearer", "bearer " + strings.Repeat("a", 4000)}
	for i := range failuresPerMinute {
		code, header, text := ask(a, wrong[i%len(wrong)])
		if code != http.StatusUnauthorized || text != uniform || header.Get("WWW-Authenticate") != `Bearer realm="revokd"` {
			t.Errorf("attempt %d: %d %s, want %s", i+1, code, text, uniform)
		}
	}
	if code, header, text := ask(a, wrong[0]); code != http.StatusTooManyRequests || header.Get("Retry-After") == "" || !strings.Contains(text, `"kind":"attempts"`) {
		t.Errorf("the eleventh: %d %v %s", code, header, text)
	}
	if code, _, text := ask(a, "Bearer "+tokenOf("reader")); code != http.StatusOK {
		t.Errorf("a good one after that: %d %s", code, text)
	}
	if code, _, _ := ask(b, wrong[0]); code != http.StatusUnauthorized {
		t.Errorf("another address: %d", code)
	}
	if code, _, _ := ask(a, ""); code != http.StatusUnauthorized {
		t.Errorf("without a token: %d", code)
	}
	now = now.Add(6*time.Second - time.Millisecond)
	if code, _, _ := ask(a, wrong[0]); code != http.StatusTooManyRequests {
		t.Errorf("a moment too early: %d", code)
	}
	now = now.Add(time.Millisecond)
	if code, _, _ := ask(a, wrong[0]); code != http.StatusUnauthorized {
		t.Errorf("six seconds later: %d", code)
	}
	// Where others could read it not even a good token is taken.
	for addr, want := range map[string]int{"10.0.0.1:1": http.StatusForbidden, "[::1]:1": http.StatusOK, "[::ffff:10.0.0.1]:1": http.StatusForbidden, "nonsense": http.StatusForbidden} {
		if code, _, text := ask(addr, "Bearer "+tokenOf("reader")); code != want || want != http.StatusOK && !strings.Contains(text, `"kind":"plaintext"`) {
			t.Errorf("from %s: %d %s", addr, code, text)
		}
	}
}

// Buckets are told apart up to a limit; one that is full goes to make room, and when none is, new keys share one.
func TestRates(t *testing.T) {
	var r rates[int]
	for k := range maxBuckets {
		if _, ok := r.take(k, 1, 2, 2, noon); !ok {
			t.Fatal(k)
		}
	}
	if _, ok := r.take(-1, 1, 2, 2, noon); !ok {
		t.Error("the first beyond the limit")
	}
	if wait, ok := r.take(-2, 1, 2, 1, noon); ok || wait != time.Second {
		t.Errorf("the second shares its bucket: %v, %v", wait, ok)
	}
	if len(r.buckets) != maxBuckets {
		t.Errorf("%d buckets", len(r.buckets))
	}
	if wait, ok := r.take(0, 1, 2, 1, noon.Add(time.Second/2)); ok || wait != time.Second/2 {
		t.Errorf("%v, %v", wait, ok)
	}
	if _, ok := r.take(0, 1, 2, 1, noon.Add(2*time.Second)); !ok {
		t.Error("after two seconds there are two")
	}
	if wait, ok := r.take(0, 1, 2, 2, noon.Add(2*time.Second)); ok || wait != time.Second {
		t.Errorf("%v, %v", wait, ok)
	}
	if _, ok := r.take(-3, 1, 2, 2, noon.Add(2*time.Second)); !ok || len(r.buckets) != 2 { // and 0, of which some is taken
		t.Errorf("%v, %d buckets", ok, len(r.buckets))
	}
	// The limits are those of the last use.
	if _, ok := r.take(-3, 10, 20, 11, noon.Add(3*time.Second)); ok {
		t.Error("more than there is")
	}
	if _, ok := r.take(-3, 10, 20, 11, noon.Add(4*time.Second)); !ok {
		t.Error("a higher limit changes nothing")
	}
}

// A writer who says who he is may write so much in a second, in calls; all writers of an issuer together so much; a stream waits. An admin is not held.
func TestBudgets(t *testing.T) {
	now := noon
	s := startTLS(t, func(c *setup) {
		c.api.Now = func() time.Time { return now }
		c.api.Limits.WriterRate, c.api.Limits.BulkRate, c.api.Limits.IssuerRate = 1000, 100_000, 2500
		c.api.Credentials = parse(t, "certificates: [{name: slow, rate: 50}]")
	})
	items := func(n int, iss string) *connect.Request[revokdv1.RevokeBatchRequest] {
		m := &revokdv1.RevokeBatchRequest{}
		for i := range n {
			m.Items = append(m.Items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{
				Claims: map[string]string{"iss": iss, "sid": "canary"}, Integers: map[string]int64{"n": int64(i % 8)},
			}}})
		}
		return connect.NewRequest(m)
	}
	const a, b = "https://dev.revokd.test", "https://other.example"
	as := func(role pki.Role, name string) { s.as(s.source(t, role, name).ClientConfig("n1")) }
	// write returns the field of the refusal, and when to come again.
	write := func(n int, iss string) (field, retry string) {
		t.Helper()
		_, err := s.client().RevokeBatch(t.Context(), items(n, iss))
		if err == nil {
			return "ok", ""
		}
		r := s.connectError(err)
		if r.code != "resource_exhausted" || r.detail.GetKind() != "rate" {
			t.Fatalf("%+v", r)
		}
		return r.detail.GetField(), r.retry
	}
	want := func(what string, n int, iss, field, retry string) {
		t.Helper()
		if f, after := write(n, iss); f != field || after != retry {
			t.Errorf("%s: %s after %s, want %s after %s", what, f, after, field, retry)
		}
	}
	as(pki.RoleWriter, "w1")
	want("as many as may come in a second", 1000, a, "ok", "")
	want("one more", 1, a, "writer", "1")
	now = now.Add(time.Second / 2)
	want("half a second later, too many", 501, a, "writer", "1")
	want("half a second later", 500, a, "ok", "")
	as(pki.RoleWriter, "w2")
	want("another writer", 1000, a, "ok", "")
	as(pki.RoleWriter, "w3")
	want("all of an issuer", 1000, a, "ok", "")
	as(pki.RoleWriter, "w4")
	want("more than all of an issuer", 1000, a, "match.iss", "1")
	as(pki.RoleWriter, "w5")
	want("another issuer", 1000, b, "ok", "")
	as(pki.RoleWriter, "slow")
	want("at once a whole message", 1000, b, "ok", "")
	want("a rate of its own", 100, b, "writer", "3") // 2 s, rounded up to more
	as(pki.RoleAdmin, "root")
	for range 4 {
		want("an admin", 1000, a, "ok", "")
	}
}
