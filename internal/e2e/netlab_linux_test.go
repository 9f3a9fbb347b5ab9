package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// lab is a network of namespaces that a test has made: each host has one with one interface, eth0, and all of these meet at a
// bridge in another. Nothing of it touches the namespace that the test runs in.
type lab struct {
	t     *testing.T
	hub   string // the namespace of the bridge
	hosts []*host
}

// host is a machine of a lab.
type host struct {
	t    *testing.T
	ns   string
	addr netip.Addr
}

// namespaces is where iproute2 keeps the names of network namespaces.
const namespaces = "/run/netns"

// newLab makes a network without hosts. What a machine must have for it and does not is the reason of a skip.
func newLab(t *testing.T) *lab {
	t.Helper()
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("network namespaces need %s (Debian: iproute2, nftables): %v", tool, err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	sweepNamespaces()
	l := &lab{t: t, hub: fmt.Sprintf("revokd-%d-hub", os.Getpid())}
	if out, err := exec.Command("ip", "netns", "add", l.hub).CombinedOutput(); err != nil {
		t.Skipf("this machine makes no network namespaces: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", l.hub).Run() })
	l.ip("-n", l.hub, "link", "add", "br0", "type", "bridge")
	l.ip("-n", l.hub, "link", "set", "br0", "up")
	return l
}

// sweepNamespaces removes what tests have left that were killed.
func sweepNamespaces() {
	names, _ := filepath.Glob(filepath.Join(namespaces, "revokd-*"))
	for _, path := range names {
		name := filepath.Base(path)
		pid, err := strconv.Atoi(strings.Split(name, "-")[1])
		if err == nil && errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
			_ = exec.Command("ip", "netns", "del", name).Run()
		}
	}
}

func (l *lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// add makes the next host: 10.77.0.1, 10.77.0.2 and so on.
func (l *lab) add() *host {
	l.t.Helper()
	n := len(l.hosts) + 1
	h := &host{t: l.t, ns: fmt.Sprintf("revokd-%d-h%d", os.Getpid(), n), addr: netip.AddrFrom4([4]byte{10, 77, 0, byte(n)})}
	l.ip("netns", "add", h.ns)
	l.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", h.ns).Run() })
	port := fmt.Sprint("p", n)
	l.ip("-n", l.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", h.ns)
	l.ip("-n", l.hub, "link", "set", port, "master", "br0", "up")
	l.ip("-n", h.ns, "addr", "add", h.addr.String()+"/24", "dev", "eth0")
	l.ip("-n", h.ns, "link", "set", "eth0", "up")
	l.ip("-n", h.ns, "link", "set", "lo", "up")
	l.hosts = append(l.hosts, h)
	return h
}

// at returns an address of the host with a port.
func (h *host) at(port uint16) string { return netip.AddrPortFrom(h.addr, port).String() }

// command is what to put before a program so that it runs on the host. It is replaced by the program: the process is the program's.
func (h *host) command() []string { return []string{"ip", "netns", "exec", h.ns} }

// dial connects from the host, to itself or others. What connects to itself does not pass eth0, so no cut and no loss is in its way.
func (h *host) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = in(h.path(), func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// listen listens on the host.
func (h *host) listen(network, addr string) (ln net.Listener, err error) {
	err = in(h.path(), func() (err error) {
		ln, err = net.Listen(network, addr)
		return err
	})
	return ln, err
}

// path is that of the host's namespace.
func (h *host) path() string { return filepath.Join(namespaces, h.ns) }

// in runs f in a network namespace. A socket belongs to the namespace of the thread that makes it.
func in(path string, f func() error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	done := make(chan error, 1)
	go func() { // the thread ends with the goroutine, because it stays locked to it
		runtime.LockOSThread()
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// drop drops what comes in by eth0 and matches one of the rules of nft, and nothing else from then on.
func (h *host) drop(rules ...string) {
	h.t.Helper()
	var b strings.Builder
	b.WriteString("table inet cut\ndelete table inet cut\ntable inet cut { chain in { type filter hook input priority 0;\n")
	for _, r := range rules {
		fmt.Fprintf(&b, "iifname \"eth0\" %s counter drop\n", r)
	}
	b.WriteString("}\n}\n")
	cmd := exec.Command("ip", "netns", "exec", h.ns, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(b.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("nft: %v: %s", err, out)
	}
}

var counted = regexp.MustCompile(`counter packets (\d+)`)

// heal ends what drop began and returns how many packets were dropped.
func (h *host) heal() (dropped int) {
	h.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", h.ns, "nft", "list", "table", "inet", "cut").CombinedOutput()
	if err != nil {
		h.t.Fatalf("nft: %v: %s", err, out)
	}
	for _, m := range counted.FindAllSubmatch(out, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		dropped += n
	}
	if out, err := exec.Command("ip", "netns", "exec", h.ns, "nft", "delete", "table", "inet", "cut").CombinedOutput(); err != nil {
		h.t.Fatalf("nft: %v: %s", err, out)
	}
	return dropped
}
