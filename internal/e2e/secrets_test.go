package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/types/known/structpb"

	replica "github.com/revokd/revokd/client"
	"github.com/revokd/revokd/internal/devissuer"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// pages is what came out of a cluster, by where.
type pages struct {
	*testing.T
	mu    sync.Mutex
	texts map[string]*bytes.Buffer
}

func (p *pages) add(where string, text []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.texts[where] == nil {
		p.texts[where] = new(bytes.Buffer)
	}
	p.texts[where].Write(text)
	p.texts[where].WriteByte('\n')
}

// pageWriter writes to one page.
type pageWriter struct {
	to    *pages
	where string
}

func (w pageWriter) Write(b []byte) (int, error) {
	w.to.add(w.where, b)
	return len(b), nil
}

// answered keeps what a call came to; it has to fail or not.
func (p *pages) answered(where string, answer any, err error, fails bool) {
	p.Helper()
	if (err != nil) != fails {
		p.Errorf("%s: %v", where, err)
	}
	p.add(where, fmt.Appendf(nil, "%+v %v %+v", answer, err, err))
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		p.add(where, fmt.Appendf(nil, "%v", coded.Meta()))
		for _, d := range coded.Details() {
			v, err := d.Value()
			p.add(where, fmt.Appendf(nil, "%v %v", v, err))
		}
	}
}

// without reports where a secret is.
func (p *pages) without(name, secret string) (where []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for at, text := range p.texts {
		if bytes.Contains(text.Bytes(), []byte(secret)) {
			where = append(where, name+" in "+at)
		}
	}
	return where
}

