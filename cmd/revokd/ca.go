package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/pki"
)

func (c *cli) caCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make the certificates of a cluster: a private authority, nodes, clients",
		Long: `Make the certificates of a cluster. "ca init" makes a private authority, once; "ca issue" makes the certificate of a node or of a client, in one
command each; "ca show" says what is in one. They work on files and ask no node.

Who somebody is stands in his certificate as a URI, revokd://CLUSTER/ROLE/NAME. Nodes recognise each other by it, so it does not matter at which address
they are reached. Keep ` + pki.AuthorityKey + ` off the nodes: who has it can be anybody.

To renew a certificate, issue it again with --force and put the files in place of the old ones: a running node takes them within seconds. To replace the
authority, make another in another directory, put both ` + pki.AuthorityCert + ` files together (cat) in place on all nodes and clients, then issue all certificates anew, then take the old one out.`,
		Example: `  revokd ca init --cluster prod
  revokd ca issue node n1 --host 10.0.0.1 --host n1.example
  revokd ca issue client login --role writer
  revokd ca show n1.crt`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.caInitCommand(), c.caIssueCommand(), c.caShowCommand())
	return cmd
}

// caFailure says what to do about what package pki refuses.
func caFailure(err error) error {
	switch {
	case errors.Is(err, pki.ErrInvalid):
		return &usageError{err}
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("%w: nothing is overwritten without --force", err)
	}
	return err
}

func (c *cli) caInitCommand() *cobra.Command {
	var cluster, out string
	var force bool
	var lifetime duration
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the private authority of a cluster",
		Long: `Make the private authority of a cluster: ` + pki.AuthorityCert + `, which every node and client needs, and ` + pki.AuthorityKey + `, which issues certificates and belongs
into a safe place, not on a node. Both have mode 0600. What is there is not overwritten without --force, which makes every certificate
issued before worthless.`,
		Example: `  revokd ca init --cluster prod
  revokd ca init --cluster prod --out /secure/ca --lifetime 3650d`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cluster == "" {
				return usagef("--cluster: missing: the name of the cluster, such as prod")
			}
			if _, err := pki.Create(out, cluster, lifetime.d, force, time.Now()); err != nil {
				return caFailure(err)
			}
			cert := filepath.Join(out, pki.AuthorityCert)
			d, err := pki.Describe(cert)
			if err != nil {
				return err
			}
			r := struct {
				Cluster  string    `json:"cluster"`
				Cert     string    `json:"cert"`
				Key      string    `json:"key"`
				NotAfter time.Time `json:"notAfter"`
			}{cluster, cert, filepath.Join(out, pki.AuthorityKey), d[0].NotAfter}
			return c.printValue(r, func(w io.Writer) {
				fmt.Fprintf(w, "authority of cluster %s, until %s\n  certificate  %s\n  key          %s  keep it off the nodes\n\n  %s ca issue node NAME --ca %s --host ADDRESS\n",
					cluster, r.NotAfter.Format(time.RFC3339), r.Cert, r.Key, programName(), out)
			})
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&cluster, "cluster", "", "name of the cluster: lower-case letters, digits, dashes")
	cmd.Flags().StringVar(&out, "out", "ca", "directory of the files")
	cmd.Flags().Var(&lifetime, "lifetime", "how long it is valid (default 3650d)")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite what is there")
	c.outputFlag(cmd)
	return cmd
}

// issuing is what both kinds of ca issue share.
type issuing struct {
	ca, out  string
	force    bool
	lifetime duration
}

func (c *cli) issueFlags(cmd *cobra.Command, i *issuing) {
	cmd.Flags().StringVar(&i.ca, "ca", "ca", "directory of the authority")
	cmd.Flags().StringVar(&i.out, "out", ".", "directory of the files")
	cmd.Flags().Var(&i.lifetime, "lifetime", "how long it is valid (default 365d)")
	cmd.Flags().BoolVar(&i.force, "force", false, "overwrite what is there, as for a renewal")
	c.outputFlag(cmd)
}

