package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/e2e"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// A node that lacks one of the secrets gets no record and is told why; the others say it too, and go on. Noise on the ports changes nothing.
func TestStrangers(t *testing.T) {
	w := newNetwork(t, 3)
	write := func(id string) {
		t.Helper()
		for _, m := range w.nodes {
			if receipt, err := w.revoke(t.Context(), m, id+m.name, &revokdv1.WriteOptions{Ack: revokdv1.AckLevel_ACK_LEVEL_ALL}); err != nil {
				t.Fatalf("%s: %v %v", m.name, receipt, err)
			}
		}
	}
	write("first")
	w.run("ca", "init", "--cluster", "lab", "--out", w.path("otherca"))
	w.run("ca", "issue", "node", "authority", "--ca", w.path("otherca"), "--out", w.path("othertls"))
	w.file("other-gossip.key", base64.StdEncoding.EncodeToString(random(32)))
	w.file("other-fingerprint.key", hex.EncodeToString(random(16)))
	for _, stranger := range []struct {
		name  string // of the node and of what is wrong
		flags []string
		says  string // what the node logs
		heard string // what the others log
	}{
		{
			"authority", []string{"--tls-cert", w.path("othertls/authority.crt"), "--tls-key", w.path("othertls/authority.key"), "--tls-ca", w.path("othertls/ca.crt")},
			"certificate", "certificate",
		},
		{"fingerprint", []string{"--key-file", w.path("other-fingerprint.key")}, "another cluster", "another cluster"},
		{"gossip", []string{"--gossip-key-file", w.path("other-gossip.key")}, "gossip key", ""},
	} {
		t.Run(stranger.name, func(t *testing.T) {
			outer := w.t
			w.t, w.lab.t = t, t
			defer func() { w.t, w.lab.t = outer, outer }()
			m := w.add(stranger.name)
			defer delete(w.hosts, m)
			h := w.hosts[m]
			client := &http.Client{Transport: &http.Transport{DialContext: h.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // whoever it is: it runs here
			defer client.CloseIdleConnections()
			p, err := e2e.Start(t.Context(), e2e.Config{
				Args: append(append(w.flags(m), "--bootstrap-expect", "0"), stranger.flags...),
				Env:  []string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}, Dir: w.home, HTTP: client, Unready: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Kill()
			w.until("it says why", func() error {
				if !strings.Contains(logOf(p), stranger.says) {
					return fmt.Errorf("it logs:\n%s", logOf(p))
				}
				return nil
			})
			if stranger.heard != "" {
				w.until("the others say why", func() error {
					for _, m := range w.nodes {
						if strings.Contains(logOf(m.proc), stranger.heard) {
							return nil
						}
					}
					return fmt.Errorf("%s logs:\n%s", w.nodes[0].name, logOf(w.nodes[0].proc))
				})
			}
			write(stranger.name)
			time.Sleep(3 * time.Second) // some rounds of joining and dialing
			write(stranger.name + "-later")
			res, err := client.Get(p.URL + "/readyz")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("it calls itself ready: %s", body)
			}
			for _, other := range w.nodes {
				res, err := other.adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
				if err != nil {
					t.Fatal(err)
				}
				for _, member := range res.Msg.GetMembers() {
					if member.GetName() == m.name && (member.GetConnected() || member.GetVoter()) {
						t.Errorf("%s has a session with it: %s", other.name, member)
					}
				}
			}
			p.Kill()
			if dump := w.run("journal", "dump", w.path(m.name)); len(dump) > 0 {
				t.Errorf("it has records:\n%s", dump)
			}
			t.Logf("ready: %s; it logs:\n%s\n%s logs:\n%s", body, logOf(p), w.nodes[0].name, logOf(w.nodes[0].proc))
		})
	}
	t.Run("noise", func(t *testing.T) {
		from := w.lab.add()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		sent := make([]int, 9)
		for i, m := range w.nodes {
			h := w.hosts[m]
			for j, target := range []struct{ network, addr string }{{"tcp", h.at(7950)}, {"tcp", h.at(7956)}, {"udp", h.at(7956)}} {
				running.Go(func() {
					for ctx.Err() == nil {
						conn, err := from.dial(ctx, target.network, target.addr)
						if err != nil {
							continue
						}
						sent[3*i+j] += noise(conn)
					}
				})
			}
		}
		began := time.Now()
		for i := 0; time.Since(began) < 5*time.Second; i++ {
			write(fmt.Sprintf("noise-%d-", i))
		}
		cancel()
		running.Wait()
		for i, n := range sent {
			if n < 100_000 {
				t.Errorf("only %d bytes of noise to port %d", n, i)
			}
		}
		if err := w.connected(); err != nil {
			t.Error(err)
		}
		for _, m := range w.nodes {
			if log := logOf(m.proc); strings.Count(log, "\n") > 200 || strings.Contains(log, "panic") {
				t.Errorf("%s has %d lines in its log:\n%.4000s", m.name, strings.Count(log, "\n"), log)
			}
		}
		t.Logf("bytes of noise: %v", sent)
	})
}

// noise sends random bytes of random sizes until the other side has had enough, or for a moment, and returns how many.
func noise(conn net.Conn) (sent int) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	for range 20 {
		n, err := conn.Write(random(1 + int(random(1)[0])*5))
		sent += n
		if err != nil {
			break
		}
	}
	return sent
}