// TestSecrets puts secrets through every path of a cluster with TLS: what names a token, signed tokens, the bearer tokens of callers, what they write
// beside, and the cluster has keys. Nothing that comes out shows one: log at its finest, metric, span, audit, journal, backup, status, description, error.
// The scripts secrets.txtar do the same with the commands of a development node.
func TestSecrets(t *testing.T) {
	out := &pages{T: t, texts: map[string]*bytes.Buffer{}}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		out.add("spans", b)
	}))
	defer collector.Close()
	minter, err := devissuer.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keep := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keep("jwks.json", minter.JWKS())
	sealing := strings.Repeat("0badc0de", 8)
	s := newSecured(t, 2, "--log-level", "trace", "--log-format", "json", "--trace-endpoint", collector.URL, "--trace-sample", "1",
		"--issuers", keep("issuers.json", fmt.Appendf(nil, `{"issuers":[{"issuer":%q,"keys_file":"jwks.json"}]}`, issuer)),
		"--audit-key-file", keep("audit.key", []byte(sealing+"\n")))
	token := func(jti string) string {
		t.Helper()
		raw, err := minter.Mint(devissuer.Params{Sub: "canary-sub", Sid: "canary-sid", Claims: map[string]any{"jti": jti, "client_id": "canary-client"}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	const stranger = "rvk_canary-of-a-stranger-who-is-not-known-here"
	s.run("credentials", "new", "--name", "wide", "--role", "writer", "--out", s.path("wide.token"))
	secrets := map[string]string{ // name: what nothing may show
		"an identifier": "canary", "the same in base64": "Y2FuYXJ5", "the same in hex": hex.EncodeToString([]byte("canary")),
		"a signed token": "eyJ", "the prefix of a bearer token": "rvk_", "the key of the audit": sealing,
	}
	inBase64 := func(name string, b []byte) {
		secrets[name+", in base64"] = strings.TrimRight(base64.StdEncoding.EncodeToString(b), "=")
		secrets[name+", in base64 for URLs"] = base64.RawURLEncoding.EncodeToString(b)
		secrets[name+", in hex"] = hex.EncodeToString(b)
		secrets[name+", as it is"] = string(b)
		secrets[name+", as Go prints it"] = strings.Trim(fmt.Sprint(b[:8]), "[]")
	}
	bearerToken := strings.TrimPrefix(*tokenOf(t, s, "login.token"), "rvk_")
	secrets["a bearer token"] = bearerToken
	inBase64("the key of the audit", decodeHex(t, sealing))
	inBase64("the fingerprint key", decodeHex(t, *tokenOf(t, s, "nodes/n1/fingerprint.key")))
	gossip, err := base64.StdEncoding.DecodeString(*tokenOf(t, s, "nodes/n1/gossip.key"))
	if err != nil {
		t.Fatal(err)
	}
	inBase64("the key of gossip", gossip)
	for _, who := range []string{"nodes/n1/n1.key", "admin/admin.key", "ca/ca.key"} {
		secrets["the private key "+who] = strings.Split(read(t, s.path(who)), "\n")[1]
	}

	n := s.nodes[0]
	clients := map[string]*http.Client{"certificate": n.http}
	for name, text := range map[string]string{"bearer": *tokenOf(t, s, "login.token"), "stranger": stranger} {
		clients[name] = &http.Client{Transport: bearer{httpsClient(t, s.stranger()).Transport, func() string { return text }}}
	}
	for name, c := range clients {
		// JSON shows what is decoded by hand, gRPC what is not.
		for protocol, options := range map[string][]connect.ClientOption{"gRPC": {connect.WithGRPC()}, "JSON": {connect.WithProtoJSON()}} {
			talk(out, name+" over "+protocol, revokdv1connect.NewRevocationServiceClient(c, n.proc.URL, options...), token, name == "stranger")
		}
		for _, body := range []string{`{"canary":"canary"}`, `{"token":"canary`, `{"match":{"claims":{"iss":"canary","":"canary"}}}`} {
			out.add(name+", by hand", oddly(t, c, n.proc.URL+revokdv1connect.RevocationServiceRevokeProcedure, body))
		}
		out.add(name+", a path", oddly(t, c, n.proc.URL+"/canary?canary=canary", ""))
	}
	embed(t, out, s, token)

	// What an operator sees, and his commands with each credential.
	admin := []string{"--addr", n.host(), "--tls-ca", s.path("admin/ca.crt"), "--tls-cert", s.path("admin/admin.crt"), "--tls-key", s.path("admin/admin.key")}
	commands := [][]string{
		{"status", "--output", "json"},
		{"members", "--output", "json"},
		{"keys", "list", "--output", "json"},
		{"voters", "list", "--output", "json"},
		{"check", "--token", token("canary-cli")},
		{"explain", "--token", token("canary-cli")},
		{"revoke", "--token", token("canary-cli")},
		{"revoke", "--token", "canary"},
		{"revoke", "--issuer", issuer, "--subject", "canary-sub", "--dry-run"},
	}
	for _, args := range commands {
		for who, flags := range map[string][]string{"certificate": admin, "bearer": {"--addr", n.host(), "--tls-ca", s.path("admin/ca.crt"), "--token-file", s.path("login.token")}} {
			text, _ := s.command(append(append([]string{}, args...), flags...)...) // some are refused
			out.add("revokd "+args[0]+", "+who, text)
		}
	}
	text, err := s.command(append([]string{"config", "print"}, n.args[2:]...)...)
	out.answered("revokd config print", string(text), err, false)
	text, err = s.command(append([]string{"backup", "copy"}, admin...)...)
	out.answered("revokd backup", string(text), err, false)
	out.add("the backup", []byte(read(t, filepath.Join(s.home, "copy"))))
	for _, m := range s.nodes {
		for _, path := range []string{"/metrics", "/readyz", "/"} {
			res, err := m.http.Get(m.proc.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			if err = errors.Join(err, res.Body.Close()); err != nil {
				t.Fatal(err)
			}
			out.add(m.name+path, b)
		}
	}
	s.reload() // the log of it

	for _, m := range s.nodes {
		if err := m.proc.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, m := range s.nodes {
		if code, err := m.proc.Wait(ctx); code != 0 || err != nil {
			t.Fatalf("%s ended with %d %v:\n%s", m.name, code, err, m.proc.Stderr())
		}
		out.add("log of "+m.name, []byte(m.proc.Stderr()))
		out.add("standard output of "+m.name, []byte(m.proc.Stdout()))
		for _, args := range [][]string{{"journal", "dump"}, {"journal", "stat"}} {
			text, err := s.command(append(args, "--data-dir", filepath.Join(s.home, "data"), "--node-name", m.name)...)
			out.answered(strings.Join(args, " "), string(text), err, false)
		}
		root := filepath.Join(s.home, "data", m.name)
		if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			name := strings.TrimPrefix(path, root)
			if name == "/gossip.keys" { // the node starts with what was installed last
				return nil
			}
			out.add("file "+m.name+name, []byte(read(t, path)))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for name, secret := range secrets {
		for _, where := range out.without(name, secret) {
			t.Errorf("%s", where)
		}
	}
	// What callers write beside is for the audit alone.
	for _, where := range out.without("a comment", "remark-of-a-caller") {
		if !strings.Contains(where, "/audit/") {
			t.Errorf("%s", where)
		}
	}
	// All of it was there to look at, and what was looked for would have been found.
	for what, where := range map[string]string{
		"journal commit": "spans", `"@level":"trace"`: "log of n1", "revokd_writes_total": "n1/metrics", `"who":"token:login/`: "file n1/audit/audit-0000000000000001.jsonl",
		"remark-of-a-caller": "file n1/audit/audit-0000000000000001.jsonl", "credentials.yaml": "revokd config print", "session": "log of the client",
	} {
		if out.texts[where] == nil || !strings.Contains(out.texts[where].String(), what) {
			t.Errorf("no %q in %s", what, where)
		}
	}
	out.add("planted", []byte("--canary--"))
	if found := out.without("an identifier", "canary"); len(found) == 0 {
		t.Error("the test would not see it")
	}
}

func decodeHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func oddly(t *testing.T, c *http.Client, url, body string) []byte {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for name, v := range map[string]string{
		"traceparent": "canary", "tracestate": "v=canary", "baggage": "user=canary", "X-Request-Id": "canary", "User-Agent": "canary", "Cookie": "canary=canary",
	} {
		req.Header.Set(name, v)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(b, "\n%v", res.Header)
}

// command runs a command and returns what it prints, failed or not.
func (s *secured) command(args ...string) ([]byte, error) {
	cmd := exec.CommandContext(s.Context(), s.program, args...)
	cmd.Env, cmd.Dir = s.env(), s.home
	return cmd.CombinedOutput()
}

// talk calls every method of RevocationService, with what is right and with what is not.
func talk(out *pages, where string, api revokdv1connect.RevocationServiceClient, token func(jti string) string, refused bool) {
	ctx := out.Context()
	match := func(claims ...string) *revokdv1.Match {
		m := &revokdv1.Match{Claims: map[string]string{}}
		for i := 0; i < len(claims); i += 2 {
			m.Claims[claims[i]] = claims[i+1]
		}
		return m
	}
	byMatch := func(m *revokdv1.Match) *revokdv1.RevokeRequest {
		return &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: m}, Comment: "remark-of-a-caller"}
	}
	byToken := func(raw string, scope revokdv1.Scope) *revokdv1.RevokeRequest {
		return &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: raw}, Scope: scope, Options: &revokdv1.WriteOptions{IdempotencyKey: "canary-" + where}}
	}
	jti := "canary-" + where
	revokes := map[string]struct {
		m     *revokdv1.RevokeRequest
		fails bool
	}{
		"token":           {byToken(token(jti), revokdv1.Scope_SCOPE_TOKEN), false},
		"session":         {byMatch(match("iss", issuer, "sid", jti)), false},
		"kept":            {&revokdv1.RevokeRequest{Target: byMatch(match("iss", issuer, "sub", jti)).Target, Keep: &revokdv1.Keep{Kept: &revokdv1.Keep_Session{Session: "canary-kept"}}}, false},
		"another issuer":  {byMatch(match("iss", "https://canary.example", "sub", jti)), strings.HasPrefix(where, "bearer")},
		"no token":        {byToken("canary", revokdv1.Scope_SCOPE_TOKEN), true},
		"a bad signature": {byToken(token(jti)+"canary", revokdv1.Scope_SCOPE_TOKEN), true},
		"an odd claim":    {byMatch(match("iss", issuer, "", jti)), true},
		"a long value":    {byMatch(match("iss", issuer, "sub", strings.Repeat("canary", 200))), true},
		"too many claims": {byMatch(match("iss", issuer, "sub", jti, "a", jti, "b", jti, "c", jti)), true},
	}
	for name, c := range revokes {
		res, err := api.Revoke(ctx, connect.NewRequest(c.m))
		out.answered(where+", revoke "+name, res, err, c.fails || refused)
	}
	batch, err := api.RevokeBatch(ctx, connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: []*revokdv1.RevokeRequest{revokes["token"].m, revokes["no token"].m, revokes["session"].m}}))
	out.answered(where+", batch", batch, err, refused)
	stream := api.RevokeStream(ctx)
	for _, name := range []string{"session", "no token", "a bad signature", "an odd claim"} {
		if stream.Send(&revokdv1.RevokeStreamRequest{Items: []*revokdv1.RevokeRequest{revokes[name].m}}) != nil {
			break // Receive says why
		}
	}
	_ = stream.CloseRequest() // the same
	for err = nil; err == nil; {
		var res *revokdv1.RevokeStreamResponse
		res, err = stream.Receive()
		if errors.Is(err, io.EOF) && !refused {
			break
		}
		out.answered(where+", stream", res, err, err != nil && refused)
	}
	if err := stream.CloseResponse(); err != nil {
		out.add(where+", stream", []byte(err.Error()))
	}
	rehearsed, err := api.Rehearse(ctx, connect.NewRequest(&revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Revoke{Revoke: byMatch(match("iss", issuer, "sub", jti))}}))
	out.answered(where+", rehearse", rehearsed, err, refused)
	blocked, err := api.Block(ctx, connect.NewRequest(&revokdv1.BlockRequest{Match: match("iss", issuer, "sub", jti), Comment: "remark-of-a-caller"}))
	out.answered(where+", block", blocked, err, refused)
	lifted, err := api.Unblock(ctx, connect.NewRequest(&revokdv1.UnblockRequest{Match: match("iss", issuer, "sub", jti), Comment: "remark-of-a-caller"}))
	out.answered(where+", unblock", lifted, err, refused)
	claims, err := structpb.NewStruct(map[string]any{"iss": issuer, "sub": "canary", "jti": map[string]any{"canary": "canary"}})
	if err != nil {
		out.Fatal(err)
	}
	fresh := token("canary-fresh" + where)
	checks := map[string]struct {
		m     *revokdv1.CheckRequest
		fails bool
	}{
		"token":    {&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Token{Token: fresh}}, false},
		"claims":   {&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Claims{Claims: claims}}, false},
		"payload":  {&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: []byte("canary")}}, true},
		"no token": {&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Token{Token: "canary.canary.canary"}}, true},
	}
	var all []*revokdv1.CheckRequest
	for name, c := range checks {
		res, err := api.Check(ctx, connect.NewRequest(c.m))
		out.answered(where+", check "+name, res, err, c.fails || refused)
		all = append(all, c.m)
	}
	several, err := api.CheckBatch(ctx, connect.NewRequest(&revokdv1.CheckBatchRequest{Items: all}))
	out.answered(where+", check a batch", several, err, refused)
	explained, err := api.Explain(ctx, connect.NewRequest(checks["token"].m))
	out.answered(where+", explain", explained, err, refused)
	status, err := api.Status(ctx, connect.NewRequest(&revokdv1.StatusRequest{}))
	out.answered(where+", status", status, err, refused)
}

