package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// enumNames returns the names of an enum's values as people type them, without the zero value, in order of their numbers.
func enumNames(names map[int32]string, prefix string) []string {
	var out []string
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if n != 0 {
			out = append(out, enumName(names[n], prefix))
		}
	}
	return out
}

// writeFlags are common to revoke, block and unblock.
type writeFlags struct {
	reason, ack choice
	ackTimeout  duration
	comment     string
	key         string
	confirm     string
	dryRun      bool
}

func (f *writeFlags) add(cmd *cobra.Command) {
	f.reason.allowed = enumNames(revokdv1.Reason_name, "REASON_")
	f.ack.allowed = enumNames(revokdv1.AckLevel_name, "ACK_LEVEL_")
	choiceFlag(cmd, &f.reason, "reason", "why")
	choiceFlag(cmd, &f.ack, "ack", "who must hold it durably before the command returns: the node, a majority of the voters, all voters (default quorum with three voters or more)")
	cmd.Flags().Var(&f.ackTimeout, "ack-timeout", "how long the node waits for them, at most 30s; then the command fails and says who has confirmed; nothing is rolled back (default 5s)")
	cmd.Flags().StringVar(&f.comment, "comment", "", "free text for the audit log of the node, at most 256 bytes")
	cmd.Flags().StringVar(&f.confirm, "confirm", "", "the code that the command was answered with, to deny every token, or every token of an issuer, after all")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "rehearse: say what it would do and which of the checks of the last minutes it would have refused, and write nothing")
	cmd.Flags().StringVar(&f.key, "idempotency-key", "", "repeat the call with this key: it answers as the first did; --ttl and other times from now would make it another call (default: a new one)")
}

func (f *writeFlags) reasonValue() revokdv1.Reason {
	return revokdv1.Reason(revokdv1.Reason_value["REASON_"+strings.ToUpper(f.reason.value)])
}

// options fixes the idempotency key of one logical call, so that a retry moves no cutoff.
func (f *writeFlags) options() *revokdv1.WriteOptions {
	if f.key == "" {
		f.key = rand.Text()
	}
	o := &revokdv1.WriteOptions{
		Ack:            revokdv1.AckLevel(revokdv1.AckLevel_value["ACK_LEVEL_"+strings.ToUpper(f.ack.value)]),
		IdempotencyKey: f.key, Confirmation: f.confirm,
	}
	if f.ackTimeout.set {
		o.AckTimeout = durationpb.New(f.ackTimeout.d)
	}
	return o
}

// patience makes the command outlast what the node may wait for the others: otherwise it would end without the receipt.
func (f *writeFlags) patience(c *cli, cmd *cobra.Command) error {
	const margin = 2 * time.Second
	switch {
	case !f.ackTimeout.set:
	case f.ackTimeout.d <= 0:
		return usagef("--ack-timeout: out of range: more than 0")
	case !cmd.Flags().Changed("timeout"):
		c.timeout = max(c.timeout, f.ackTimeout.d+margin)
	case f.ackTimeout.d >= c.timeout:
		return usagef("--ack-timeout and --timeout: conflict: the command would give up before the node does")
	}
	return nil
}

// expiryFlags state a deadline.
type expiryFlags struct {
	at  instant
	ttl duration
}

func (f *expiryFlags) add(cmd *cobra.Command, usage string) {
	f.at.now = time.Now
	cmd.Flags().Var(&f.at, "expires-at", usage+": RFC 3339, Unix milliseconds, or from now such as +12h")
	cmd.Flags().Var(&f.ttl, "ttl", "the same as a duration from now: 90s, 12h, 30d")
}

func (f *expiryFlags) proto(cmd *cobra.Command) (*timestamppb.Timestamp, error) {
	if err := exclusive(cmd, "expires-at", "ttl"); err != nil {
		return nil, err
	}
	if !f.ttl.set {
		return f.at.proto(), nil
	}
	if f.ttl.d <= 0 {
		return nil, usagef("--ttl: out of range: more than 0")
	}
	return timestamppb.New(time.Now().Add(f.ttl.d)), nil
}

