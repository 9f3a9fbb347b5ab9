package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/internal/audit"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// auditText returns the audit's lines as they are.
func (f *fixture) auditText() string {
	f.Helper()
	files, err := audit.Files([]string{f.audits})
	if err != nil {
		f.Fatal(err)
	}
	text := ""
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		text += string(b)
	}
	return text
}

// auditOf returns the lines of some kinds.
func (f *fixture) auditOf(kinds ...string) (lines []map[string]any) {
	f.Helper()
	for text := range strings.Lines(f.auditText()) {
		var l map[string]any
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			f.Fatal(err)
		}
		if slices.Contains(kinds, fmt.Sprint(l["event"])) {
			lines = append(lines, l)
		}
	}
	return lines
}

// auditLines returns the lines of writes as "method outcome target rule claims compared reason error field comment".
func (f *fixture) auditLines() (lines, ids []string) {
	f.Helper()
	for _, l := range f.auditOf("write") {
		s := ""
		for _, key := range []string{"method", "outcome", "target", "rule", "claims", "compared", "reason", "error", "field", "comment"} {
			if v := l[key]; v != nil {
				s += fmt.Sprint(v)
			}
			s += "|"
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
		{"Revoke", `{"token":"` + token + `","reason":"REASON_LOGOUT","comment":"ticket 7"}`, "Revoke|revoked|token|deny|[iss jti]||logout|||ticket 7|"},
		{"Revoke", `{"token":"` + token + `"}`, "Revoke|covered|token|deny|[iss jti]||||||"},
		{"Revoke", `{"token":"` + token + `","scope":"SCOPE_SUBJECT"}`, "Revoke|revoked|subject|issued_before|[iss sub]|iat|||||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","jti":"canary"}},"expiresAt":"2026-01-01T00:00:00Z"}`, "Revoke|already_expired|match||[iss jti]||||||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","sub":"canary"}},"below":{"claim":"ver","value":"7"}}`, "Revoke|revoked|match|below|[iss sub]|ver|||||"},
		{"Block", `{"match":{"claims":{"iss":"i","sub":"canary"}},"reason":"REASON_USER_SUSPENDED"}`, "Block|revoked|match|block|[iss sub]||user-suspended||||"},
		{"Unblock", `{"match":{"claims":{"iss":"i","sub":"canary"}}}`, "Unblock|unblocked|match|unblock|[iss sub]||||||"},
		{"Revoke", `{"token":"` + token + `x"}`, "Revoke|refused|token|||||malformed|token||"},
		{"Revoke", `{"match":{"claims":{"iss":"i","sub":"canary"}},"comment":"` + strings.Repeat("a", 300) + `"}`, "Revoke|refused|match||[iss sub]|||too_large|comment|" + strings.Repeat("a", 256) + "|"},
		{"Revoke", `{"match":{"claims":{"a":"canary","b":"","c":"","d":"","e":""}}}`, "Revoke|refused|match||[(too many)]|||too_large|match||"},
		{"Block", `{"match":{"claims":{"iss":"","sub":"canary"}}}`, "Block|refused|match|block|[iss sub]|||malformed|match.iss||"},
		{"Unblock", `canary`, "Unblock|refused|match|unblock||||malformed|body||"},
		{"RevokeBatch", `{"items":[{"token":"` + token + `"},{"token":"` + token + `"},{"token":"canary"}]}`, "RevokeBatch|covered|token|deny|[iss jti]||||||"},
		{"RevokeBatch", `{"items":[]}`, "RevokeBatch|refused||||||out_of_range|items||"},
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
	if lines, _ := f.auditLines(); !strings.HasPrefix(lines[len(lines)-2], "RevokeBatch|refused|token|||||malformed|token||") {
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
	ring := func(r *revokdv1.FingerprintKeysRequest) *revokdv1.FingerprintKeysResponse {
		res, err := service.FingerprintKeys(t.Context(), connect.NewRequest(r))
		if err != nil {
			return nil
		}
		return res.Msg
	}
	first := ring(&revokdv1.FingerprintKeysRequest{}).GetKeys()[0]
	ring(&revokdv1.FingerprintKeysRequest{Change: &revokdv1.FingerprintKeysRequest_Add{Add: true}})
	ring(&revokdv1.FingerprintKeysRequest{Change: &revokdv1.FingerprintKeysRequest_Use{Use: first.GetId()}})
	if _, err := service.Join(t.Context(), connect.NewRequest(&revokdv1.JoinRequest{Addresses: []string{"127.0.0.1:9"}})); err != nil {
		t.Error(err)
	}
	if _, err := service.Forget(t.Context(), connect.NewRequest(&revokdv1.ForgetRequest{Name: "n1"})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Error(err)
	}
	var got []string
	for _, l := range f.auditOf("cluster") {
		kind := ""
		if l["error"] != nil {
			kind = fmt.Sprint(l["error"])
		}
		got = append(got, fmt.Sprint(l["method"], " ", l["change"], " ", l["name"], " ", l["outcome"], " ", kind))
	}
	want := []string{
		"ChangeVoters add n1 done ", "ChangeVoters remove n1 refused voters", "ChangeVoters accept_loss n7 refused voters",
		"GossipKeys install " + cluster.KeyID(make([]byte, 32)) + " refused no_cluster",
		"FingerprintKeys add <nil> done ", "FingerprintKeys use " + first.GetId() + " refused conflict", "Join join 127.0.0.1:9 done ",
		"Forget forget n1 refused member",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if strings.Contains(f.log.String()+f.auditText(), secret) {
		t.Error("a log has a key")
	}
}

// A write that fewer nodes than asked for have confirmed is in force: the audit must not call it refused.
func TestAuditOfUnconfirmed(t *testing.T) {
	err := fmt.Errorf("%w: %w", node.ErrAck, context.DeadlineExceeded)
	var e audit.Event
	if (&trail{}).failed(&e, err); e.Outcome != "unconfirmed" || e.Error != "ack" {
		t.Errorf("%+v", e)
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
	if len(lines) != 4 || lines[2] != "RevokeStream|revoked|match|deny|[iss jti]||||||" || lines[3] != "RevokeStream|refused|token|||||malformed|token||" || ids[0] != ids[3] || ids[0] != s.ResponseHeader().Get(headerRequestID) {
		t.Errorf("%q, %v", lines, ids)
	}
	receipt := f.auditOf("receipt")
	if len(receipt) != 1 || receipt[0]["count"] != 4.0 || receipt[0]["ack"] != "all" && receipt[0]["ack"] != "quorum" && receipt[0]["ack"] != "local" {
		t.Errorf("%v", receipt)
	}
}

// A line says who, from where, and what: the fingerprint, how long, how safe; the values only where the operator wants them.
func TestAuditSaysWhat(t *testing.T) {
	for _, values := range []bool{false, true} {
		f := start(t, func(c *setup) { c.api.AuditValues = values })
		body := `{"match":{"claims":{"iss":"i","sub":"canary"}},"expiresAt":"2027-01-01T00:00:00Z"}`
		f.post("Block", body)
		f.post("RevokeBatch", `{"items":[{"token":"x"},`+body+`]}`)
		lines := f.auditOf("write")
		if len(lines) != 3 {
			t.Fatalf("%v", lines)
		}
		for i, l := range []map[string]any{lines[0], lines[2]} {
			from, _ := l["from"].(string)
			match, _ := l["match"].(string)
			if !strings.HasPrefix(from, "127.0.0.1:") || len(match) != 32 || l["durability"] != "memory" || l["expires"] != "2027-01-01T00:00:00Z" || fmt.Sprint(l["confirmed"]) != "[n1]" {
				t.Errorf("%v", l)
			}
			if got := fmt.Sprint(l["values"]); values != (got == "map[iss:i sub:canary]") {
				t.Errorf("%d: values %s", i, got)
			}
		}
		if lines[2]["item"] != 2.0 || lines[0]["match"] == lines[2]["match"] {
			t.Errorf("%v", lines)
		}
	}
}

// full is a file system that refuses to write when it is told to.
type full struct {
	journal.FS
	on atomic.Bool
}

func (f *full) Create(name string) (journal.File, error) {
	file, err := f.FS.Create(name)
	return fullFile{file, f}, err
}

func (f *full) Open(name string, write bool) (journal.File, error) {
	file, err := f.FS.Open(name, write)
	return fullFile{file, f}, err
}

type fullFile struct {
	journal.File
	fs *full
}

func (f fullFile) WriteAt(b []byte, off int64) (int, error) {
	if f.fs.on.Load() {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(b, off)
}

// Without the audit nothing is changed, unless the operator wants it to go on; then the audit says itself how many lines are missing.
func TestAuditThatFails(t *testing.T) {
	for _, goOn := range []bool{false, true} {
		disk := &full{FS: journal.OS()}
		dir := t.TempDir()
		f := start(t, func(c *setup) {
			var err error
			if c.audit, err = audit.Open(audit.Config{Dir: dir, FS: disk}); err != nil {
				t.Fatal(err)
			}
			c.api.AuditGoOn = goOn
		})
		f.audits = dir
		body := `{"match":{"claims":{"iss":"i","jti":"canary-%d"}}}`
		if r := f.post("Revoke", fmt.Sprintf(body, 0)); r.code != "ok" {
			t.Fatalf("%+v", r)
		}
		disk.on.Store(true)
		for i := 1; i <= 2; i++ {
			r := f.post("Revoke", fmt.Sprintf(body, i))
			if _, page := f.get("/readyz"); strings.Contains(page, "the audit cannot be written") == goOn {
				t.Errorf("%t: %d: /readyz: %s", goOn, i, page)
			}
			if goOn != (r.code == "ok") || !goOn && r.detail.GetKind() != "audit" {
				t.Errorf("%t: %d: %+v", goOn, i, r)
			}
			claims := new(revocation.Claims)
			for name, v := range map[string]string{"iss": "i", "jti": fmt.Sprintf("canary-%d", i)} {
				if err := claims.Set(name, revocation.String(v)); err != nil {
					t.Fatal(err)
				}
			}
			// The first was carried out before the disk said no; the second was not even begun.
			if revoked := f.node.Check(claims).Status == revocation.Revoked; revoked != (goOn || i == 1) {
				t.Errorf("%t: %d is revoked: %t", goOn, i, revoked)
			}
		}
		if r := f.post("Check", `{"claims":{"iss":"i","jti":"canary-0"}}`); r.code != "ok" {
			t.Errorf("a check: %+v", r)
		}
		disk.on.Store(false)
		eventually(t, "the audit goes on", func() bool { return f.server.cfg.Audit.Failed() == nil })
		if res, page := f.get("/readyz"); res.StatusCode != 200 {
			t.Errorf("%t: at the end: %s", goOn, page)
		}
		if r := f.post("Revoke", fmt.Sprintf(body, 3)); r.code != "ok" {
			t.Errorf("%+v", r)
		}
		if lost := f.auditOf("lost"); len(lost) != 1 || lost[0]["count"].(float64) < 1 {
			t.Errorf("%v", lost)
		}
	}
}

// A rehearsal is refused like the write, recorded, and changes nothing.
func TestRehearse(t *testing.T) {
	f := start(t)
	token := f.mint(devissuer.Params{Sub: canary, Sid: canary})
	client := revokdv1connect.NewRevocationServiceClient(f.http, f.url)
	check := func() revokdv1.Verdict {
		res, err := client.Check(t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Token{Token: token}}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetVerdict()
	}
	check()
	revoke := &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: token}, Options: &revokdv1.WriteOptions{IdempotencyKey: "k"}}
	res, err := client.Rehearse(t.Context(), connect.NewRequest(&revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Revoke{Revoke: revoke}}))
	if err != nil {
		t.Fatal(err)
	}
	m := res.Msg
	if m.GetResult().GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED || m.GetResult().GetReceipt() != nil || m.GetShapeLive() || m.GetChecks() != 1 || m.GetWouldRefuse() != 1 || m.GetChecksSince() == nil {
		t.Errorf("%v", m)
	}
	if v := check(); v != revokdv1.Verdict_VERDICT_ACTIVE {
		t.Errorf("after a rehearsal: %v", v)
	}
	for _, req := range []*revokdv1.RehearseRequest{
		{},
		{Request: &revokdv1.RehearseRequest_Revoke{Revoke: &revokdv1.RevokeRequest{}}},
		{Request: &revokdv1.RehearseRequest_Block{Block: &revokdv1.BlockRequest{Match: &revokdv1.Match{Claims: map[string]string{"iss": ""}}}}},
		{Request: &revokdv1.RehearseRequest_Unblock{}},
	} {
		if _, err := client.Rehearse(t.Context(), connect.NewRequest(req)); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	var got []string
	for _, l := range f.auditOf("rehearsal", "write") {
		got = append(got, fmt.Sprint(l["event"], " ", l["outcome"], " ", l["rule"], " ", l["error"], " ", l["durability"]))
	}
	want := []string{
		"rehearsal revoked deny <nil> <nil>", "rehearsal refused <nil> missing <nil>", "rehearsal refused <nil> missing <nil>",
		"rehearsal refused block malformed <nil>", "rehearsal refused unblock missing <nil>",
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if res, err := client.Revoke(t.Context(), connect.NewRequest(revoke)); err != nil || res.Msg.GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED {
		t.Errorf("the write after it: %v, %v", res, err)
	}
}