// embed uses the client library as a service does, with each credential and each mode.
func embed(t *testing.T, out *pages, s *secured, token func(jti string) string) {
	t.Helper()
	authority, err := replica.LoadTLS("", "", s.path("admin/ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: pageWriter{out, "log of the client"}})
	foreign := filepath.Join(t.TempDir(), "foreign.token")
	if err := os.WriteFile(foreign, []byte("rvk_canary-of-a-stranger-who-is-not-known-here"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // it tries until then: somebody may be about to let it in
	defer cancel()
	_, err = replica.Open(ctx, replica.Config{Addrs: []string{s.nodes[0].host()}, TLS: authority, TokenFile: foreign, Logger: log})
	out.answered("client of a stranger", nil, err, true)
	for where, cfg := range map[string]replica.Config{
		"client, full": {TLS: s.admin}, "client, filter": {TLS: authority, TokenFile: s.path("login.token"), Mode: replica.Filter},
	} {
		cfg.Addrs, cfg.Logger, cfg.Name = []string{s.nodes[0].host()}, log, "service"
		c := open(t, cfg)
		jti := "canary-" + where
		called := make(chan revocation.Verdict, 1)
		claims := claimsOf(jti, time.Now())
		c.OnRevoked(claims, func(v revocation.Verdict) { called <- v })
		out.answered(where, c.Check(claims), c.Allow(claims), false)
		remark := replica.Comment("remark-of-a-caller")
		receipt, err := c.Revoke(t.Context(), replica.Match{"iss": issuer, "jti": jti}, remark)
		out.answered(where, receipt, err, false)
		select {
		case v := <-called:
			out.add(where, fmt.Appendf(nil, "%+v", v))
		case <-time.After(patience):
			t.Errorf("%s: nobody is told", where)
		}
		out.answered(where, c.Check(claims), c.Allow(claims), true)
		receipt, err = c.RevokeToken(t.Context(), token(jti+"-2"), remark)
		out.answered(where, receipt, err, false)
		receipt, err = c.RevokeSession(t.Context(), token(jti+"-3")+"canary", remark)
		out.answered(where, receipt, err, true)
		receipt, err = c.LogoutOthers(t.Context(), issuer, "canary-sub", "canary", remark)
		out.answered(where, receipt, err, true)
		receipt, err = c.RevokeSubject(t.Context(), issuer, strings.Repeat("canary", 200), remark)
		out.answered(where, receipt, err, true)
		receipt, err = c.Block(t.Context(), replica.Match{"iss": issuer, "sub": "canary-blocked"}, remark)
		out.answered(where, receipt, err, false)
		receipt, err = c.Unblock(t.Context(), replica.Match{"iss": issuer, "sub": "canary-blocked"}, remark)
		out.answered(where, receipt, err, false)
		rehearsal, err := c.RehearseRevoke(t.Context(), replica.Match{"iss": issuer, "sub": "canary-rehearsed"}, remark)
		out.answered(where, rehearsal, err, false)
		_, err = c.Revoke(t.Context(), replica.Match{"iss": issuer, "canary": 1.5})
		out.answered(where, nil, err, true)
		bulk, err := c.RevokeAll(t.Context(), func(yield func(replica.Item) bool) {
			_ = yield(replica.Item{Match: replica.Match{"iss": issuer, "jti": jti + "-4"}}) && yield(replica.Item{Token: "canary"}) && yield(replica.Item{Token: token(jti + "-5")})
		}, func(b replica.Bulk) { out.add(where, fmt.Appendf(nil, "%+v", b)) }, remark)
		out.answered(where, bulk, err, false)
		out.add(where, fmt.Appendf(nil, "%+v", c.Status()))
	}
}