// revokeFlags are those of revoke.
type revokeFlags struct {
	match  matchFlags
	write  writeFlags
	expiry expiryFlags
	bulk   bulkFlags

	token, keepToken, keepSession, keepJTI, below string

	scope        choice
	issuedBefore instant
}

func (c *cli) revokeCommand() *cobra.Command {
	f := &revokeFlags{scope: choice{allowed: enumNames(revokdv1.Scope_name, "SCOPE_")}, issuedBefore: instant{now: time.Now}}
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "Deny a token, a session, or every token that matches",
		Long: `Deny one token (--token), its session or its subject (--scope), or every token with certain claims.

A match that names a token, a session or a key denies it for good. Anything wider denies what was issued before
now, or before --issued-before, or with an integer claim --below a value; later logins are accepted.
What denies every token, or every token of an issuer, is asked about first: at a terminal the command waits for "yes"; elsewhere it ends with exit code 1 and a
code, and does it when it is repeated with --confirm CODE, within two minutes, to the same node.
When the command returns, the revocation has the durability that it prints. In a cluster it also says which nodes hold it. If those are fewer
than --ack asks for, the command ends with exit code 1 and says who has confirmed: the revocation is durable on the node that was asked, is
enforced there, and reaches the others as soon as they can be reached.`,
		Example: `  # log out: one token, its session, or all devices of its subject
  revokd revoke --token "$T" --reason logout
  revokd revoke --token "$T" --scope session
  revokd revoke --token "$T" --scope subject --reason password-changed

  # all other devices: everything but the session of this token
  revokd revoke --issuer https://id.example --subject alice --keep-token "$T"

  # without a token
  revokd revoke --issuer https://id.example --subject alice
  revokd revoke --issuer https://id.example --session s1
  revokd revoke --issuer https://id.example --subject alice --below token_version=7
  revokd revoke --issuer https://id.example --client web --reason client-disabled
  revokd revoke --issuer https://id.example --kid k1 --reason key-compromised
  revokd revoke --match tenant_id=acme,admin:=true
  revokd revoke --everything                      # asks, or answers with a code
  revokd revoke --everything --confirm CODE

  # in a cluster: return when every voter holds it, or say who does not
  revokd revoke --token "$T" --ack all --ack-timeout 2s

  # many: one JSON object per line, resumed after an interruption
  revokd revoke --from-file ids.ndjson`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.write.patience(c, cmd); err != nil {
				return err
			}
			if f.bulk.file != "" {
				return c.revokeFile(cmd, f)
			}
			req, err := f.request(c, cmd)
			if err != nil {
				return err
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			if f.write.dryRun {
				return rehearse(cmd.Context(), c, svc, &revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Revoke{Revoke: req}})
			}
			return sendWrite(cmd.Context(), c, svc.Revoke, req, req.Options)
		},
	}
	cmd.Flags().StringVar(&f.token, "token", "", "a signed token, which the node verifies; @file reads it from a file, - from stdin")
	choiceFlag(cmd, &f.scope, "scope", "with --token: the token, its session, or all of its subject's (default token)")
	f.match.add(cmd)
	cmd.Flags().StringVar(&f.below, "below", "", "deny matching tokens whose integer claim is below a value, missing or no integer: token_version=7 (a token has it as token_version:=7, not as text)")
	cmd.Flags().Var(&f.issuedBefore, "issued-before", "deny matching tokens issued before: RFC 3339, Unix milliseconds, or from now such as -10m")
	f.expiry.add(cmd, "when it may be forgotten (default: when no token it names can be alive)")
	cmd.Flags().StringVar(&f.keepToken, "keep-token", "", "leave the session of this token alone, or the token if it has none; @file or - as in --token")
	cmd.Flags().StringVar(&f.keepSession, "keep-session", "", "leave this session alone")
	cmd.Flags().StringVar(&f.keepJTI, "keep-jti", "", "leave the token with this jti alone")
	f.write.add(cmd)
	f.bulk.add(cmd)
	c.clientFlags(cmd)
	return cmd
}