func (c *cli) issue(i *issuing, r pki.Request, use string) error {
	authority, err := pki.Open(i.ca)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--ca: %w: make the authority first: revokd ca init", err)
	}
	if err != nil {
		return fmt.Errorf("--ca: %w", err)
	}
	r.Lifetime = i.lifetime.d
	made, err := authority.Issue(i.out, r, i.force, time.Now())
	if err != nil {
		return caFailure(err)
	}
	out := struct {
		Identity string    `json:"identity"`
		Cert     string    `json:"cert"`
		Key      string    `json:"key"`
		CA       string    `json:"ca"`
		NotAfter time.Time `json:"notAfter"`
	}{made.Identity.String(), made.Cert, made.Key, made.Root, made.NotAfter}
	return c.printValue(out, func(w io.Writer) {
		fmt.Fprintf(w, "issued %s, until %s\n\n  %s %s --tls-cert %s --tls-key %s --tls-ca %s\n", out.Identity, out.NotAfter.Format(time.RFC3339), programName(), use, out.Cert, out.Key, out.CA)
	})
}

func (c *cli) caIssueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue a certificate to a node or a client",
		Long: `Issue a certificate: NAME.crt and NAME.key in the directory of --out, mode 0600, and a copy of the authority's ` + pki.AuthorityCert + `. That is all a node or
a client needs. Nothing is overwritten without --force.`,
		Example: `  revokd ca issue node n1 --host 10.0.0.1
  revokd ca issue client login --role writer`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.issueNodeCommand(), c.issueClientCommand())
	return cmd
}

func (c *cli) issueNodeCommand() *cobra.Command {
	var i issuing
	var hosts []string
	cmd := &cobra.Command{
		Use:   "node NAME",
		Short: "Issue the certificate of a node",
		Long: `Issue the certificate of a node, whose --node-name is NAME. Other nodes and this program recognise it by that. Everybody else, curl or a
gateway, verifies the name or address that he calls: give each with --host. localhost and the addresses of loopback are always in.`,
		Example: `  revokd ca issue node n1 --host 10.0.0.1 --host n1.example
  revokd ca issue node n1 --host 10.0.0.1 --force            # renew it
  revokd ca issue node n1 --ca /secure/ca --out n1 --lifetime 90d`,
		Args: arguments(1, 1, "the name of a node"),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.issue(&i, pki.Request{Role: pki.RoleNode, Name: args[0], Hosts: hosts}, "agent --node-name "+args[0])
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringArrayVar(&hosts, "host", nil, "name or address under which clients reach the node; repeatable")
	c.issueFlags(cmd, &i)
	return cmd
}

func (c *cli) issueClientCommand() *cobra.Command {
	var i issuing
	var role roleFlag
	cmd := &cobra.Command{
		Use:   "client NAME",
		Short: "Issue the certificate of a client",
		Long: `Issue the certificate of a client with a role: a reader may ask, a subscriber may also follow what changes, a writer may also revoke, an admin may
everything. A service that checks in its own memory and revokes needs subscriber,writer. Give each program the least that it needs; which issuers and tenants a writer
is limited to stands in the file of --credentials on the nodes.`,
		Example: `  revokd ca issue client login --role writer
  revokd ca issue client shop --role subscriber,writer
  revokd ca issue client gateway --role reader --lifetime 90d`,
		Args: arguments(1, 1, "the name of a client"),
		RunE: func(_ *cobra.Command, args []string) error {
			if role == "" {
				return usagef("--role: missing: one of reader, subscriber, writer, admin")
			}
			return c.issue(&i, pki.Request{Role: pki.Role(role), Name: args[0]}, "status")
		},
	}
	cmd.Flags().SortFlags = false
	addRoleFlag(cmd, &role, "what the client may do")
	c.issueFlags(cmd, &i)
	return cmd
}

// roleFlag is a flag that takes the role of a client.
type roleFlag pki.Role

func (f *roleFlag) String() string { return string(*f) }
func (f *roleFlag) Type() string   { return "role" }

func (f *roleFlag) Set(text string) error {
	r, err := pki.ParseRole(strings.ToLower(text))
	if err != nil {
		return errors.New("must be one of reader, subscriber, writer, admin, or subscriber,writer")
	}
	*f = roleFlag(r)
	return nil
}

func addRoleFlag(cmd *cobra.Command, f *roleFlag, usage string) {
	cmd.Flags().Var(f, "role", usage+": reader, subscriber, writer, admin, or subscriber,writer")
	names := []string{"reader", "subscriber", "writer", "admin", "subscriber,writer"}
	if err := cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag has just been added
	}
}

