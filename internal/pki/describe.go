package pki

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"time"
)

// Description is what people want to know of a certificate.
type Description struct {
	Identity            *Identity // nil: none, as in an authority's
	Authority           bool
	Subject, Issuer     string
	Serial              string // hex
	NotBefore, NotAfter time.Time
	Hosts               []string // names and addresses
	Server, Client      bool     // what it is for
	Fingerprint         [sha256.Size]byte
}

// Describe describes the certificates in a PEM file.
func Describe(path string) ([]Description, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	out := make([]Description, 0, len(certs))
	for _, c := range certs {
		d := Description{
			Authority: c.IsCA, Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: fmt.Sprintf("%x", c.SerialNumber),
			NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), Hosts: append([]string{}, c.DNSNames...), Fingerprint: sha256.Sum256(c.Raw),
		}
		for _, ip := range c.IPAddresses {
			d.Hosts = append(d.Hosts, ip.String())
		}
		for _, use := range c.ExtKeyUsage {
			d.Server = d.Server || use == x509.ExtKeyUsageServerAuth
			d.Client = d.Client || use == x509.ExtKeyUsageClientAuth
		}
		if id, err := identityOf(c); err == nil {
			d.Identity = &id
		}
		out = append(out, d)
	}
	return out, nil
}
