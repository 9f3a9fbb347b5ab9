package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/atomicfile"
	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/revocation"
)

func (c *cli) credentialsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "credentials",
		Short: "Make bearer tokens, for callers who cannot show a certificate",
		Long: `A caller shows who he is with a certificate (revokd ca) or with a bearer token. The agent's --credentials names the file of the tokens that are taken; it holds
their SHA-256 and never a token. It also limits writers, whichever they show, to issuers and tenants:

  tokens:
    - name: login
      sha256: 3f1c...                     # of "revokd credentials new"
      role: subscriber,writer
      grants: [{iss: https://id.example}]
      expires: 2027-01-31T00:00:00Z
  certificates:                           # by the name in them
    - name: shop
      grants: [{iss: https://id.example, tenant_id: acme}]
      records: 200000                     # live revocations under each grant

What a writer revokes must contain all claims of one of his grants; without grants he may revoke what he likes of any issuer. The file is read again at SIGHUP, whole or
not at all. Two tokens of a name may be in force at once: put the new one in, reload, let the callers take it, take the old one out, reload.`,
		Example: `  revokd credentials new --name login --role subscriber,writer --issuer https://id.example --out login.token >>credentials.yaml`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.credentialsNewCommand())
	return cmd
}

func (c *cli) credentialsNewCommand() *cobra.Command {
	var name, out string
	var role roleFlag
	var issuers, grants []string
	var rate, records int
	expires := duration{}
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Make a bearer token and the entry for it",
		Long: `Make a bearer token of 256 random bits. It is printed to stderr once, or written to the file of --out, and kept nowhere; what is printed to stdout is the entry that
belongs under "tokens:" in the file of --credentials of every node.`,
		Example: `  revokd credentials new --name login --role writer --issuer https://id.example
  revokd credentials new --name till --role writer --grant iss=https://id.example,tenant_id=acme --rate 50
  revokd credentials new --name gateway --role subscriber --expires 30d --out gateway.token`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			if role == "" {
				return usagef("--role: missing: one of reader, subscriber, writer, admin")
			}
			var matches []revocation.Match
			for _, iss := range issuers {
				m, err := revocation.NewMatch(map[string]revocation.Value{"iss": revocation.String(iss)})
				if err != nil {
					return usagef("--issuer: %w", err)
				}
				matches = append(matches, m)
			}
			for _, text := range grants {
				m, err := revocation.ParseMatch(text)
				if err != nil {
					return usagef("--grant: %w", err)
				}
				matches = append(matches, m)
			}
			life := expires.d
			if !expires.set {
				life = 90 * 24 * time.Hour
			}
			now := time.Now()
			if life <= 0 {
				return usagef("--expires: out of range: more than 0")
			}
			token := bearer.New()
			e, err := credentials.NewEntry(token, name, pki.Role(role), matches, rate, records, now.Add(life), now)
			if err != nil {
				return &usageError{err}
			}
			entry, err := e.YAML()
			if err != nil {
				return err
			}
			return c.printToken(token, out, e, entry)
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&name, "name", "", "who it is for, as it stands in the audit")
	addRoleFlag(cmd, &role, "what he may do")
	cmd.Flags().StringArrayVar(&issuers, "issuer", nil, "limit what he writes to this issuer; repeatable")
	cmd.Flags().StringArrayVar(&grants, "grant", nil, "limit what he writes to matches with these claims, such as iss=https://id.example,tenant_id=acme; repeatable")
	cmd.Flags().IntVar(&rate, "rate", 0, "records that he may write in a second (default that of the node)")
	cmd.Flags().IntVar(&records, "records", 0, "live records that those with one of these grants may have written on a node under it (default no limit but those of the node)")
	cmd.Flags().Var(&expires, "expires", "how long it is good for, at most 400d (default 90d)")
	cmd.Flags().StringVar(&out, "out", "", "file for the token, mode 0600, which must not exist; it is not printed then")
	c.outputFlag(cmd)
	return cmd
}

// printToken shows a token once, or puts it into a file.
func (c *cli) printToken(token, out string, e *credentials.TokenEntry, entry []byte) error {
	if out != "" {
		if err := atomicfile.Create(out, []byte(token+"\n")); errors.Is(err, os.ErrExist) {
			return fmt.Errorf("--out: %w: nothing is overwritten", err)
		} else if err != nil {
			return fmt.Errorf("--out: %w", err)
		}
		token = ""
	}
	r := struct {
		Token   string           `json:"token,omitempty"`
		Name    string           `json:"name"`
		SHA256  string           `json:"sha256"`
		Role    string           `json:"role"`
		Grants  []map[string]any `json:"grants,omitempty"`
		Rate    int              `json:"rate,omitempty"`
		Records int              `json:"records,omitempty"`
		Expiry  string           `json:"expires"`
	}{token, e.Name, e.SHA256, e.Role, e.Grants, e.Rate, e.Records, e.Expires}
	return c.printValue(r, func(w io.Writer) {
		if token != "" { // not among what is redirected into the file of credentials
			fmt.Fprintf(c.stderr, "%s\nThis is the token. It is shown this once; what follows belongs under tokens: in the file of --credentials.\n", token)
		}
		_, _ = w.Write(entry)
	})
}
