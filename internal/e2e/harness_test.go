package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/history"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// patience bounds every wait of these tests.
const patience = 30 * time.Second

// issuer is that of a node started with --dev.
const issuer = "https://dev.revokd.test"

// programs are built once for each list of build tags.
var programs struct {
	mu   sync.Mutex
	dir  string
	path map[string]string
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.dir != "" {
		if err := os.RemoveAll(programs.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// program builds the command with build tags and returns its path.
func program(t *testing.T, tags string) string {
	t.Helper()
	programs.mu.Lock()
	defer programs.mu.Unlock()
	if path := programs.path[tags]; path != "" {
		return path
	}
	if programs.dir == "" {
		dir, err := os.MkdirTemp("", "revokd-e2e")
		if err != nil {
			t.Fatal(err)
		}
		programs.dir, programs.path = dir, map[string]string{}
	}
	path := filepath.Join(programs.dir, "revokd-"+tags)
	out, err := exec.Command("go", "build", "-tags", tags, "-o", path, "../../cmd/revokd").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	programs.path[tags] = path
	return path
}

// node is an agent that can be started again on its data.
type node struct {
	program string
	home    string
	env     []string
}

func newNode(t *testing.T, tags string, env ...string) *node {
	t.Helper()
	n := &node{program: program(t, tags), home: t.TempDir()}
	n.env = append([]string{"HOME=" + n.home, "PATH=" + os.Getenv("PATH")}, env...)
	return n
}

// start starts the agent, waits until it is ready and returns a client. The test's end kills it.
func (n *node) start(t *testing.T) (*e2e.Process, revokdv1connect.RevocationServiceClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{Args: []string{n.program, "agent", "--dev", "--api-addr", "127.0.0.1:0"}, Env: n.env, Dir: n.home})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p, client(t, p.URL)
}

// client speaks HTTP/2 without TLS.
func client(t *testing.T, url string) revokdv1connect.RevocationServiceClient {
	t.Helper()
	return revokdv1connect.NewRevocationServiceClient(h2c(t), url, connect.WithReadMaxBytes(16<<20))
}

func h2c(t *testing.T) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// saved adds a run to the totals of its lane.
func saved(t *testing.T, r history.Report) {
	t.Helper()
	r.Test = t.Name()
	if err := r.Save(); err != nil {
		t.Error(err)
	}
}
