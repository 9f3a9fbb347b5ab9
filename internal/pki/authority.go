package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/revokd/revokd/internal/atomicfile"
)

// Lifetimes unless told otherwise.
const (
	AuthorityLifetime   = 10 * 365 * 24 * time.Hour
	CertificateLifetime = 365 * 24 * time.Hour
)

// backdated is how long before it was made a certificate is valid, for machines whose clocks are behind.
const backdated = time.Hour

// Names of the authority's files.
const (
	AuthorityCert = "ca.crt"
	AuthorityKey  = "ca.key"
)

const (
	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"
)

// maxFile bounds what is read of one file: a bundle of authorities has a few kilobytes.
const maxFile = 1 << 20

// Authority issues the certificates of one cluster.
type Authority struct {
	cluster string
	cert    *x509.Certificate
	pem     []byte
	key     *ecdsa.PrivateKey
}

// Cluster returns the name of the cluster.
func (a *Authority) Cluster() string { return a.cluster }

// Create makes the authority of a cluster in a directory, which is made if need be; a lifetime of 0 is [AuthorityLifetime]. One that is there is
// replaced only with force, and makes every certificate that it has issued worthless; otherwise the error matches [os.ErrExist].
// A key without a certificate is what an interrupted call has left, and is used.
func Create(dir, cluster string, lifetime time.Duration, force bool, now time.Time) (*Authority, error) {
	if err := (Identity{cluster, RoleNode, "n"}).validate(); err != nil {
		return nil, err
	}
	if lifetime == 0 {
		lifetime = AuthorityLifetime
	}
	if lifetime < 0 {
		return nil, fmt.Errorf("lifetime: %w: more than 0", ErrInvalid)
	}
	a := &Authority{cluster: cluster}
	certFile, keyFile := filepath.Join(dir, AuthorityCert), filepath.Join(dir, AuthorityKey)
	err := makePair(certFile, keyFile, force, func(key *ecdsa.PrivateKey) ([]byte, error) {
		serial, err := serialNumber()
		if err != nil {
			return nil, err
		}
		t := &x509.Certificate{
			SerialNumber: serial, Subject: pkix.Name{Organization: []string{cluster}, CommonName: "revokd CA"},
			NotBefore: now.Add(-backdated), NotAfter: now.Add(lifetime),
			IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
		}
		a.key = key
		a.cert, a.pem, err = sign(t, t, key, key)
		return a.pem, err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Open reads the authority in a directory.
func Open(dir string) (*Authority, error) {
	certFile := filepath.Join(dir, AuthorityCert)
	b, err := readFile(certFile)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	keyFile := filepath.Join(dir, AuthorityKey)
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	a := &Authority{cert: certs[0], pem: b, key: key}
	if len(a.cert.Subject.Organization) == 1 {
		a.cluster = a.cert.Subject.Organization[0]
	}
	switch {
	case !a.cert.IsCA || !validCluster.MatchString(a.cluster):
		return nil, fmt.Errorf("%s: %w: it is not of an authority made by revokd ca init", certFile, ErrFile)
	case !key.PublicKey.Equal(a.cert.PublicKey):
		return nil, fmt.Errorf("%s: %w: it does not belong to %s", keyFile, ErrFile, AuthorityCert)
	}
	return a, nil
}

// Request is what a certificate is asked for.
type Request struct {
	Role     Role
	Name     string
	Hosts    []string      // of a node: names and addresses under which clients other than revokd reach it; those of loopback are always in
	Lifetime time.Duration // 0: CertificateLifetime
}

// Issued are the files of a certificate.
type Issued struct {
	Identity        Identity
	NotAfter        time.Time
	Cert, Key, Root string // paths
}

// Issue makes NAME.crt and NAME.key in a directory, which is made if need be, and copies the authority's certificate there. Files that are there are replaced only
// with force, the key before the certificate; otherwise the error matches [os.ErrExist]. A key without a certificate is used.
func (a *Authority) Issue(dir string, r Request, force bool, now time.Time) (Issued, error) {
	t, err := a.template(r, now)
	if err != nil {
		return Issued{}, err
	}
	out := Issued{
		Identity: Identity{a.cluster, r.Role, r.Name}, NotAfter: t.NotAfter.UTC().Truncate(time.Second),
		Cert: filepath.Join(dir, r.Name+".crt"), Key: filepath.Join(dir, r.Name+".key"), Root: filepath.Join(dir, AuthorityCert),
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Issued{}, err
	}
	// First, so that what is refused here leaves no certificate behind.
	if err := a.putRoot(out.Root, force); err != nil {
		return Issued{}, err
	}
	err = makePair(out.Cert, out.Key, force, func(key *ecdsa.PrivateKey) ([]byte, error) {
		_, b, err := sign(t, a.cert, key, a.key)
		return b, err
	})
	if err != nil {
		return Issued{}, err
	}
	return out, nil
}

// putRoot copies the authority's certificate. A file that has it, perhaps among others, is left as it is.
func (a *Authority) putRoot(path string, force bool) error {
	b, err := readFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return atomicfile.Create(path, a.pem)
	case err != nil:
		return err
	case bytes.Contains(b, bytes.TrimSpace(a.pem)):
		return nil
	case !force:
		return fmt.Errorf("%s has another authority: %w", path, os.ErrExist)
	}
	return atomicfile.Write(path, a.pem)
}

var validHost = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

func (a *Authority) template(r Request, now time.Time) (*x509.Certificate, error) {
	id := Identity{a.cluster, r.Role, r.Name}
	if err := id.validate(); err != nil {
		return nil, err
	}
	if strings.EqualFold(r.Name, "ca") {
		return nil, fmt.Errorf("name: %w: ca.crt and ca.key are the authority's files", ErrInvalid)
	}
	if r.Lifetime == 0 {
		r.Lifetime = CertificateLifetime
	}
	ends := now.Add(r.Lifetime)
	switch {
	case r.Lifetime < 0:
		return nil, fmt.Errorf("lifetime: %w: more than 0", ErrInvalid)
	case ends.After(a.cert.NotAfter):
		return nil, fmt.Errorf("lifetime: %w: not beyond that of the authority, which ends %s", ErrInvalid, a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(id.String())
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{a.cluster}, CommonName: r.Name},
		NotBefore: now.Add(-backdated), NotAfter: ends, URIs: []*url.URL{uri},
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if r.Role != RoleNode {
		if len(r.Hosts) > 0 {
			return nil, fmt.Errorf("hosts: %w: only for nodes", ErrInvalid)
		}
		return t, nil
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	t.DNSNames = []string{"localhost"}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, h := range r.Hosts {
		if ip, err := netip.ParseAddr(h); err == nil {
			if ip.Zone() != "" || ip.IsUnspecified() {
				return nil, fmt.Errorf("hosts: %w: an address without a zone, and not that of all interfaces", ErrInvalid)
			}
			t.IPAddresses = append(t.IPAddresses, net.IP(ip.Unmap().AsSlice()))
			continue
		}
		if len(h) > 253 || !validHost.MatchString(h) {
			return nil, fmt.Errorf("hosts: %w: names and addresses without ports", ErrInvalid)
		}
		t.DNSNames = append(t.DNSNames, strings.ToLower(h))
	}
	return t, nil
}

// makePair makes a certificate for a key. Between the two files of a replaced pair stands a moment in which they do not belong together: a Source keeps
// what it has, and a call that was interrupted there is repeated.
func makePair(certFile, keyFile string, force bool, certify func(*ecdsa.PrivateKey) ([]byte, error)) error {
	if err := os.MkdirAll(filepath.Dir(certFile), 0o700); err != nil {
		return err
	}
	put := atomicfile.Create
	if force {
		put = atomicfile.Write
	} else if _, err := os.Lstat(certFile); err == nil {
		return fmt.Errorf("%s: %w", certFile, os.ErrExist)
	}
	key, err := readKey(keyFile)
	fresh := force || errors.Is(err, os.ErrNotExist)
	if fresh {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return err
	}
	cert, err := certify(key)
	if err != nil {
		return err
	}
	if fresh {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return fmt.Errorf("encode the key: %w", err)
		}
		if err := put(keyFile, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der})); err != nil {
			return err
		}
	}
	return put(certFile, cert)
}

func sign(t, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, []byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &key.PublicKey, by)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("sign: %w", err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der}), nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil // RFC 5280 wants it positive
}

// readFile reads a file of bounded size.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: %w: larger than %d bytes", path, ErrFile, maxFile)
	}
	return b, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(b); block != nil && block.Type == pemKey {
		if parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if key, ok := parsed.(*ecdsa.PrivateKey); ok && key.Curve == elliptic.P256() {
				return key, nil
			}
		}
	}
	return nil, fmt.Errorf("%s: %w: want a P-256 key as PKCS #8 in PEM", path, ErrFile)
}

// parseCerts reads the certificates of a PEM file, at least one. Anything else in it is refused: it may be a key.
func parseCerts(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != pemCert {
			return nil, fmt.Errorf("%w: there is a %s in it, want certificates only", ErrFile, strings.ToLower(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFile, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: want certificates in PEM", ErrFile)
	}
	return certs, nil
}