// request turns the flags into one request.
func (f *revokeFlags) request(c *cli, cmd *cobra.Command) (*revokdv1.RevokeRequest, error) {
	for _, name := range []string{"errors", "resume-file", "restart"} {
		if cmd.Flags().Changed(name) {
			return nil, usagef("--%s: only with --from-file", name)
		}
	}
	if err := errors.Join(exclusive(cmd, "keep-token", "keep-session", "keep-jti"), exclusive(cmd, "below", "issued-before")); err != nil {
		return nil, err
	}
	req := &revokdv1.RevokeRequest{
		Reason: f.write.reasonValue(), Comment: f.write.comment, IssuedBefore: f.issuedBefore.proto(), Options: f.write.options(),
	}
	if err := f.target(c, cmd, req); err != nil {
		return nil, err
	}
	var err error
	if req.ExpiresAt, err = f.expiry.proto(cmd); err != nil {
		return nil, err
	}
	if cmd.Flags().Changed("below") {
		if req.Below, err = parseBelow(f.below); err != nil {
			return nil, err
		}
	}
	req.Keep, err = f.keep(c, cmd)
	return req, err
}

func (f *revokeFlags) target(c *cli, cmd *cobra.Command, req *revokdv1.RevokeRequest) error {
	if !cmd.Flags().Changed("token") {
		if f.scope.value != "" {
			return usagef("--scope: only with --token")
		}
		if !f.match.given(cmd) {
			return usagef("nothing to revoke: name a token with --token, tokens with --match, --subject, --session and so on, or --everything")
		}
		m, err := f.match.parse(cmd)
		req.Target = &revokdv1.RevokeRequest_Match{Match: m}
		return err
	}
	if f.match.given(cmd) {
		return usagef("--token: conflict: either a token or claims")
	}
	token, err := c.readInput("token", f.token)
	req.Target = &revokdv1.RevokeRequest_Token{Token: token}
	req.Scope = revokdv1.Scope(revokdv1.Scope_value["SCOPE_"+strings.ToUpper(f.scope.value)])
	return err
}

func parseBelow(s string) (*revokdv1.Below, error) {
	claim, text, ok := strings.Cut(s, "=")
	n, err := strconv.ParseInt(text, 10, 64)
	if !ok || claim == "" || err != nil {
		return nil, usagef("--below: malformed: want a claim and an integer such as token_version=7")
	}
	return &revokdv1.Below{Claim: claim, Value: n}, nil
}

func (f *revokeFlags) keep(c *cli, cmd *cobra.Command) (*revokdv1.Keep, error) {
	switch flags := cmd.Flags(); {
	case flags.Changed("keep-token"):
		token, err := c.readInput("keep-token", f.keepToken)
		return &revokdv1.Keep{Kept: &revokdv1.Keep_Token{Token: token}}, err
	case flags.Changed("keep-session"):
		if f.keepSession == "" {
			return nil, usagef("--keep-session: empty")
		}
		return &revokdv1.Keep{Kept: &revokdv1.Keep_Session{Session: f.keepSession}}, nil
	case flags.Changed("keep-jti"):
		if f.keepJTI == "" {
			return nil, usagef("--keep-jti: empty")
		}
		return &revokdv1.Keep{Kept: &revokdv1.Keep_Jti{Jti: f.keepJTI}}, nil
	}
	return nil, nil
}

// rehearse asks what a write would do and prints the answer.
func rehearse(ctx context.Context, c *cli, svc revokdv1connect.RevocationServiceClient, req *revokdv1.RehearseRequest) error {
	res, err := call(ctx, c, svc.Rehearse, req)
	if err != nil {
		return err
	}
	return c.print(res, func(w io.Writer) { rehearsalText(w, res) })
}

// sendWrite sends a write and prints its answer. When nobody can know whether it happened, the error says how to repeat it.
// What would deny everything, it sends again if a person who reads what that is agrees.
func sendWrite[Req any](ctx context.Context, c *cli, m method[Req, revokdv1.RevokeResponse], req *Req, o *revokdv1.WriteOptions) error {
	key := o.GetIdempotencyKey()
	res, err := call(ctx, c, m, req)
	if asked, ok := detailOf[*revokdv1.Confirmation](err); ok {
		if err = c.agree(asked, err); err == nil {
			o.Confirmation = asked.GetCode()
			res, err = call(ctx, c, m, req)
		}
	}
	if err != nil {
		var lost *lostAnswer
		if errors.As(err, &lost) {
			return fmt.Errorf("%w; it may have been carried out: repeat the command with --idempotency-key %s", err, key)
		}
		if receiptOf(err) != nil {
			return &unconfirmed{err, key}
		}
		return err
	}
	return c.print(res, func(w io.Writer) { writeText(w, res) })
}

