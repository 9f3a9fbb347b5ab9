package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Role is what the holder of a credential is there for.
type Role string

// The roles.
const (
	RoleNode       Role = "node"       // a member of the cluster
	RoleReader     Role = "reader"     // asks
	RoleSubscriber Role = "subscriber" // asks, and follows what changes
	RoleWriter     Role = "writer"     // asks and revokes
	RoleAdmin      Role = "admin"      // everything but being a node

	RoleSubscriberWriter Role = "subscriber+writer" // both: a service that checks in its own memory and revokes
)

// ClientRoles are the roles of those who are no nodes.
func ClientRoles() []Role {
	return []Role{RoleReader, RoleSubscriber, RoleWriter, RoleAdmin, RoleSubscriberWriter}
}

// Has reports whether a role is the other one or contains it.
func (r Role) Has(other Role) bool {
	return r == other || r == RoleSubscriberWriter && (other == RoleSubscriber || other == RoleWriter)
}

// ParseRole reads the role of a client: one name, or subscriber and writer in any order, with a comma or plus between them. Errors match [ErrInvalid].
func ParseRole(text string) (Role, error) {
	r := Role(strings.ReplaceAll(text, ",", "+"))
	if r == RoleWriter+"+"+RoleSubscriber {
		r = RoleSubscriberWriter
	}
	if !slices.Contains(ClientRoles(), r) {
		return "", fmt.Errorf("role: %w: must be one of reader, subscriber, writer, admin, or subscriber,writer", ErrInvalid)
	}
	return r, nil
}

func (r Role) valid() bool { return r == RoleNode || slices.Contains(ClientRoles(), r) }

// Decisions about certificates and what they are made of.
var (
	ErrInvalid    = errors.New("invalid")                  // an argument is malformed or out of range
	ErrFile       = errors.New("file is of no use")        // it is not what it should be, or does not belong to the others
	ErrUntrusted  = errors.New("certificate is untrusted") // wrong authority, wrong use, expired or not yet valid
	ErrNoIdentity = errors.New("certificate has no identity of revokd")
	ErrWrongPeer  = errors.New("certificate is of somebody else") // another cluster, role or name than expected
)

// IsRefusal reports whether err says that we did not accept the certificate of the other side.
func IsRefusal(err error) bool {
	return errors.Is(err, ErrUntrusted) || errors.Is(err, ErrNoIdentity) || errors.Is(err, ErrWrongPeer)
}

// Identity is who a certificate was issued to.
type Identity struct {
	Cluster string
	Role    Role
	Name    string
}

const scheme = "revokd"

// A cluster stands where a URI has a host, so its name is a label in lower case. A name is a file and a directory.
var (
	validCluster = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	validName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
)

// String returns the URI that stands in certificates.
func (id Identity) String() string {
	return scheme + "://" + id.Cluster + "/" + string(id.Role) + "/" + id.Name
}

func (id Identity) validate() error {
	switch {
	case !validCluster.MatchString(id.Cluster):
		return fmt.Errorf("cluster: %w: 1 to 63 lower-case letters, digits and dashes, letters or digits at both ends", ErrInvalid)
	case !id.Role.valid():
		return fmt.Errorf("role: %w: one of node, reader, subscriber, writer, admin, subscriber+writer", ErrInvalid)
	case !validName.MatchString(id.Name):
		return fmt.Errorf("name: %w: 1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit", ErrInvalid)
	}
	return nil
}

// identityOf returns the identity in a certificate. Two would be one too many: each reader could pick another.
func identityOf(c *x509.Certificate) (Identity, error) {
	var found []*url.URL
	for _, u := range c.URIs {
		if u.Scheme == scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return Identity{}, fmt.Errorf("%w: %d URIs of %s in it, want one", ErrNoIdentity, len(found), scheme)
	}
	role, name, _ := strings.Cut(strings.TrimPrefix(found[0].Path, "/"), "/")
	id := Identity{Cluster: found[0].Host, Role: Role(role), Name: name}
	// The comparison refuses whatever else a URI can have: user, port, query, escapes.
	if id.validate() != nil || id.String() != found[0].String() {
		return Identity{}, fmt.Errorf("%w: its URI is malformed", ErrNoIdentity)
	}
	return id, nil
}

// PeerIdentity returns who is at the other end of a connection that was made with a configuration of a [Source], which has verified it.
// Errors match [ErrNoIdentity]; the usual one is that a client showed no certificate.
func PeerIdentity(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: none was shown", ErrNoIdentity)
	}
	return identityOf(cs.PeerCertificates[0])
}
