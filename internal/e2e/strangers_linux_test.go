package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
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
	w.run("ca", "init", "--cluster", "lab", "--out", w.path("otherca"))
	w.file("other-gossip.key", base64.StdEncoding.EncodeToString(random(32)))
	w.file("other-fingerprint.key", hex.EncodeToString(random(16)))
	otherCA := func(name string) []string {
		w.run("ca", "issue", "node", name, "--ca", w.path("otherca"), "--out", w.path("othertls"))
		return []string{"--tls-cert", w.path("othertls/" + name + ".crt"), "--tls-key", w.path("othertls/" + name + ".key"), "--tls-ca", w.path("othertls/ca.crt")}
	}

	// It is there before the others are, and counts for nothing when they form their list of voters.
	early := w.stranger("authority", otherCA("authority")...)
	w.args = append(w.args, "--join", early.host.at(7956))
	w.form()
	write("first")
	early.says("certificate signed by unknown authority")
	w.say("certificate signed by unknown authority")
	early.end()

	for _, c := range []struct {
		name  string // of the node and of what is wrong
		flags []string
		says  string // what the node logs
		heard string // what the others log
	}{
		{"fingerprint", []string{"--key-file", w.path("other-fingerprint.key")}, "its fingerprint key is another one", "its fingerprint key is another one"},
		{"gossip", []string{"--gossip-key-file", w.path("other-gossip.key")}, "gossip key", "not sealed with a key of this ring"},
	} {
		s := w.stranger(c.name, c.flags...)
		s.says(c.says)
		w.say(c.heard)
		write(c.name)
		time.Sleep(3 * time.Second) // some rounds of joining and dialing
		write(c.name + "-later")
		s.end()
	}

	// Who has the key of gossip but no certificate takes the name of a node that is away. Nobody believes that this is n3 without its data.
	away := w.nodes[2]
	w.kill(away)
	s := w.stranger("n3", otherCA("n3")...)
	w.until("n3 is a member elsewhere", func() error {
		res, err := w.nodes[0].adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			return err
		}
		for _, p := range res.Msg.GetMembers() {
			if p.GetName() == "n3" && p.GetStatus() == "alive" && p.GetGossipAddr() == s.host.at(7956) {
				return nil
			}
		}
		return fmt.Errorf("%v", res.Msg.GetMembers())
	})
	time.Sleep(3 * time.Second) // some rounds of joining and dialing, in which somebody might believe it
	s.end()
	w.boot(away)
	w.until("n3 is back", w.connected)
	write("back")
	for _, m := range w.nodes {
		res, err := m.adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil || res.Msg.GetVoters().GetNumber() != 1 {
			t.Errorf("%s: somebody changed the voters: %v %v", m.name, res.Msg.GetVoters(), err)
		}
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
			if log := m.proc.Stderr(); strings.Count(log, "\n") > 200 || strings.Contains(log, "panic") {
				t.Errorf("%s has %d lines in its log:\n%.4000s", m.name, strings.Count(log, "\n"), log)
			}
		}
		t.Logf("bytes of noise: %v", sent)
	})
}

// stranger is a node that must not get in.
type stranger struct {
	w      *network
	name   string
	home   string
	host   *host
	client *http.Client
	proc   *e2e.Process
}

// stranger starts a node on a host of its own, with flags that replace those of a proper one.
func (w *network) stranger(name string, flags ...string) *stranger {
	w.t.Helper()
	s := &stranger{w: w, name: name, home: w.path("stranger-" + name)}
	m := &member{name: name}
	s.host = w.lab.add()
	w.hosts[m] = s.host
	if name != "n3" {
		w.run("ca", "issue", "node", name, "--ca", w.path("ca"), "--out", w.path("tls"))
	}
	args := append(w.flags(m), "--data-dir", s.home)
	delete(w.hosts, m)
	s.client = &http.Client{Transport: &http.Transport{DialContext: s.host.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // it runs here
	var err error
	s.proc, err = e2e.Start(w.t.Context(), e2e.Config{
		Args: append(args, flags...), Env: []string{"HOME=" + w.home, "PATH=" + os.Getenv("PATH")}, Dir: w.home, HTTP: s.client, Unready: true,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.proc.Kill)
	return s
}

// says waits until the stranger has logged why it is one.
func (s *stranger) says(text string) {
	s.w.t.Helper()
	s.w.until(s.name+" says "+text, func() error {
		if log := s.proc.Stderr(); !strings.Contains(log, text) {
			return fmt.Errorf("it says:\n%s", log)
		}
		return nil
	})
}

// say waits until one of the nodes has logged it.
func (w *network) say(text string) {
	w.t.Helper()
	w.until("one of the nodes says "+text, func() error {
		for _, m := range w.running() {
			if strings.Contains(m.proc.Stderr(), text) {
				return nil
			}
		}
		return errors.New("none does")
	})
}

// end fails unless the stranger has got nothing, and kills it.
func (s *stranger) end() {
	t := s.w.t
	t.Helper()
	res, err := s.client.Get(s.proc.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	s.client.CloseIdleConnections()
	if res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%s calls itself ready: %s", s.name, body)
	}
	for _, m := range s.w.running() {
		res, err := m.adm.Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range res.Msg.GetMembers() {
			if p.GetName() == s.name && p.GetConnected() {
				t.Errorf("%s has a session with %s", m.name, p)
			}
		}
		if voters := res.Msg.GetVoters().GetNames(); len(voters) != len(s.w.nodes) {
			t.Errorf("%s: the voters are %v", m.name, voters)
		}
	}
	s.proc.Kill()
	if dump := s.w.run("journal", "dump", filepath.Join(s.home, s.name)); len(dump) > 0 {
		t.Errorf("%s has records:\n%s", s.name, dump)
	}
	t.Logf("%s is not ready: %slogs:\n%s", s.name, body, s.proc.Stderr())
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
