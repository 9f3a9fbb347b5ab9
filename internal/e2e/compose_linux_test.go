package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// composed is a cluster of containers that a test has started by the repository's docker-compose.yml.
type composed struct {
	*testing.T
	project string
	dir     string            // a copy of what docker-compose reads, with a binary built now
	env     []string          // of docker-compose
	compose []string          // the command
	ids     map[string]string // of the containers, by node
}

// composeNodes are the services of docker-compose.yml that are nodes.
var composeNodes = []string{"n1", "n2", "n3"}

// composeAuth is who calls the nodes: the files lie in the volume of secrets.
var composeAuth = []string{"--tls-ca=/secrets/all/admin/ca.crt", "--tls-cert=/secrets/all/admin/admin.crt", "--tls-key=/secrets/all/admin/admin.key"}

// newComposed prepares a project with a name, an image and a network of its own; REVOKD_NET (the first three bytes of its addresses) chooses another network. A
// machine without an engine is the only reason to skip. The test's end removes containers, network, volumes and image.
func newComposed(t *testing.T) *composed {
	t.Helper()
	c := &composed{T: t, project: fmt.Sprintf("revokdtest%d", os.Getpid()), dir: t.TempDir(), ids: map[string]string{}}
	if out, err := exec.Command("docker", "info", "--format", "{{.ServerVersion}}").CombinedOutput(); err != nil {
		t.Skipf("no Docker Engine answers: %v: %s", err, out)
	}
	for _, command := range [][]string{{"docker-compose"}, {"docker", "compose"}} {
		if exec.Command(command[0], append(command[1:], "version")...).Run() == nil {
			c.compose = command
			break
		}
	}
	if c.compose == nil {
		t.Skip("a Docker Engine answers, but there is neither docker-compose nor docker compose")
	}
	sweepComposed(c)
	network := os.Getenv("REVOKD_NET")
	if network == "" {
		network = fmt.Sprintf("172.29.%d", 80+os.Getpid()%160)
	}
	c.env = append(os.Environ(), "REVOKD_NET="+network, "REVOKD_PORT=", "REVOKD_IMAGE="+c.project)
	root := filepath.Join("..", "..")
	for _, path := range []string{"docker-compose.yml", "Dockerfile", ".dockerignore"} {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.dir, path), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(c.dir, "deploy"), os.DirFS(filepath.Join(root, "deploy"))); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-trimpath", "-o", c.binary(), "./cmd/revokd")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Cleanup(c.remove)
	return c
}

// sweepComposed removes what tests have left that were killed.
func sweepComposed(c *composed) {
	for project := range strings.FieldsSeq(c.docker("ps", "-a", "--format", `{{.Label "com.docker.compose.project"}}`)) {
		text, ours := strings.CutPrefix(project, "revokdtest")
		pid, err := strconv.Atoi(text)
		if !ours || err != nil || !errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			continue
		}
		for _, kind := range []struct{ list, remove []string }{
			{[]string{"ps", "-aq", "--filter", "label=com.docker.compose.project=" + project}, []string{"rm", "-f"}},
			{[]string{"volume", "ls", "-q", "--filter", "name=" + project + "_"}, []string{"volume", "rm"}},
			{[]string{"network", "ls", "-q", "--filter", "name=" + project + "_"}, []string{"network", "rm"}},
		} {
			if left := strings.Fields(c.docker(kind.list...)); len(left) > 0 {
				_ = exec.Command("docker", slices.Concat(kind.remove, left)...).Run() // another sweep may be at it too
			}
		}
		_ = exec.Command("docker", "rmi", project).Run()
	}
}

func (c *composed) binary() string { return filepath.Join(c.dir, "bin", "revokd") }

