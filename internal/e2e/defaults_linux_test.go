package e2e_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/e2e"
)

// sockets returns the addresses at which a process listens or takes packets, from what the kernel says of its files.
func sockets(t *testing.T, pid int) (found []netip.AddrPort) {
	t.Helper()
	inodes := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("no files of %d: %v", pid, err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, "socket:[") {
			inodes[strings.Trim(to, "socket:[]")] = true
		}
	}
	const listening, unconnected = "0A", "07"
	for file, state := range map[string]string{"tcp": listening, "tcp6": listening, "udp": unconnected, "udp6": unconnected} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || fields[3] != state || !inodes[fields[9]] {
				continue
			}
			found = append(found, kernelAddr(t, fields[1]))
		}
	}
	return found
}

// kernelAddr reads an address as the kernel prints it: words of four bytes, each in the order of the machine.
func kernelAddr(t *testing.T, text string) netip.AddrPort {
	t.Helper()
	host, port, _ := strings.Cut(text, ":")
	b, err := hex.DecodeString(host)
	if err != nil {
		t.Fatal(err)
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	ip, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		t.Fatalf("%s is no address", text)
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(n))
}

// plain returns the arguments of a node that is not for development and has no TLS.
func (n *node) plain(t *testing.T) []string {
	t.Helper()
	put := func(name, text string) string {
		path := filepath.Join(n.home, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return []string{
		"--issuers", put("issuers.json", `{"issuers":[{"issuer":"https://id.example","discovery":true}]}`),
		"--key-file", put("key", "000102030405060708090a0b0c0d0e0f"), "--node-name", "n1", "--data-dir", filepath.Join(n.home, "data"),
	}
}

// TestDefaultsListenOnLoopback: the real program, started with nothing said about addresses, can be reached from this machine only.
func TestDefaultsListenOnLoopback(t *testing.T) {
	for name, args := range map[string]func(*node) []string{
		"dev":       func(*node) []string { return []string{"--dev", "--api-addr", "127.0.0.1:0"} }, // the default port may be taken here
		"dev, host": func(*node) []string { return []string{"--dev", "--api-addr", "localhost:0"} },
		"alone":     func(n *node) []string { return append(n.plain(t), "--api-addr", "127.0.0.1:0") },
		"a cluster": func(n *node) []string {
			return append(n.plain(t), "--api-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--bootstrap-expect", "1")
		},
		"profiles": func(*node) []string {
			return []string{"--dev", "--api-addr", "127.0.0.1:0", "--pprof-addr", "127.0.0.1:0"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "")
			p := startAgent(t, n, nil, args(n)...)
			found := sockets(t, p.Pid())
			if len(found) == 0 {
				t.Fatal("it listens nowhere")
			}
			for _, at := range found {
				if !at.Addr().IsLoopback() {
					t.Errorf("it listens at %s", at)
				}
			}
			// The one that it says it listens at is among them: the list is the right one.
			_, port, err := net.SplitHostPort(strings.TrimPrefix(p.URL, "http://"))
			if err != nil || !slices.ContainsFunc(found, func(at netip.AddrPort) bool { return strconv.Itoa(int(at.Port())) == port }) {
				t.Errorf("%s is not among %v", p.URL, found)
			}
		})
	}
	// The ports that stand in the help are of loopback, too.
	help := command(t, newNode(t, ""), "agent", "--help")
	for _, m := range regexp.MustCompile(`\(default "?([0-9a-z.:\[\]]+:[0-9]+)`).FindAllStringSubmatch(help, -1) {
		if at, err := netip.ParseAddrPort(m[1]); err != nil || !at.Addr().IsLoopback() {
			t.Errorf("the default %s: %v", m[1], err)
		}
	}
}

// TestBeyondLoopbackIsRefused: every flag that opens an address refuses one that others can reach unless what protects it is there, and says what to do.
func TestBeyondLoopbackIsRefused(t *testing.T) {
	n := newNode(t, "")
	rows := map[string]struct {
		with []string
		says string // what to do
	}{
		"--api-addr":    {nil, "give --tls-cert, --tls-key and --tls-ca (revokd ca makes the files), or a loopback address (127.0.0.1, ::1, localhost); --insecure does it without"},
		"--gossip-addr": {[]string{"--api-addr", "127.0.0.1:0"}, "--gossip-key-file"},
		"--pprof-addr":  {[]string{"--api-addr", "127.0.0.1:0"}, "a loopback address (127.0.0.1, ::1, localhost)"},
	}
	// Whoever adds a flag that opens an address is reminded to add a row.
	flags := regexp.MustCompile(`(?m)^ +(--[a-z-]*addr) `).FindAllStringSubmatch(command(t, n, "agent", "--help"), -1)
	if len(flags) < len(rows) {
		t.Errorf("flags of addresses: %v", flags)
	}
	for _, f := range flags {
		if _, ok := rows[f[1]]; !ok {
			t.Errorf("%s has no row", f[1])
		}
	}
	for flag, row := range rows {
		for _, addr := range append(own(t), "0.0.0.0:0", "[::]:0", ":0") {
			args := append(append(append([]string{"agent"}, n.plain(t)...), row.with...), flag, addr)
			out, code := commandFails(t, n, args...)
			if flag == "--gossip-addr" && addr == ":0" {
				continue // it wants an ip
			}
			if code == 0 || !strings.Contains(out, flag) || !strings.Contains(out, row.says) {
				t.Errorf("%s %s: exit code %d: %s", flag, addr, code, out)
			}
		}
	}
	// What overrides it is seen. It listens in a network of its own, which nobody reaches.
	apart := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid := os.Geteuid(); uid != 0 {
		apart.Cloneflags |= syscall.CLONE_NEWUSER
		apart.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
	}
	p := startAgent(t, n, apart, append(n.plain(t), "--insecure", "--api-addr", "0.0.0.0:0")...)
	found := sockets(t, p.Pid())
	if len(found) != 1 || !found[0].Addr().IsUnspecified() {
		t.Errorf("with --insecure: %v", found)
	}
	waitFor(t, "it says so", func() error { // its log comes through a pipe
		if log := p.Stderr(); !strings.Contains(log, "insecure: whoever reaches the API") {
			return errors.New(log)
		}
		return nil
	})
}

// own is an address of this machine that is not of loopback, if it has one.
func own(t *testing.T) (addrs []string) {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return []string{netip.AddrPortFrom(p.Addr(), 0).String()}
		}
	}
	return nil
}

func startAgent(t *testing.T, n *node, apart *syscall.SysProcAttr, args ...string) *e2e.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{Args: append([]string{n.program, "agent"}, args...), Env: n.env, Dir: n.home, Sys: apart, Unready: apart != nil})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func command(t *testing.T, n *node, args ...string) string {
	t.Helper()
	out, code := commandFails(t, n, args...)
	if code != 0 {
		t.Fatalf("%v: %s", args, out)
	}
	return out
}

// commandFails runs the program for at most a few seconds: an agent that starts after all is ended.
func commandFails(t *testing.T, n *node, args ...string) (out string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.program, args...)
	cmd.Env, cmd.Dir = n.env, n.home
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // which an agent takes as its end, with 0
	b, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}