// certificate is what ca show prints.
type certificate struct {
	Identity    string    `json:"identity,omitempty"`
	Authority   bool      `json:"authority"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	Expired     bool      `json:"expired"`
	Hosts       []string  `json:"hosts"`
	Uses        []string  `json:"uses"`
	Fingerprint string    `json:"sha256"`
}

func (c *cli) caShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Say what is in a certificate",
		Long:  `Say what is in the certificates of a file: whose, from whom, for which names, until when. It does not verify them.`,
		Example: `  revokd ca show n1.crt
  revokd ca show ca/ca.crt --output json`,
		Args: arguments(1, 1, "a file"),
		RunE: func(_ *cobra.Command, args []string) error {
			found, err := pki.Describe(args[0])
			if err != nil {
				return err
			}
			now := time.Now()
			out := struct {
				Certificates []certificate `json:"certificates"`
			}{}
			for _, d := range found {
				out.Certificates = append(out.Certificates, certificateOf(d, now))
			}
			return c.printValue(out, func(w io.Writer) {
				for i, cert := range out.Certificates {
					if i > 0 {
						fmt.Fprintln(w)
					}
					certificateText(w, cert, now)
				}
			})
		},
	}
	c.outputFlag(cmd)
	return cmd
}

func certificateOf(d pki.Description, now time.Time) certificate {
	cert := certificate{
		Authority: d.Authority, Subject: d.Subject, Issuer: d.Issuer, Serial: d.Serial, NotBefore: d.NotBefore, NotAfter: d.NotAfter,
		Expired: now.After(d.NotAfter), Hosts: d.Hosts, Uses: []string{}, Fingerprint: hex.EncodeToString(d.Fingerprint[:]),
	}
	if d.Identity != nil {
		cert.Identity = d.Identity.String()
	}
	if d.Server {
		cert.Uses = append(cert.Uses, "server")
	}
	if d.Client {
		cert.Uses = append(cert.Uses, "client")
	}
	return cert
}

func certificateText(w io.Writer, cert certificate, now time.Time) {
	whose := cert.Identity
	switch {
	case cert.Authority:
		whose = "an authority"
	case whose == "":
		whose = "none of revokd"
	}
	until := cert.NotAfter.Format(time.RFC3339)
	if cert.Expired {
		until += ", expired"
	} else {
		until += fmt.Sprintf(", %d days left", int(cert.NotAfter.Sub(now)/(24*time.Hour)))
	}
	rows := [][]string{
		{"identity", whose},
		{"subject", cert.Subject},
		{"issuer", cert.Issuer},
		{"valid from", cert.NotBefore.Format(time.RFC3339)},
		{"valid until", until},
	}
	if len(cert.Hosts) > 0 {
		rows = append(rows, []string{"hosts", strings.Join(cert.Hosts, ", ")})
	}
	if len(cert.Uses) > 0 {
		rows = append(rows, []string{"for", strings.Join(cert.Uses, ", ")})
	}
	table(w, append(rows, []string{"serial", cert.Serial}, []string{"sha256", cert.Fingerprint}))
}
