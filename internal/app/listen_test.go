package app

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// resolver answers for a few names; no test asks a real one.
func resolver(_ context.Context, _, host string) ([]netip.Addr, error) {
	switch host {
	case "localhost":
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}, nil
	case "lan.example":
		return []netip.Addr{netip.MustParseAddr("192.168.1.7")}, nil
	case "both.example":
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("203.0.113.9")}, nil
	case "empty.example":
		return nil, nil
	}
	return nil, errors.New("no such host")
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:7950":          "127.0.0.1:7950",
		"127.8.9.10:1":            "127.8.9.10:1",
		"localhost:0":             "127.0.0.1:0",
		"[::1]:7950":              "[::1]:7950",
		"[::ffff:127.0.0.1]:7950": "127.0.0.1:7950",
	} {
		got, err := loopback(t.Context(), addr, resolver)
		if err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", addr, got, err, want)
		}
	}
	for addr, want := range map[string]string{
		"0.0.0.0:7950":              "all interfaces",
		":7950":                     "all interfaces",
		"[::]:7950":                 "all interfaces",
		"[::ffff:0.0.0.0]:7950":     "all interfaces",
		"192.168.1.7:7950":          "this means 192.168.1.7",
		"[2001:db8::1]:7950":        "this means 2001:db8::1",
		"[fe80::1%eth0]:7950":       "this means fe80::1",
		"[::ffff:192.168.1.7]:7950": "this means 192.168.1.7",
		"169.254.169.254:80":        "this means 169.254.169.254",
		"lan.example:7950":          "this means 192.168.1.7",
		"both.example:7950":         "this means 203.0.113.9",
		"empty.example:7950":        "does not resolve",
		"nowhere.example:7950":      "does not resolve",
		"127.0.0.1":                 "malformed",
		"127.0.0.1:":                "malformed",
		"127.0.0.1:65536":           "malformed",
		"127.0.0.1:http":            "malformed",
		"":                          "malformed",
		"0x7f000001:7950":           "does not resolve",
		"0:7950":                    "does not resolve",
	} {
		got, err := loopback(t.Context(), addr, resolver)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v; want %q", addr, got, err, want)
		}
	}
}

func TestListenRefusesNonLoopback(t *testing.T) {
	for _, dev := range []bool{false, true} {
		ln, err := listen(t.Context(), "0.0.0.0:0", dev, dev, resolver)
		if err == nil {
			ln.Close()
			t.Fatal("it listens on all interfaces")
		}
		if !strings.Contains(err.Error(), "give --tls-cert, --tls-key and --tls-ca") {
			t.Errorf("the error does not say why: %v", err)
		}
	}
}

// With TLS any address will do.
func TestAnywhere(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:7950":   "127.0.0.1:7950",
		"0.0.0.0:7950":     "0.0.0.0:7950",
		":7950":            "[::]:7950",
		"192.168.1.7:0":    "192.168.1.7:0",
		"lan.example:7950": "192.168.1.7:7950",
	} {
		got, err := anywhere(t.Context(), addr, resolver)
		if err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", addr, got, err, want)
		}
	}
	for _, addr := range []string{"127.0.0.1", "127.0.0.1:http", "empty.example:1", "nowhere.example:1"} {
		if got, err := anywhere(t.Context(), addr, resolver); err == nil {
			t.Errorf("%s: %s", addr, got)
		}
	}
	ln, err := listen(t.Context(), "0.0.0.0:0", false, true, resolver)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
}

func TestTakenPort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	if ln, err := listen(t.Context(), addr, false, false, resolver); err == nil {
		ln.Close()
		t.Error("a taken port was replaced without --dev")
	}
	ln, err := listen(t.Context(), addr, true, false, resolver)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := ln.Addr().(*net.TCPAddr)
	if got.String() == addr || !got.IP.IsLoopback() {
		t.Errorf("listens on %s", got)
	}
}

// A node that listens beyond loopback without TLS says so at once and again, until it ends.
func TestInsecureIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logged := new(lockedBuffer)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		a := &agent{cfg: AgentConfig{Logger: hclog.New(&hclog.LoggerOptions{Output: logged})}, listener: ln}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { a.warnInsecure(ctx, insecureEvery); close(ended) }()
		for hours := range 3 {
			synctest.Wait()
			if n := strings.Count(logged.String(), "insecure: whoever reaches the API"); n != hours+1 {
				t.Errorf("after %d hours %d lines", hours, n)
			}
			time.Sleep(time.Hour) // of the bubble
		}
		cancel()
		<-ended
	})
	for name, cfg := range map[string]AgentConfig{
		"dev": {Dev: true, DataDir: "d", Insecure: true},
		"TLS": {DataDir: "d", NodeName: "n", KeyFile: "k", IssuersFile: "i", Insecure: true, TLS: TLSConfig{"a", "b", "c"}},
	} {
		if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), "--insecure: conflict") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
