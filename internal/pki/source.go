package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/internal/clock"
)

// Config of a [Source]. Zero fields mean the defaults.
type Config struct {
	// CA has the authorities that are believed, in PEM: more than one while one replaces another. Required.
	CA string
	// Cert has our certificate, then those between it and the authority if there are any; Key has its key. Both or none:
	// without them a Source is good for clients only, which then show no certificate.
	Cert, Key string

	Clock    clock.Clock   // required: by it certificates expire
	Interval time.Duration // how often Run looks at the files. Default 10 s
	Logger   hclog.Logger  // nil: none
}

// Source makes TLS configurations of files, and follows the files.
type Source struct {
	cfg     Config
	mu      sync.Mutex // held while files are read
	current atomic.Pointer[material]
}

// material is what the files had, at one time.
type material struct {
	files  [3][]byte // CA, Cert, Key as they were read
	roots  *x509.CertPool
	cert   *tls.Certificate // nil: none
	id     Identity
	server *tls.Config
	begin  time.Time // of our certificate
	end    time.Time // of the first to end from it up to the authority
}

// Load reads the files and refuses what could not be used: see [Source.Reload]. It starts nothing.
func Load(cfg Config) (*Source, error) {
	switch {
	case cfg.Clock == nil:
		return nil, fmt.Errorf("clock: %w: required", ErrInvalid)
	case cfg.CA == "":
		return nil, fmt.Errorf("CA file: %w: required", ErrInvalid)
	case (cfg.Cert == "") != (cfg.Key == ""):
		return nil, fmt.Errorf("certificate and key: %w: both or none", ErrInvalid)
	case cfg.Interval < 0:
		return nil, fmt.Errorf("interval: %w: not negative", ErrInvalid)
	}
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	s := &Source{cfg: cfg}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Identity returns who our certificate says that we are; without one it is zero.
func (s *Source) Identity() Identity { return s.current.Load().id }

// NotAfter returns when the first certificate ends of ours and those that it needs; without one it is zero.
func (s *Source) NotAfter() time.Time { return s.current.Load().end }

// Reload reads the files, and takes all of them or none: then they stay as they were and the error says why. Our certificate must
// belong to the key, chain to an authority in CA, be valid now, and have the same identity as before. Connections that stand keep what they have.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.read()
	if m != nil {
		s.current.Store(m)
	}
	return err
}

// Check says whether [Source.Reload] would take the files as they are now. It changes nothing.
func (s *Source) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.read()
	return err
}

// read returns what the files have, or nil if that is what is in force.
func (s *Source) read() (*material, error) {
	var files [3][]byte
	for i, path := range []string{s.cfg.CA, s.cfg.Cert, s.cfg.Key} {
		if path == "" {
			continue
		}
		b, err := readFile(path)
		if err != nil {
			return nil, err
		}
		files[i] = b
	}
	old := s.current.Load()
	if old != nil && slices.EqualFunc(old.files[:], files[:], bytes.Equal) {
		return nil, nil
	}
	m, err := s.parse(files)
	if err != nil {
		return nil, err
	}
	if old != nil && old.id != m.id {
		return nil, fmt.Errorf("%s: %w: it was of %s and now is of %s; that needs a restart", s.cfg.Cert, ErrWrongPeer, old.id, m.id)
	}
	return m, nil
}

func (s *Source) parse(files [3][]byte) (*material, error) {
	m := &material{files: files, roots: x509.NewCertPool()}
	authorities, err := parseCerts(files[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.CA, err)
	}
	for _, c := range authorities {
		// As a root any certificate is believed, whoever has signed it.
		if !c.BasicConstraintsValid || !c.IsCA {
			return nil, fmt.Errorf("%s: %w: there is a certificate in it that is of no authority", s.cfg.CA, ErrFile)
		}
		m.roots.AddCert(c)
	}
	if s.cfg.Cert == "" {
		return m, nil
	}
	chain, err := parseCerts(files[1])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Cert, err)
	}
	pair, err := tls.X509KeyPair(files[1], files[2])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w: %w", s.cfg.Cert, s.cfg.Key, ErrFile, err)
	}
	m.cert = &pair
	if m.id, err = identityOf(chain[0]); err != nil {
		return nil, fmt.Errorf("%s: %w", s.cfg.Cert, err)
	}
	uses := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if m.id.Role == RoleNode {
		uses = append(uses, x509.ExtKeyUsageServerAuth)
	}
	m.begin = chain[0].NotBefore
	for _, use := range uses { // Verify takes any of a list
		verified, err := m.verify(chain, use, s.cfg.Clock.Now())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.cfg.Cert, err)
		}
		m.end = firstEnd(verified[0])
	}
	m.server = s.config()
	m.server.NextProtos = httpProtocols
	m.server.Certificates = []tls.Certificate{pair}
	m.server.ClientAuth = tls.VerifyClientCertIfGiven
	m.server.ClientCAs = m.roots
	m.server.VerifyConnection = m.acceptClient
	return m, nil
}

