package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/internal/transport"
)

// TLSConfig names the files of TLS: all, or none for a node that is reached on loopback only. The certificate is that of a node, of this name.
type TLSConfig struct{ Cert, Key, CA string }

func (c TLSConfig) enabled() bool { return c != TLSConfig{} }

func (c TLSConfig) validate() error {
	if c.enabled() && (c.Cert == "" || c.Key == "" || c.CA == "") {
		return errors.New("--tls-cert, --tls-key, --tls-ca: missing: all of them or none (revokd ca issue makes the files)")
	}
	return nil
}

// loadTLS reads the files. Other nodes look for the name in the certificate, so it must be ours.
func (a *agent) loadTLS() error {
	c := a.cfg.TLS
	if !c.enabled() {
		return nil
	}
	source, err := pki.Load(pki.Config{CA: c.CA, Cert: c.Cert, Key: c.Key, Clock: clock.System(), Logger: a.cfg.Logger.Named("tls")})
	if err != nil {
		return fmt.Errorf("--tls-cert, --tls-key, --tls-ca: %w", err)
	}
	switch id := source.Identity(); {
	case id.Role != pki.RoleNode:
		return fmt.Errorf("--tls-cert: not allowed: it is of a %s, and a node needs one of its own (revokd ca issue node %s)", id.Role, a.cfg.NodeName)
	case id.Name != a.cfg.NodeName:
		return fmt.Errorf("--tls-cert: conflict: it is of node %s, and --node-name is %s", id.Name, a.cfg.NodeName)
	}
	a.tls = source
	return nil
}

// readCredentials reads the file of credentials, if there is one.
func (a *agent) readCredentials() (*credentials.Set, error) {
	path := a.cfg.CredentialsFile
	if path == "" {
		return nil, nil
	}
	set, err := credentials.Load(path, clock.System().Now())
	if err != nil {
		return nil, fmt.Errorf("--credentials: %s: %w", path, err)
	}
	return set, nil
}

// peerTransport reaches the API of another node: with TLS of that one and no other, unless name is empty.
func (a *agent) peerTransport(name string) (client *http.Client, scheme string) {
	scheme = "http"
	if a.tls != nil {
		scheme = "https"
	} else {
		name = ""
	}
	a.peersMu.Lock()
	defer a.peersMu.Unlock()
	if c := a.peers[name]; c != nil {
		return c, scheme
	}
	var cfg *tls.Config
	if a.tls != nil {
		cfg = a.tls.ClientConfig(name)
	}
	if a.peers == nil {
		a.peers = map[string]*http.Client{}
	}
	a.peers[name] = &http.Client{Transport: transport.New(cfg, nil)}
	return a.peers[name], scheme
}

// flags are what the commands that are printed need to reach this node.
func (a *agent) flags() string {
	addr, scheme := a.listener.Addr().String(), "http"
	if a.tls == nil {
		if addr == DefaultAPIAddr {
			return ""
		}
		return " --addr http://" + addr
	}
	scheme = "https"
	if host, port, err := net.SplitHostPort(addr); err == nil && net.ParseIP(host).IsUnspecified() {
		addr = net.JoinHostPort("127.0.0.1", port)
	}
	c := a.cfg.TLS
	return fmt.Sprintf(" --addr %s://%s --tls-ca %s --tls-cert %s --tls-key %s", scheme, addr, shellWord(c.CA), shellWord(c.Cert), shellWord(c.Key))
}

// shellWord quotes what a shell would take apart.
func shellWord(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:,+@%="
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
