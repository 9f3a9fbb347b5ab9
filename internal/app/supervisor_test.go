package app

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// patient is a node whose state a test sets.
type patient struct {
	waiting  []string
	replayed atomic.Bool
	stopped  atomic.Bool
	clock    int64
}

func (p *patient) Ready() []string { return p.waiting }
func (p *patient) Replayed() bool  { return p.replayed.Load() }
func (p *patient) Now() int64 {
	if !p.stopped.Load() {
		p.clock++
	}
	return p.clock
}

// A start ends when the journal has been read, though no other node has been met; a node whose clock stands says no longer that it is alive.
func TestSupervise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		node := &patient{waiting: []string{"no other node\nhas been met"}}
		var refuse atomic.Bool
		refuse.Store(true)
		heard := make(chan string, 200)
		done := make(chan struct{})
		go func() {
			defer close(done)
			supervise(ctx, 3*time.Second, node, func(lines ...string) bool {
				if refuse.Load() {
					return false
				}
				for _, line := range lines {
					heard <- line
				}
				return true
			})
		}()
		pass := func(d time.Duration) []string {
			time.Sleep(d) // virtual: that many beats of the watchdog, one a second
			synctest.Wait()
			var said []string
			for len(heard) > 0 {
				said = append(said, <-heard)
			}
			return said
		}
		pass(time.Second)
		refuse.Store(false)
		if got := pass(time.Second); !slices.Equal(got, []string{"STATUS=no other node has been met", "WATCHDOG=1"}) {
			t.Errorf("before the journal is read: %q", got)
		}
		node.replayed.Store(true)
		if got := pass(2 * time.Second); !slices.Equal(got, []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"}) {
			t.Errorf("then: %q", got)
		}
		node.stopped.Store(true)
		pass(2 * time.Second)
		if got := pass(time.Minute); len(got) > 0 {
			t.Errorf("its clock stands: %q", got)
		}
		node.stopped.Store(false)
		if got := pass(time.Second); !slices.Contains(got, "WATCHDOG=1") {
			t.Errorf("its clock goes on: %q", got)
		}
		cancel()
		<-done
	})
}

func TestSupervisorFromEnv(t *testing.T) {
	for _, c := range []struct {
		socket, usec, pid string
		want              Supervisor
		err               string
	}{
		{},
		{usec: "5000000"}, // nobody to tell
		{socket: "/run/notify", want: Supervisor{socket: "/run/notify"}},
		{socket: "@name", usec: "5000000", want: Supervisor{socket: "@name", watchdog: 5 * time.Second}},
		{socket: "/n", usec: "5000000", pid: "7", want: Supervisor{socket: "/n", watchdog: 5 * time.Second}},
		{socket: "/n", usec: "5000000", pid: "8", want: Supervisor{socket: "/n"}},
		{socket: "notify", err: "NOTIFY_SOCKET"},
		{socket: "/n", usec: "soon", err: "WATCHDOG_USEC"},
		{socket: "/n", usec: "999", err: "WATCHDOG_USEC"},
		{socket: "/n", usec: "86400000001", err: "WATCHDOG_USEC"},
	} {
		env := map[string]string{"NOTIFY_SOCKET": c.socket, "WATCHDOG_USEC": c.usec, "WATCHDOG_PID": c.pid}
		got, err := SupervisorFromEnv(func(name string) string { return env[name] }, 7)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.HasPrefix(err.Error(), c.err) {
			t.Errorf("%+v: %+v, %v", c, got, err)
		}
	}
}

// A real agent tells a real socket that it has started, that it lives, and that it ends.
func TestAgentTellsItsSupervisor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	r := run(t, AgentConfig{
		Dev: true, NodeName: "n1", APIAddr: "127.0.0.1:0", DataDir: t.TempDir(), Cluster: ClusterConfig{GossipAddr: "127.0.0.1:0"},
		Supervisor: Supervisor{socket: path, watchdog: 300 * time.Millisecond},
	})
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		if err := socket.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := socket.Read(b)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if slices.Contains(strings.Split(string(b[:n]), "\n"), want) {
				return
			}
		}
	}
	hear("READY=1")
	hear("WATCHDOG=1")
	r.end()
	hear("STOPPING=1")
}

// A node that is told to end says that it is leaving, for as long as its front goes on, and then good-bye: the others do not have to find out.
func TestGoodBye(t *testing.T) {
	start := func(name string, join ...string) *running {
		return run(t, AgentConfig{
			Dev: true, NodeName: name, APIAddr: "127.0.0.1:0", DataDir: t.TempDir(),
			Cluster: ClusterConfig{GossipAddr: "127.0.0.1:0", Join: join}, ShutdownDelay: 2 * time.Second,
		})
	}
	n1 := start("n1")
	n2 := start("n2", n1.url)
	members := revokdv1connect.NewClusterServiceClient(http.DefaultClient, n1.url)
	n2Is := func(status, state string) func() bool {
		return func() bool {
			res, err := members.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
			if err != nil {
				return false
			}
			return slices.ContainsFunc(res.Msg.GetMembers(), func(m *revokdv1.Member) bool {
				return m.GetName() == "n2" && m.GetStatus() == status && m.GetState() == state
			})
		}
	}
	eventually(t, "n2 is there", n2Is("alive", "ready"))
	n2.end()
	eventually(t, "n2 is leaving", n2Is("alive", "leaving"))
	res, err := http.Get(n2.url + "/healthz")
	if err != nil {
		t.Fatalf("it was said when the front had ended: %v", err)
	}
	res.Body.Close()
	eventually(t, "n2 has left", n2Is("left", "leaving"))
}
