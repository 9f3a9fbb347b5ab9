package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/pki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"revokd": main})
}

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// noNap is in the environment of the programs that are run: they are this test binary, and under the race detector each would sleep for a second as it ends.
var noNap = "GORACE=" + strings.TrimSpace("atexit_sleep_ms=0 "+os.Getenv("GORACE"))

// TestScript runs the program as people do. Besides the commands of testscript the scripts have
//
//	agent [flags]           starts an agent with --dev and a free port; sets REVOKD_ADDR
//	terminate, crash        ends it with SIGTERM and expects exit code 0; ends it with SIGKILL
//	hangup                  sends it SIGHUP and waits until it has said what became of that
//	ended                   waits until the agent has ended by itself, with exit code 0
//	log regexp...           the agent's log has it (or not, with !)
//	exits N program [args]  runs a program and expects that exit code
//	confirm [flags]         revokes what has to be confirmed
//	token NAME [flags]      sets a variable to a token of revokd dev token
//	login NAME [flags]      the same, again and again until the token is active: a user who logs in anew
//	claim NAME token name   sets a variable to a member of the token's header or payload
//	active, revoked, unknown token   what revokd check says by its exit code
//	http METHOD path [body] prints status and body of the answer
//	write FILE line...      writes a file, variables expanded
//	listen NAME             occupies a port and sets a variable to it
//	damage PATTERN N        flips a bit in frame N, from the end if negative, of the first file that matches
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "home")
			env.Setenv("HOME", home)
			env.Vars = append(env.Vars, noNap)
			env.Setenv("ISS", "https://dev.revokd.test")
			env.Setenv("SOON", strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10)) // an exp
			env.Values[current{}] = &scriptAgent{}
			return os.Mkdir(home, 0o700)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"agent": cmdAgent, "terminate": cmdTerminate, "hangup": cmdHangup, "confirm": cmdConfirm, "crash": cmdCrash, "ended": cmdEnded, "log": cmdLog, "exits": cmdExits, "token": cmdToken, "login": cmdLogin,
			"claim": cmdClaim, "active": cmdVerdict(exitOK), "revoked": cmdVerdict(exitRevoked), "unknown": cmdVerdict(exitUnknown),
			"http": cmdHTTP, "write": cmdWrite, "listen": cmdListen, "damage": cmdDamage,
		},
	})
}

// anyGossipPort is in the environment of agents: of several that start at once only one can have the default port.
const anyGossipPort = "REVOKD_GOSSIP_ADDR=127.0.0.1:0"

// current is the key of a script's agent.
type current struct{}

type scriptAgent struct{ process *e2e.Process }

func agentOf(ts *testscript.TestScript) *scriptAgent { return ts.Value(current{}).(*scriptAgent) }

func cmdAgent(ts *testscript.TestScript, _ bool, args []string) {
	a := agentOf(ts)
	if a.process != nil {
		ts.Fatalf("an agent is running")
	}
	program, err := exec.LookPath("revokd")
	ts.Check(err)
	env := []string{anyGossipPort}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "REVOKD_DATA_DIR", "REVOKD_LOG_LEVEL", "REVOKD_LOG_FORMAT", "REVOKD_NONSENSE", "GORACE"} {
		if v := ts.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var client *http.Client
	if i := slices.Index(args, "--tls-ca"); i >= 0 {
		source, err := pki.Load(pki.Config{CA: ts.MkAbs(args[i+1]), Clock: clock.System()})
		ts.Check(err)
		client = &http.Client{Transport: &http.Transport{TLSClientConfig: source.ClientConfig("")}}
	}
	a.process, err = e2e.Start(ctx, e2e.Config{
		HTTP: client,
		Args: append([]string{program, "agent", "--dev", "--api-addr", "127.0.0.1:0"}, args...), Env: env, Dir: ts.MkAbs("."),
	})
	ts.Check(err)
	p := a.process
	ts.Defer(p.Kill)
	ts.Setenv("REVOKD_ADDR", p.URL)
	_, err = io.WriteString(ts.Stdout(), p.Stdout())
	ts.Check(err)
}

func (a *scriptAgent) take(ts *testscript.TestScript) *e2e.Process {
	p := a.process
	if p == nil {
		ts.Fatalf("no agent is running")
	}
	a.process = nil
	return p
}

func cmdTerminate(ts *testscript.TestScript, _ bool, _ []string) {
	p := agentOf(ts).take(ts)
	ts.Check(p.Signal(syscall.SIGTERM))
	awaitEnd(ts, p)
}

func cmdHangup(ts *testscript.TestScript, _ bool, _ []string) {
	p := agentOf(ts).process
	if p == nil {
		ts.Fatalf("no agent is running")
	}
	said := func() int { return strings.Count(p.Stderr(), "reloaded") }
	before := said()
	ts.Check(p.Signal(syscall.SIGHUP))
	for deadline := time.Now().Add(patience); said() == before; time.Sleep(time.Millisecond) { // between polls: the log comes through a pipe
		if time.Now().After(deadline) {
			ts.Fatalf("nothing came of SIGHUP; log:\n%s", p.Stderr())
		}
	}
}

