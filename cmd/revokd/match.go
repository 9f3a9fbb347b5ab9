package main

import (
	"github.com/spf13/cobra"

	"github.com/revokd/revokd/cmd/revokd/internal/bulk"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// matchFlags are the ways to say which tokens are meant.
type matchFlags struct {
	match      []string
	everything bool
	sugar      map[string]*string // by claim name
}

// sugarFlags are the claims with a flag of their own.
var sugarFlags = []struct{ flag, claim, usage string }{
	{"issuer", "iss", "tokens of this issuer (claim iss)"},
	{"subject", "sub", "tokens of this subject (claim sub)"},
	{"session", "sid", "tokens of this session (claim sid)"},
	{"jti", "jti", "the token with this id (claim jti)"},
	{"client", "client_id", "tokens of this client application (claim client_id)"},
	{"tenant", "tenant_id", "tokens of this tenant (claim tenant_id)"},
	{"kid", revocation.HeaderKID, "tokens signed with this key (header kid)"},
}

func (f *matchFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.match, "match", nil,
		`claims that a token must have: name=text or name:=7 or name:=true, separated by commas (\, is a comma in a value); repeatable`)
	cmd.Flags().BoolVar(&f.everything, "everything", false, "every token there is; no claims may be given")
	f.sugar = map[string]*string{}
	for _, s := range sugarFlags {
		f.sugar[s.claim] = cmd.Flags().String(s.flag, "", s.usage)
	}
}

// given reports whether any of the flags was used.
func (f *matchFlags) given(cmd *cobra.Command) bool {
	for _, s := range sugarFlags {
		if cmd.Flags().Changed(s.flag) {
			return true
		}
	}
	return cmd.Flags().Changed("match") || f.everything
}

// parse returns the match of all flags together. No claim at all must have been asked for by name: it means every token.
func (f *matchFlags) parse(cmd *cobra.Command) (*revokdv1.Match, error) {
	values := map[string]revocation.Value{}
	put := func(flag, name string, v revocation.Value) error {
		if _, twice := values[name]; twice {
			return usagef("--%s: the claim %s is named twice", flag, name)
		}
		values[name] = v
		return nil
	}
	for _, text := range f.match {
		m, err := revocation.ParseMatch(text)
		if err != nil {
			return nil, usagef("--match: %w", err)
		}
		if len(m.Names()) == 0 {
			return nil, usagef("--match: empty: name at least one claim, or say --everything")
		}
		for _, name := range m.Names() {
			v, _ := m.Get(name)
			if err := put("match", name, v); err != nil {
				return nil, err
			}
		}
	}
	for _, s := range sugarFlags {
		if !cmd.Flags().Changed(s.flag) {
			continue
		}
		if *f.sugar[s.claim] == "" {
			return nil, usagef("--%s: empty", s.flag)
		}
		if err := put(s.flag, s.claim, revocation.String(*f.sugar[s.claim])); err != nil {
			return nil, err
		}
	}
	switch {
	case f.everything && len(values) > 0:
		return nil, usagef("--everything: conflict: it means every token, so no claims can be given with it")
	case !f.everything && len(values) == 0:
		return nil, usagef("no tokens named: use --match, --subject, --session and so on, or --everything for every token")
	}
	m, err := revocation.NewMatch(values)
	if err != nil {
		return nil, &usageError{err}
	}
	return bulk.ProtoMatch(m), nil
}