// agree asks the person at the terminal whether a global deny is meant, and returns an error with the code if there is nobody.
func (c *cli) agree(asked *revokdv1.Confirmation, err error) error {
	in, ok := c.stdin.(*os.File)
	if !ok || !isatty.IsTerminal(in.Fd()) || c.output == "json" {
		return &unasked{err, asked}
	}
	fmt.Fprintf(c.stderr, "%s\nType yes to do it: ", confirmText(asked))
	line, readErr := bufio.NewReader(io.LimitReader(in, 64)).ReadString('\n')
	if readErr != nil || strings.TrimSpace(line) != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

func confirmText(asked *revokdv1.Confirmation) string {
	whose := ""
	if len(asked.GetIssuers()) > 0 {
		whose = " (" + strings.Join(asked.GetIssuers(), ", ") + ")"
	}
	return fmt.Sprintf("This denies %s%s. %d revocations are held now.", asked.GetEffect(), whose, asked.GetLiveRecords())
}

// unasked is a global deny that nobody has confirmed yet.
type unasked struct {
	error
	asked *revokdv1.Confirmation
}

func (e *unasked) Unwrap() error { return e.error }

// unconfirmed is a write that is durable on the node, but that fewer nodes than asked for have confirmed. With the key of the call it can be
// waited for again.
type unconfirmed struct {
	error
	key string
}

func (e *unconfirmed) Unwrap() error { return e.error }

func (c *cli) blockCommand() *cobra.Command {
	var match matchFlags
	var write writeFlags
	var expiry expiryFlags
	cmd := &cobra.Command{
		Use:   "block",
		Short: "Deny every matching token, old or new, until unblock",
		Long: `Deny every matching token whatever its iat, until "revokd unblock" or the deadline: a suspended user, a client
application that must not come back. A block ends at its deadline, by default the ceiling of the node (400 days).`,
		Example: `  revokd block --issuer https://id.example --subject mallory --reason user-suspended
  revokd block --issuer https://id.example --client web --ttl 30d`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := match.parse(cmd)
			if err != nil {
				return err
			}
			if err := write.patience(c, cmd); err != nil {
				return err
			}
			until, err := expiry.proto(cmd)
			if err != nil {
				return err
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			req := &revokdv1.BlockRequest{Match: m, ExpiresAt: until, Reason: write.reasonValue(), Comment: write.comment, Options: write.options()}
			if write.dryRun {
				return rehearse(cmd.Context(), c, svc, &revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Block{Block: req}})
			}
			return sendWrite(cmd.Context(), c, svc.Block, req, req.Options)
		},
	}
	match.add(cmd)
	expiry.add(cmd, "when the block ends by itself (default: the ceiling)")
	write.add(cmd)
	c.clientFlags(cmd)
	return cmd
}

func (c *cli) unblockCommand() *cobra.Command {
	var match matchFlags
	var write writeFlags
	cmd := &cobra.Command{
		Use:   "unblock",
		Short: "Lift a block",
		Long: `Lift the block of exactly these claims. It lifts nothing else: cutoffs and denied tokens stay. Only a block can be
lifted; where a token was revoked, issue a new one.`,
		Example: `  revokd unblock --issuer https://id.example --subject mallory --reason reinstated`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := match.parse(cmd)
			if err != nil {
				return err
			}
			if err := write.patience(c, cmd); err != nil {
				return err
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			req := &revokdv1.UnblockRequest{Match: m, Reason: write.reasonValue(), Comment: write.comment, Options: write.options()}
			if write.dryRun {
				return rehearse(cmd.Context(), c, svc, &revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Unblock{Unblock: req}})
			}
			return sendWrite(cmd.Context(), c, svc.Unblock, req, req.Options)
		},
	}
	match.add(cmd)
	write.add(cmd)
	c.clientFlags(cmd)
	return cmd
}