func firstEnd(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// verify checks that a certificate, the first of a list, chains to an authority.
func (m *material) verify(list []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) ([][]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range list[1:] {
		between.AddCert(c)
	}
	chains, err := list[0].Verify(x509.VerifyOptions{
		Roots: m.roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return chains, nil
}

// Run follows the files until ctx ends, and says in the log what it took, what it could not use, and when a certificate is about to expire.
func (s *Source) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Interval)
	defer tick.Stop()
	refused, warned := "", -1
	for {
		warned = s.warnOfEnd(warned)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		before := s.current.Load()
		err := s.Reload()
		switch {
		case err != nil && err.Error() != refused: // once for each reason
			refused = err.Error()
			s.cfg.Logger.Error("the TLS files cannot be used; those from before stay in force", "error", err)
		case err == nil:
			refused = ""
			if s.current.Load() != before {
				s.cfg.Logger.Info("TLS files taken anew", "not_after", s.NotAfter().UTC().Format(time.RFC3339))
			}
		}
	}
}

// warnOfEnd warns once for each day in the last tenth of our certificate's life, of thirty days at most. It takes and returns the days left at the last warning.
func (s *Source) warnOfEnd(warned int) int {
	const day = 24 * time.Hour
	m := s.current.Load()
	if m.cert == nil {
		return -1
	}
	left := m.end.Sub(s.cfg.Clock.Now())
	if left > min(m.end.Sub(m.begin)/10, 30*day) {
		return -1
	}
	days := max(0, int(left/day))
	if days != warned {
		s.cfg.Logger.Warn("the TLS certificate is about to expire, or has: nobody will connect any more", "not_after", m.end.UTC().Format(time.RFC3339))
	}
	return days
}

// httpProtocols are what a server offers; a client's transport adds its own.
var httpProtocols = []string{"h2", "http/1.1"}

// config is what servers and clients have in common.
func (s *Source) config() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, Time: s.cfg.Clock.Now, SessionTicketsDisabled: true}
}

// ServerConfig returns the configuration of an HTTP server. A client may show a certificate; one that is not of our cluster ends the handshake. The
// configuration follows the files. It needs Cert.
func (s *Source) ServerConfig() *tls.Config {
	c := s.config()
	c.NextProtos = httpProtocols
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.current.Load()
		if m.server == nil {
			return nil, fmt.Errorf("certificate: %w: a server needs one", ErrInvalid)
		}
		return m.server, nil
	}
	return c
}

// acceptClient decides about a certificate whose chain has been verified.
func (m *material) acceptClient(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	id, err := PeerIdentity(cs)
	if err != nil {
		return err
	}
	if id.Cluster != m.id.Cluster {
		return fmt.Errorf("%w: of cluster %s, want %s", ErrWrongPeer, id.Cluster, m.id.Cluster)
	}
	return nil
}

// ClientConfig returns the configuration to dial a node with: the one of that name, or any if it is empty. It follows the files, and shows our certificate if there
// is one. Whatever address was dialled does not matter: the node is recognised by its identity.
func (s *Source) ClientConfig(node string) *tls.Config {
	c := s.config()
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if m := s.current.Load(); m.cert != nil {
			return m.cert, nil
		}
		return new(tls.Certificate), nil
	}
	// The library would verify the chain and a host name. acceptNode verifies the chain and the identity, for every connection.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		return s.current.Load().acceptNode(cs, node, s.cfg.Clock.Now())
	}
	return c
}

func (m *material) acceptNode(cs tls.ConnectionState, node string, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: none was shown", ErrNoIdentity)
	}
	if _, err := m.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now); err != nil {
		return err
	}
	id, err := PeerIdentity(cs)
	switch {
	case err != nil:
		return err
	case id.Role != RoleNode:
		return fmt.Errorf("%w: its role is %s, want node", ErrWrongPeer, id.Role)
	case m.cert != nil && id.Cluster != m.id.Cluster:
		return fmt.Errorf("%w: of cluster %s, want %s", ErrWrongPeer, id.Cluster, m.id.Cluster)
	case node != "" && id.Name != node:
		return fmt.Errorf("%w: of node %s, want %s", ErrWrongPeer, id.Name, node)
	}
	return nil
}
