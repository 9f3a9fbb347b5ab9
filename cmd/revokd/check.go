package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// checkFlags are those of check and explain.
type checkFlags struct {
	token, claims string
	freshness     choice
	maxStaleness  duration
}

func (f *checkFlags) add(cmd *cobra.Command) {
	f.freshness.allowed = enumNames(revokdv1.Freshness_name, "FRESHNESS_")
	cmd.Flags().StringVar(&f.token, "token", "", "a signed token, which the node verifies; @file reads it from a file, - from stdin")
	cmd.Flags().StringVar(&f.claims, "claims", "", "the claims of a token that you have verified, as JSON; @file or - as in --token")
	choiceFlag(cmd, &f.freshness, "freshness", "for whom the answering view must be fresh: for nobody, a majority of the voters, all voters (default quorum)")
	cmd.Flags().Var(&f.maxStaleness, "max-staleness", "how old the answering view may be; beyond it the answer is unknown instead of active (default 30s, or as the node was started)")
}

func (f *checkFlags) request(c *cli, cmd *cobra.Command) (*revokdv1.CheckRequest, error) {
	if err := exclusive(cmd, "token", "claims"); err != nil {
		return nil, err
	}
	req := &revokdv1.CheckRequest{Freshness: revokdv1.Freshness(revokdv1.Freshness_value["FRESHNESS_"+strings.ToUpper(f.freshness.value)])}
	if f.maxStaleness.set {
		req.MaxStaleness = durationpb.New(f.maxStaleness.d)
	}
	switch flags := cmd.Flags(); {
	case flags.Changed("token"):
		token, err := c.readInput("token", f.token)
		req.Subject = &revokdv1.CheckRequest_Token{Token: token}
		return req, err
	case flags.Changed("claims"):
		// As the exact JSON: in a protobuf Struct every number is a float.
		claims, err := c.readInput("claims", f.claims)
		req.Subject = &revokdv1.CheckRequest_Payload{Payload: []byte(claims)}
		return req, err
	}
	return nil, usagef("nothing to check: --token or --claims is needed")
}

func (c *cli) checkCommand() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Ask whether a token is revoked",
		Long: `Ask whether a token is revoked. The exit code is the answer: 0 active, 3 revoked, 4 unknown (the node cannot
judge: refuse the request, with 503 rather than 401), 1 if there was no answer.

In a cluster a node answers by its view, which is as old as what it last heard of the voters. It says active only as long as that is
younger than --max-staleness; what is known to be revoked it says always. --freshness any takes a view of any age.`,
		Example: `  revokd check --token "$T" && echo welcome
  echo "$T" | revokd check --token -
  revokd check --claims '{"iss":"https://id.example","sub":"alice","iat":1767225600,"exp":1767229200}'
  revokd check --token "$T" --freshness all --max-staleness 2s
  revokd check --token "$T" --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(c, cmd)
			if err != nil {
				return err
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Check, req)
			if err != nil {
				return err
			}
			if err := c.print(res, func(w io.Writer) { fmt.Fprintln(w, verdictLine(res)) }); err != nil {
				return err
			}
			return verdictCode(res)
		},
	}
	f.add(cmd)
	c.clientFlags(cmd)
	return cmd
}

func (c *cli) explainCommand() *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Ask why a token is revoked or not",
		Long: `Answer like "revokd check", with the same exit codes, and list everything that was tried: each kind of revocation
that has live records, the claims it compares, and what was found for this token.`,
		Example: `  revokd explain --token "$T"
  revokd explain --claims @claims.json --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req, err := f.request(c, cmd)
			if err != nil {
				return err
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Explain, req)
			if err != nil {
				return err
			}
			if err := c.print(res, func(w io.Writer) { explainText(w, res) }); err != nil {
				return err
			}
			return verdictCode(res.GetVerdict())
		},
	}
	f.add(cmd)
	c.clientFlags(cmd)
	return cmd
}

func explainText(w io.Writer, res *revokdv1.ExplainResponse) {
	fmt.Fprintln(w, verdictLine(res.GetVerdict()))
	if len(res.GetSteps()) == 0 {
		fmt.Fprintln(w, "nothing is revoked here: no kind of revocation has live records")
		return
	}
	rows := [][]string{{"RULE", "RESULT", "FOUND"}}
	for _, s := range res.GetSteps() {
		rule := ruleText(&revokdv1.Rule{Kind: s.GetKind(), Claims: s.GetClaims()})
		if s.GetKind() == revokdv1.RuleKind_RULE_KIND_BELOW {
			rule = fmt.Sprintf("below {%s} %s", strings.Join(s.GetClaims(), ", "), s.GetCompared())
		}
		found := "-"
		if s.Found != nil {
			found = strings.TrimPrefix(ruleLine(s.Found), "rule ")
		}
		result := s.GetResult()
		switch s.GetComparedClaim() {
		case "missing":
			result += ": the token has no " + s.GetCompared()
		case "malformed":
			result += ": the token's " + s.GetCompared() + " cannot be compared"
		}
		rows = append(rows, []string{rule, result, found})
	}
	table(w, rows)
}