// remove takes everything away and says what is left.
func (c *composed) remove() {
	if c.Failed() {
		c.Log(c.try("logs", "--no-color", "--tail", "40"))
	}
	c.run("down", "--volumes", "--remove-orphans", "--timeout", "5")
	c.docker("rmi", c.project)
	for _, list := range [][]string{
		{"ps", "-aq", "--filter", "label=com.docker.compose.project=" + c.project},
		{"volume", "ls", "-q", "--filter", "name=" + c.project + "_"},
		{"network", "ls", "-q", "--filter", "name=" + c.project + "_"},
	} {
		if left := c.docker(list...); left != "" {
			c.Errorf("docker %s: there is still %s", strings.Join(list, " "), left)
		}
	}
}

func (c *composed) command(args ...string) *exec.Cmd {
	cmd := exec.Command(c.compose[0], slices.Concat(c.compose[1:], []string{"-p", c.project}, args)...)
	cmd.Dir, cmd.Env = c.dir, c.env
	return cmd
}

// run runs docker-compose.
func (c *composed) run(args ...string) {
	c.Helper()
	if out, err := c.command(args...).CombinedOutput(); err != nil {
		c.Fatalf("docker-compose %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (c *composed) try(args ...string) string {
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s\n%v", out, err)
	}
	return string(out)
}

// docker runs docker and returns what it prints.
func (c *composed) docker(args ...string) string {
	c.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		c.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// id is that of a node's container.
func (c *composed) id(node string) string {
	c.Helper()
	if id := c.ids[node]; id != "" {
		return id
	}
	id := c.docker("ps", "-aq", "--filter", "label=com.docker.compose.project="+c.project, "--filter", "label=com.docker.compose.service="+node)
	if id == "" || strings.Contains(id, "\n") {
		c.Fatalf("%s: containers %q", node, id)
	}
	c.ids[node] = id
	return id
}

// call runs a command of revokd in the container of a node and returns its exit code and output.
func (c *composed) call(node string, args ...string) (code int, out string) {
	c.Helper()
	// docker exec does what docker-compose exec does, without the second that the latter takes to start.
	cmd := exec.Command("docker", slices.Concat([]string{"exec", c.id(node), "/revokd"}, args, []string{"--addr=https://127.0.0.1:7950"}, composeAuth)...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), b.String()
}

func (c *composed) revoke(node, session string) {
	c.Helper()
	if code, out := c.call(node, "revoke", "--issuer", issuer, "--match", "sid="+session); code != 0 {
		c.Fatalf("revoke %s on %s: exit code %d: %s", session, node, code, out)
	}
}

// claims are those of a young token of a session.
func claims(session string) string {
	now := time.Now().Unix()
	return fmt.Sprintf(`{"iss":%q,"sub":"alice","sid":%q,"iat":%d,"exp":%d}`, issuer, session, now, now+600)
}

// Exit codes of revokd check.
const (
	composeActive  = 0
	composeRevoked = 3
	composeUnknown = 4
)

func (c *composed) check(node, session string, want int) {
	c.Helper()
	var code int
	var out string
	for deadline := time.Now().Add(2 * patience); ; {
		if code, out = c.call(node, "check", "--claims", claims(session)); code == want {
			return
		}
		if time.Now().After(deadline) {
			c.Fatalf("check %s on %s: exit code %d, want %d: %s", session, node, code, want, out)
		}
		time.Sleep(100 * time.Millisecond) // between polls, each of which is a process in a container
	}
}

// healthy waits until the engine says so of nodes.
func (c *composed) healthy(nodes ...string) {
	c.Helper()
	for _, node := range nodes {
		id := c.id(node)
		for deadline := time.Now().Add(2 * patience); ; {
			state := c.docker("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", id)
			if state == "running healthy" {
				break
			}
			if time.Now().After(deadline) {
				c.Fatalf("%s: %s", node, state)
			}
			time.Sleep(200 * time.Millisecond) // between polls: the engine looks at health only now and then
		}
	}
}

// TestCompose starts the cluster of docker-compose.yml as a user does, with an image made of a binary built now and nothing pulled; then takes one container after
// the other away, in a different way each.
func TestCompose(t *testing.T) {
	c := newComposed(t)
	c.run("up", "-d", "--build")
	c.healthy(composeNodes...)

	c.revoke("n1", "first")
	for _, node := range composeNodes {
		c.check(node, "first", composeRevoked)
		c.check(node, "other", composeActive)
	}
	c.fromOutside()

	c.run("pause", "n3")
	c.revoke("n1", "while-n3-is-paused")
	c.check("n2", "while-n3-is-paused", composeRevoked)
	c.run("unpause", "n3")
	c.check("n3", "while-n3-is-paused", composeRevoked)
	c.healthy("n3")

	c.docker("kill", "--signal", "KILL", c.id("n2"))
	c.revoke("n3", "while-n2-is-dead")
	c.check("n1", "while-n2-is-dead", composeRevoked)
	c.run("start", "n2")
	c.healthy("n2")
	c.check("n2", "while-n2-is-dead", composeRevoked)
	c.check("n2", "first", composeRevoked)

	c.cutOff()

	sessions := []string{"first", "while-n3-is-paused", "while-n2-is-dead", "while-n1-is-cut-off"}
	c.run("stop")
	for _, node := range composeNodes {
		if code := c.docker("inspect", "--format", "{{.State.ExitCode}}", c.id(node)); code != "0" {
			t.Errorf("%s: exit code %s after SIGTERM", node, code)
		}
	}
	c.run("down")
	clear(c.ids)
	c.run("up", "-d")
	c.healthy(composeNodes...)
	for _, node := range composeNodes {
		for _, session := range sessions {
			c.check(node, session, composeRevoked)
		}
		c.check(node, "other", composeActive)
	}
}

// fromOutside calls the port that is published on the machine, with the certificate of the admin.
func (c *composed) fromOutside() {
	c.Helper()
	dir := c.TempDir()
	args := []string{"check", "--claims", claims("first")}
	for flag, file := range map[string]string{"--tls-ca": "ca.crt", "--tls-cert": "admin.crt", "--tls-key": "admin.key"} {
		c.docker("cp", c.id("n1")+":/secrets/all/admin/"+file, filepath.Join(dir, file))
		args = append(args, flag, filepath.Join(dir, file))
	}
	_, port, _ := strings.Cut(c.docker("port", c.id("n1"), "7950/tcp"), ":")
	args = append(args, "--addr", "https://127.0.0.1:"+port)
	cmd := exec.Command(c.binary(), args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != composeRevoked {
		c.Fatalf("check from outside: %v: %s", err, out)
	}
}

// cutOff takes n1 off the network. It goes on saying Revoked of what it knows, says Unknown of all else as soon as its view is too old, and acknowledges nothing for a
// quorum; the others go on. Back on the network it catches up.
func (c *composed) cutOff() {
	c.Helper()
	network := c.project + "_cluster"
	addr := c.docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.id("n1"))
	c.docker("network", "disconnect", network, c.id("n1"))
	c.revoke("n2", "while-n1-is-cut-off")
	c.check("n3", "while-n1-is-cut-off", composeRevoked)
	if code, out := c.call("n1", "revoke", "--issuer", issuer, "--match", "sid=nobody-confirms"); code != 1 {
		c.Fatalf("revoke on n1, which is cut off: exit code %d: %s", code, out)
	}
	c.check("n1", "other", composeUnknown)
	c.check("n1", "while-n1-is-cut-off", composeUnknown)
	c.check("n1", "first", composeRevoked)
	c.docker("network", "connect", "--ip", addr, "--alias", "n1", network, c.id("n1"))
	c.check("n1", "while-n1-is-cut-off", composeRevoked)
	c.check("n1", "other", composeActive)
	c.check("n2", "nobody-confirms", composeRevoked) // it was durable on n1, and nothing is rolled back
	c.healthy("n1")
}
