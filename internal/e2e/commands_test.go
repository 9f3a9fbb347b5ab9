package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/e2e"
)

// operator works on a cluster of real nodes by the command line only. The nodes are not for development: they have what an operator gives them.
type operator struct {
	*testing.T
	program, dir string
	nodes        map[string]*e2e.Process
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	o := &operator{T: t, program: program(t, ""), dir: t.TempDir(), nodes: map[string]*e2e.Process{}}
	gossipKey, _, _ := o.run("", "", "keys", "generate")
	for name, text := range map[string]string{
		"key": "000102030405060708090a0b0c0d0e0f\n", "gossip.key": gossipKey,
		"issuers.json": `{"issuers":[{"issuer":"https://id.example","keys_file":"keys.json"}]}`,
		"keys.json":    `{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"k1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`,
	} {
		if err := os.WriteFile(filepath.Join(o.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func (o *operator) env() []string { return []string{"HOME=" + o.dir, "PATH=" + os.Getenv("PATH")} }

func (o *operator) start(name string, args ...string) {
	o.Helper()
	ctx, cancel := context.WithTimeout(o.Context(), patience)
	defer cancel()
	args = append([]string{
		o.program, "agent", "--node-name", name, "--data-dir", o.dir, "--api-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0",
		"--key-file", "key", "--issuers", "issuers.json", "--gossip-key-file", "gossip.key",
	}, args...)
	p, err := e2e.Start(ctx, e2e.Config{Args: args, Env: o.env(), Dir: o.dir})
	if err != nil {
		o.Fatalf("%s: %v", name, err)
	}
	o.Cleanup(p.Kill)
	o.nodes[name] = p
}

// run runs a command against a node and returns what it wrote and its exit code.
func (o *operator) run(node, stdin string, args ...string) (stdout, stderr string, code int) {
	o.Helper()
	ctx, cancel := context.WithTimeout(o.Context(), patience)
	defer cancel()
	if node != "" {
		args = append(args, "--addr", o.nodes[node].URL)
	}
	cmd := exec.CommandContext(ctx, o.program, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = o.env(), o.dir, strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		o.Fatalf("revokd %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// says runs a command and checks its exit code and that its output matches.
func (o *operator) says(node string, code int, pattern string, args ...string) string {
	o.Helper()
	stdout, stderr, got := o.run(node, "", args...)
	if got != code || !regexp.MustCompile("(?m)"+pattern).MatchString(stdout+stderr) {
		for name, p := range o.nodes {
			o.Logf("%s:\n%s", name, p.Stderr())
		}
		o.Fatalf("revokd %s on %s: exit code %d, want %d; it says:\n%s%s\nand not %s", strings.Join(args, " "), node, got, code, stdout, stderr, pattern)
	}
	return stdout
}

// until repeats a command until it ends with a code and its output matches.
func (o *operator) until(node string, code int, pattern string, args ...string) {
	o.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) { // between runs of the command
		stdout, stderr, got := o.run(node, "", args...)
		if got == code && regexp.MustCompile("(?m)"+pattern).MatchString(stdout+stderr) {
			return
		}
		if time.Now().After(deadline) {
			o.Fatalf("revokd %s on %s: exit code %d, want %d; it says:\n%s%s\nand never %s", strings.Join(args, " "), node, got, code, stdout, stderr, pattern)
		}
	}
}

func (o *operator) signal(s syscall.Signal, names ...string) {
	o.Helper()
	for _, name := range names {
		if err := o.nodes[name].Signal(s); err != nil {
			o.Fatal(err)
		}
	}
}

// three starts n1, n2 and n3, makes them voters and returns where n1 gossips.
func (o *operator) three() (seed string) {
	o.Helper()
	o.start("n1", "--bootstrap-expect", "1")
	var members struct {
		Members []struct{ GossipAddr string }
	}
	if err := json.Unmarshal([]byte(o.says("n1", 0, "", "members", "-o", "json")), &members); err != nil || len(members.Members) != 1 {
		o.Fatalf("%v %v", members, err)
	}
	seed = members.Members[0].GossipAddr

	o.start("n2", "--join", seed)
	o.start("n3", "--join", seed)
	o.until("n1", 0, `^n2 +alive +ready +no +yes +\S+ +[0-9a-f]{16} +0 +\S+ +\S+ +0 +0 `, "members")

	o.says("n1", 0, `^voters, list \d+: n1, n2; 2 of them are a quorum$`, "voters", "add", "n2")
	o.says("n2", 0, `^voters, list \d+: n1, n2, n3; 2 of them are a quorum$`, "voters", "add", "n3")
	o.until("n1", 0, `^n3 +alive +ready +yes +yes `, "members")
	return seed
}

// A cluster is formed, described, loses nodes and goes on, by what an operator types.
func TestClusterByCommand(t *testing.T) {
	o := newOperator(t)
	o.three()

	revoke := func(id string, args ...string) []string {
		return append([]string{"revoke", "--issuer", "https://id.example", "--jti", id, "--ttl", "1h"}, args...)
	}
	o.until("n1", 0, ` ack all confirmed n1, n2, n3$`, revoke("all", "--ack", "all")...)
	o.until("n1", 0, `^n2 .*[a-zµ]s +[0-9.]+(ms|µs|s)$`, "members")                   // its lag has been measured
	o.until("n1", 0, `^n2 +alive +ready +yes +yes +\S+ +[0-9a-f]{16} +1 `, "members") // and so has what it holds been counted
	o.says("n1", 0, `^voters +n1, n2, n3 \(list \d+, this node votes\)$`, "status")
	o.says("n1", 0, `^connected +2 nodes, 0 client replicas$`, "status")

	now := time.Now().Unix()
	claims := func(id string, args ...string) []string {
		return append([]string{"check", "--claims", fmt.Sprintf(`{"iss":"https://id.example","jti":%q,"iat":%d,"exp":%d}`, id, now, now+3600)}, args...)
	}
	o.until("n3", 0, `^active  by a view [0-9.]+(ms|µs|s) old$`, claims("other", "--freshness", "all", "--max-staleness", "10s")...)
	o.says("n3", 3, `^revoked  rule deny \{iss, jti\}`, claims("all")...)

	for _, want := range []string{
		`revokd_gossip_members{status="alive"} 3`, `revokd_replication_sessions{kind="node"} 2`, "revokd_voters 3", "revokd_votes 1",
		`revokd_peer_lag_seconds_bucket{peer="n2",le="30"} `, `revokd_peer_clock_offset_seconds{peer="n3"} `,
	} {
		if text := o.metrics("n1"); !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}

	o.rotate()

	// Fewer than asked for: the command fails, and says who has confirmed.
	o.signal(syscall.SIGSTOP, "n3")
	o.says("n1", 1, `^receipt: durability disk ack quorum confirmed n1, n2 unconfirmed n3$`, revoke("b", "--ack", "all", "--ack-timeout", "2s")...)
	o.says("n1", 1, `^{"error":{"code":"deadline_exceeded",.*"receipt":{"durability":"DURABILITY_DISK","ack":"ACK_LEVEL_QUORUM","confirmed":\["n1","n2"\],"unconfirmed":\["n3"\]`,
		revoke("c", "--ack", "all", "--ack-timeout", "2s", "-o", "json")...)
	again := []string{"revoke", "--issuer", "https://id.example", "--jti", "b2", "--expires-at", fmt.Sprint((now + 3600) * 1000), "--ack", "all", "--idempotency-key", "k1"}
	o.says("n1", 1, `^To wait for the others again, repeat the command with --idempotency-key k1\.$`, append(again, "--ack-timeout", "300ms")...)
	o.says("n1", 0, ` ack quorum confirmed n1, n2 unconfirmed n3$`, revoke("d")...)
	if err := os.WriteFile(filepath.Join(o.dir, "ids"), []byte(`{"iss":"https://id.example","jti":"e","exp":`+fmt.Sprint(now+3600)+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := o.run("n1", "", "revoke", "--from-file", "ids", "--ack", "all", "--ack-timeout", "2s")
	if code != 1 || stdout != "1 lines: 1 revoked, 0 covered, 0 already expired, 0 refused\n" || !strings.Contains(stderr, "receipt: durability disk ack quorum confirmed n1, n2 unconfirmed n3\n") {
		t.Errorf("exit code %d, %q %q", code, stdout, stderr)
	}
	o.says("n1", 0, "^durability disk ack quorum confirmed n1, n2 unconfirmed n3$", "revoke", "--from-file", "ids", "--ack", "quorum")

	// A minority: nothing is acknowledged at quorum, and checks turn unknown.
	o.signal(syscall.SIGSTOP, "n2")
	o.says("n1", 1, `^receipt: durability disk ack local confirmed n1 unconfirmed n2, n3$`, revoke("f", "--ack-timeout", "300ms")...)
	o.until("n1", 4, `^unknown  cause stale  by a view [0-9.]+(ms|s) old$`, claims("other", "--max-staleness", "300ms")...)
	o.says("n1", 0, `^active  by a view `, claims("other", "--freshness", "any")...)
	o.signal(syscall.SIGCONT, "n2", "n3")
	o.until("n1", 0, ` ack all confirmed n1, n2, n3$`, revoke("g", "--ack", "all")...)
	o.says("n1", 0, `^revoked .* ack all confirmed n1, n2, n3$`, again...) // as the first call: not covered

	// One leaves, for good.
	o.says("n3", 0, `^it is still a voter; if it does not come back, ask another node to: revokd voters remove n3$`, "leave")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if code, err := o.nodes["n3"].Wait(ctx); err != nil || code != 0 {
		t.Errorf("n3 ended with %d, %v:\n%s", code, err, o.nodes["n3"].Stderr())
	}
	o.until("n1", 0, `^n3 +left +`, "members")
	o.says("n1", 0, `: n1, n2; 2 of them are a quorum$`, "voters", "remove", "n3")

	// The last other one is lost: nobody is left to agree, and the operator says that he knows.
	o.nodes["n2"].Kill()
	o.says("n1", 1, `^revokd: the voters were not changed in time; .*: it waits for `, "voters", "remove", "n2", "--timeout", "2s")
	stdout, stderr, code = o.run("n1", "n2\n", "voters", "accept-loss", "n2")
	if code != 0 || !strings.Contains(stdout, ": n1; 1 of them are a quorum") || !strings.Contains(stderr, "What is lost: revocations that only n2 holds") {
		t.Errorf("exit code %d, %q %q", code, stdout, stderr)
	}
	o.audited("n1", `"method":"ChangeVoters",.*"change":"accept_loss","name":"n2","outcome":"done"`)
	o.says("n1", 0, "^revoked ", revoke("h", "--ack", "quorum")...)
}

// A machine is destroyed. Until the operator says that it is gone for good the keys are changed nowhere; then they are, and the others go on seeing each other.
func TestLostMember(t *testing.T) {
	o := newOperator(t)
	seed := o.three()
	o.nodes["n3"].Kill()
	if err := os.RemoveAll(filepath.Join(o.dir, "n3")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"n1", "n2"} {
		o.until(n, 0, `^n3 +dead `, "members")
	}

	const key, fresh = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "cd083b36b5f7db79"
	old := regexp.MustCompile(`(?m)^n1 +([0-9a-f]{16}) `).FindStringSubmatch(o.says("n1", 1, `^n3 +- +- +\S.*revokd members forget n3`, "keys", "list"))[1]
	ring := func(inUse string, others string) {
		t.Helper()
		for _, n := range []string{"n1", "n2"} {
			o.says(n, 0, `^`+n+` +`+inUse+` +`+others+` +-$`, "keys", "list", "--local")
		}
	}
	o.says("n1", 1, `^n2 +`+old+` +`+fresh+` +-$`, "keys", "install", "--key", key)
	o.says("n1", 1, `^revokd: the gossip keys were not changed on any node: .*n3 does not answer: .*revokd members forget n3`, "keys", "use", fresh)
	ring(old, fresh)
	o.says("n2", 1, `^revokd: the gossip key in use cannot be removed.*: n1 seals with it`, "keys", "remove", old)
	o.says("n2", 1, `^revokd: the gossip keys were not changed on any node: .*n3 does not answer: `, "keys", "remove", fresh)
	ring(old, fresh)
	added := regexp.MustCompile(`(?m)^([0-9a-f]{16}) +(yes|-) `).FindAllStringSubmatch(o.says("n1", 1, `not connected to this node.*: n3`, "keys", "fingerprint", "add", "--wait", "1s"), -1)
	if added != nil {
		t.Errorf("fingerprint keys %q", added)
	}

	o.says("n1", 1, `^revokd: the member was not forgotten, or not everywhere yet: for n1 it is alive; for n2 it is alive$`, "members", "forget", "n2")
	o.says("n1", 1, `: no node lists it$`, "members", "forget", "n4")
	o.says("n1", 1, `: for n1 it is a voter \(revokd voters remove n3\); for n2 `, "members", "forget", "n3")
	o.says("n1", 0, `: n1, n2; 2 of them are a quorum$`, "voters", "remove", "n3")
	o.until("n2", 0, `^voters, list \d+: n1, n2; `, "voters")
	fingerprints := func(change ...string) [][]string {
		t.Helper()
		return regexp.MustCompile(`(?m)^([0-9a-f]{16}) +(yes|-) `).FindAllStringSubmatch(o.says("n1", 0, "", append([]string{"keys", "fingerprint"}, change...)...), -1)
	}
	two := fingerprints("add")
	fingerprints("use", two[1][1])
	o.says("n1", 1, `: n3$`, "keys", "fingerprint", "drop", two[0][1], "--wait", "1s") // it may have revocations under it

	o.says("n1", 0, `^n3 counts as left on n1, n2$`, "members", "forget", "n3")
	o.says("n1", 0, `^n3 counts as left on n1, n2$`, "members", "forget", "n3")
	o.audited("n1", `"method":"Forget",.*"change":"forget","name":"n3","outcome":"done"`)
	for _, n := range []string{"n1", "n2"} {
		o.says(n, 0, `^n3 +left `, "members")
	}
	if one := fingerprints("drop", two[0][1]); len(one) != 1 || one[0][1] != two[1][1] {
		t.Errorf("fingerprint keys %q, then %q", two, one)
	}

	// One that a command reached by itself holds up those for all.
	o.says("n2", 0, `^n2 +`+fresh+` +`+old+` +-$`, "keys", "use", fresh, "--local")
	o.says("n2", 1, `^revokd: the gossip key in use cannot be removed.*: n1 seals with it$`, "keys", "remove", old)
	o.says("n2", 0, `^n2 +`+fresh+` +`+old+` +-$`, "keys", "list", "--local")
	o.says("n1", 0, `^n2 +`+fresh+` +`+old+` +-$`, "keys", "use", fresh)
	ring(fresh, old)
	o.says("n1", 0, `^n1 +`+fresh+` +- +-$`, "keys", "remove", old, "--local")
	o.says("n1", 1, `^revokd: the gossip keys were not changed on any node: n1 lacks it$`, "keys", "use", old)
	o.says("n1", 0, `^n2 +`+fresh+` +- +-$`, "keys", "remove", old) // what is gone from one goes from the others
	ring(fresh, "-")
	o.says("n2", 1, `no such gossip key`, "keys", "remove", old)

	// A new machine under the name is a member like any other, and hears of both through one.
	if err := os.WriteFile(filepath.Join(o.dir, "gossip.key"), []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.start("n3", "--join", seed)
	for _, n := range []string{"n1", "n2"} {
		o.until(n, 0, `^n3 +alive +ready +no +yes `, "members")
		o.says(n, 0, `^n1 +alive `, "members")
		o.says(n, 0, `^n2 +alive `, "members")
		if text := o.metrics(n); !strings.Contains(text, `revokd_gossip_refused_total{reason="key"} 0`) {
			t.Errorf("%s has refused gossip:\n%s", n, text)
		}
	}
	o.says("n1", 0, ` ack all confirmed n1, n2$`, "revoke", "--issuer", "https://id.example", "--jti", "a", "--ttl", "1h", "--ack", "all")
}

// audited wants a line in the audit of a node.
func (o *operator) audited(node, pattern string) {
	o.Helper()
	files, err := filepath.Glob(filepath.Join(o.dir, node, "audit", "*.jsonl"))
	if err != nil || len(files) == 0 {
		o.Fatalf("no audit: %v", err)
	}
	text, err := os.ReadFile(files[len(files)-1])
	if err != nil {
		o.Fatal(err)
	}
	if !regexp.MustCompile(pattern).Match(text) {
		o.Errorf("no %s in the audit:\n%s", pattern, text)
	}
}

// rotate changes the key of gossip on all nodes.
func (o *operator) rotate() {
	o.Helper()
	id := regexp.MustCompile(`(?m)^n1 +([0-9a-f]{16}) +- +-$`).FindStringSubmatch(o.says("n2", 0, `^n3 +[0-9a-f]{16} +- +-$`, "keys", "list"))
	if id == nil {
		o.Fatal("n1 is not in the list of keys")
	}
	fresh := regexp.MustCompile(`key id ([0-9a-f]{16})\n`).FindStringSubmatch(o.says("n1", 0, `^n3 +`+id[1]+` +[0-9a-f]{16} +-$`, "keys", "install"))
	o.says("n2", 0, `^n3 +`+fresh[1]+` +`+id[1]+` +-$`, "keys", "use", fresh[1])
	o.says("n3", 0, `^n1 +`+fresh[1]+` +- +-$`, "keys", "remove", id[1])
	o.says("n1", 1, `no such gossip key`, "keys", "use", id[1])
	o.says("n1", 0, `^n3 +alive `, "members")
}

func (o *operator) metrics(node string) string {
	o.Helper()
	res, err := http.Get(o.nodes[node].URL + "/metrics")
	if err != nil {
		o.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		o.Fatal(err)
	}
	return string(b)
}
