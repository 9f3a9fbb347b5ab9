package e2e_test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// sent returns how many bytes have left a host, headers of all layers included.
func (h *host) sent() int {
	h.t.Helper()
	out, err := exec.Command("ip", "netns", "exec", h.ns, "cat", "/proc/net/dev").Output()
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if name, rest, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == "eth0" {
			if fields := strings.Fields(rest); len(fields) > 8 {
				n, err := strconv.Atoi(fields[8])
				if err != nil {
					h.t.Fatal(err)
				}
				return n
			}
		}
	}
	h.t.Fatalf("no eth0 in %s", out)
	return 0
}

// Five nodes that nobody uses send each other at most a kilobyte a second, sessions and gossip, TLS and all headers included.
// REVOKD_IDLE_SECONDS is for how long they are watched.
func TestIdleTraffic(t *testing.T) {
	seconds := fromEnv(t, "REVOKD_IDLE_SECONDS", 15)
	w := newNetwork(t, 5, "--max-staleness", "30s") // as it is unless somebody asks for another
	w.form()
	time.Sleep(5 * time.Second) // what a start leaves to say
	before, began := map[*member]int{}, time.Now()
	for m, h := range w.hosts {
		before[m] = h.sent()
	}
	time.Sleep(time.Duration(seconds) * time.Second) // the window that the rate is of
	lasted := time.Since(began).Seconds()
	for m, h := range w.hosts {
		rate := float64(h.sent()-before[m]) / lasted / float64(len(w.hosts)-1)
		t.Logf("%s sends %.0f bytes a second to each of its peers", m.name, rate)
		if rate < 50 {
			t.Errorf("%s says nothing", m.name)
		}
		if rate > 1024 {
			t.Errorf("%s sends %.0f bytes a second to each of its peers, limit 1024", m.name, rate)
		}
	}
}