func cmdEnded(ts *testscript.TestScript, _ bool, _ []string) { awaitEnd(ts, agentOf(ts).take(ts)) }

func awaitEnd(ts *testscript.TestScript, p *e2e.Process) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	code, err := p.Wait(ctx)
	ts.Check(err)
	if code != exitOK {
		ts.Fatalf("the agent ended with exit code %d; stderr:\n%s", code, p.Stderr())
	}
	_, err = io.WriteString(ts.Stderr(), p.Stderr())
	ts.Check(err)
}

func cmdCrash(ts *testscript.TestScript, _ bool, _ []string) { agentOf(ts).take(ts).Kill() }

func cmdLog(ts *testscript.TestScript, neg bool, args []string) {
	p := agentOf(ts).process
	if p == nil {
		ts.Fatalf("no agent is running")
	}
	for _, text := range args {
		if !neg { // a pipe is between what it has said and us
			for deadline := time.Now().Add(patience); !strings.Contains(p.Stderr(), text) && time.Now().Before(deadline); {
				time.Sleep(time.Millisecond) // between polls
			}
		}
		if strings.Contains(p.Stderr(), text) == neg {
			ts.Fatalf("%q in the log: %v, want %v; log:\n%s", text, neg, !neg, p.Stderr())
		}
	}
}

func runFor(ts *testscript.TestScript, args ...string) int {
	err := ts.Exec(args[0], args[1:]...)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &exit):
		ts.Fatalf("%v", err)
	}
	return exit.ExitCode()
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if code := runFor(ts, args[1:]...); code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

func mint(ts *testscript.TestScript, args []string) string {
	program, err := exec.LookPath("revokd")
	ts.Check(err)
	cmd := exec.Command(program, append([]string{"dev", "token", "--addr", ts.Getenv("REVOKD_ADDR")}, args...)...)
	cmd.Env = append(os.Environ(), noNap)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		ts.Fatalf("revokd dev token: %v: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func cmdToken(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], mint(ts, args[1:]))
}

func cmdLogin(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		token := mint(ts, args[1:])
		if runFor(ts, "revokd", "check", "--token", token) == exitOK {
			ts.Setenv(args[0], token)
			return
		}
	}
	ts.Fatalf("no new token is active within %s", patience)
}

func cmdClaim(ts *testscript.TestScript, _ bool, args []string) {
	for _, part := range strings.Split(args[1], ".")[:2] {
		b, err := base64.RawURLEncoding.DecodeString(part)
		ts.Check(err)
		var members map[string]any
		ts.Check(json.Unmarshal(b, &members))
		if v, ok := members[args[2]]; ok {
			ts.Setenv(args[0], fmt.Sprint(v))
			return
		}
	}
	ts.Fatalf("the token has no %s", args[2])
}

func cmdVerdict(want int) func(ts *testscript.TestScript, neg bool, args []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		for _, token := range args {
			if code := runFor(ts, "revokd", "check", "--token", token); code != want {
				ts.Fatalf("exit code %d of check, want %d", code, want)
			}
		}
	}
}

func cmdHTTP(ts *testscript.TestScript, _ bool, args []string) {
	body := ""
	if len(args) > 2 {
		body = args[2]
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, args[0], ts.Getenv("REVOKD_ADDR")+args[1], strings.NewReader(body))
	ts.Check(err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n", res.StatusCode, text)
}

func cmdWrite(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(args[1:], "\n")+"\n"), 0o600))
}

func cmdListen(ts *testscript.TestScript, _ bool, args []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { ln.Close() })
	ts.Setenv(args[0], strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
}

func cmdDamage(ts *testscript.TestScript, _ bool, args []string) {
	names, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	if len(names) == 0 {
		ts.Fatalf("nothing matches %s", args[0])
	}
	b, err := os.ReadFile(names[0])
	ts.Check(err)
	const header = 32
	frames := []int{}
	for at := 0; ; {
		next := bytes.Index(b[at:], []byte{0x7f, 0xab, 0x46, '\n'})
		if next < 0 {
			break
		}
		frames = append(frames, at+next)
		at += next + 1
	}
	if n < 0 {
		n += len(frames)
	}
	if n < 0 || n >= len(frames) {
		ts.Fatalf("there are %d frames", len(frames))
	}
	b[frames[n]+header] ^= 1
	ts.Check(os.WriteFile(names[0], b, 0o600))
}

// cmdConfirm is a revoke that is asked about: the second call has the code that the first one was answered with.
func cmdConfirm(ts *testscript.TestScript, _ bool, args []string) {
	args = append([]string{"revoke"}, args...)
	if err := ts.Exec("revokd", args...); err == nil {
		ts.Fatalf("nothing was asked")
	}
	_, code, ok := strings.Cut(ts.ReadFile("stderr"), "--confirm ")
	if !ok {
		ts.Fatalf("no code in %s", ts.ReadFile("stderr"))
	}
	ts.Check(ts.Exec("revokd", append(args, "--confirm", strings.TrimSpace(code))...))
}
