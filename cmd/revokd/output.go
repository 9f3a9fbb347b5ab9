package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func (c *cli) outputFlag(cmd *cobra.Command) {
	f := &outputFlag{choice{value: "text", allowed: []string{"text", "json"}}, &c.output}
	c.output = "text"
	cmd.Flags().VarP(f, "output", "o", "text, or json: one JSON object")
	if err := cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(f.allowed, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag has just been added
	}
}

// outputFlag is the choice that all commands share.
type outputFlag struct {
	choice
	target *string
}

func (f *outputFlag) Set(s string) error {
	if err := f.choice.Set(s); err != nil {
		return err
	}
	*f.target = f.value
	return nil
}

// print writes the answer: as one JSON object, or as text by the function.
func (c *cli) print(m proto.Message, text func(w io.Writer)) error {
	if c.output == "json" {
		b, err := compactJSON(m)
		if err != nil {
			return err
		}
		return c.write(append(b, '\n'))
	}
	var out bytes.Buffer
	text(&out)
	return c.write(out.Bytes())
}

// compactJSON writes a message as JSON. protojson varies its white space on purpose; scripts compare.
func compactJSON(m proto.Message) ([]byte, error) {
	b, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return out.Bytes(), nil
}

// printJSON writes a value that is no message of the API.
func (c *cli) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return c.write(append(b, '\n'))
}

// printValue is print for what is no message of the API.
func (c *cli) printValue(v any, text func(w io.Writer)) error {
	if c.output == "json" {
		return c.printJSON(v)
	}
	var out bytes.Buffer
	text(&out)
	return c.write(out.Bytes())
}

func (c *cli) write(b []byte) error {
	if _, err := c.stdout.Write(b); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// printError writes an error for people, or as one JSON object, to stderr.
func (c *cli) printError(err error) {
	code, message, detail := describe(err)
	receipt := receiptOf(err)
	var short *unconfirmed
	errors.As(err, &short)
	if c.output != "json" {
		fmt.Fprintf(c.stderr, "revokd: %s\n", message)
		if receipt != nil {
			fmt.Fprintf(c.stderr, "receipt: %s\n", receiptText(receipt))
		}
		if open, ok := errors.AsType[*unasked](err); ok {
			fmt.Fprintf(c.stderr, "%s To do it, repeat the command with --confirm %s\n", confirmText(open.asked), open.asked.GetCode())
		}
		if short != nil {
			fmt.Fprintf(c.stderr, "To wait for the others again, repeat the command with --idempotency-key %s.\n", short.key)
		}
		return
	}
	var out struct {
		Error struct {
			Code    string `json:"code,omitempty"`
			Message string `json:"message"`
			Kind    string `json:"kind,omitempty"`
			Field   string `json:"field,omitempty"`
			Limit   string `json:"limit,omitempty"`

			// Of a write that is durable on the node, but that fewer nodes have confirmed than was asked for.
			Receipt        json.RawMessage `json:"receipt,omitempty"`
			IdempotencyKey string          `json:"idempotencyKey,omitempty"`

			Confirmation json.RawMessage `json:"confirmation,omitempty"` // of a global deny that nobody has confirmed yet
		} `json:"error"`
	}
	if open, ok := errors.AsType[*unasked](err); ok {
		if b, err := compactJSON(open.asked); err == nil {
			out.Error.Confirmation = b
		}
	}
	if receipt != nil {
		if b, err := compactJSON(receipt); err == nil {
			out.Error.Receipt = b
		}
	}
	if short != nil {
		out.Error.IdempotencyKey = short.key
	}
	out.Error.Code, out.Error.Message = code, message
	out.Error.Kind, out.Error.Field, out.Error.Limit = detail.GetKind(), detail.GetField(), detail.GetLimit()
	if b, err := json.Marshal(out); err == nil {
		fmt.Fprintf(c.stderr, "%s\n", b)
	}
}

// receiptOf returns the receipt that comes with the error of a write that was not confirmed as widely as was asked for; nil if there is none.
func receiptOf(err error) *revokdv1.Receipt {
	r, _ := detailOf[*revokdv1.Receipt](err)
	return r
}

// detailOf returns the first detail of a type that a node has sent with an error.
func detailOf[T proto.Message](err error) (found T, ok bool) {
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return found, false
	}
	for _, d := range remote.Details() {
		if v, err := d.Value(); err == nil {
			if found, ok = v.(T); ok {
				return found, true
			}
		}
	}
	return found, false
}

// describe returns the code and detail that a node sent, and a message that names field and limit.
func describe(err error) (code, message string, detail *revokdv1.ErrorDetail) {
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return "", oneLine(err.Error()), nil
	}
	detail, _ = detailOf[*revokdv1.ErrorDetail](err)
	message = remote.Message()
	if message == "" {
		message = remote.Code().String()
	}
	return remote.Code().String(), withDetail(message, detail), detail
}

// withDetail adds what a message does not say of the field and the limit.
func withDetail(message string, detail *revokdv1.ErrorDetail) string {
	if f := detail.GetField(); f != "" && !strings.Contains(message, f) {
		message = f + ": " + message
	}
	if l := detail.GetLimit(); l != "" && !strings.Contains(message, l) {
		message += ": " + l
	}
	return oneLine(message)
}

// oneLine keeps an error on one line, whatever a server has put into it.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// formatTime writes an instant in UTC with the milliseconds it has.
func formatTime(t *timestamppb.Timestamp) string {
	return t.AsTime().UTC().Format("2006-01-02T15:04:05.999Z07:00")
}

// enumName returns the name of an enum value as people type it: REASON_LOGOUT is logout.
func enumName(full, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(full, prefix))
}

// ruleText describes a rule without values, as in: deny {iss, jti}.
func ruleText(r *revokdv1.Rule) string {
	s := enumName(r.GetKind().String(), "RULE_KIND_") + " {" + strings.Join(r.GetClaims(), ", ") + "}"
	switch {
	case r.GetKind() == revokdv1.RuleKind_RULE_KIND_BELOW:
		s += fmt.Sprintf(" %s < %d", r.GetCompared(), r.GetBelow())
	case r.IssuedBefore != nil:
		s += " cutoff " + formatTime(r.IssuedBefore)
	}
	return s
}

// ruleLine adds when, why and until when.
func ruleLine(r *revokdv1.Rule) string {
	s := "rule " + ruleText(r)
	if r.Since != nil {
		s += " since " + formatTime(r.Since)
	}
	if r.GetReason() != revokdv1.Reason_REASON_UNSPECIFIED {
		s += " reason " + enumName(r.GetReason().String(), "REASON_")
	}
	if r.ExpiresAt != nil {
		word := " expires "
		if r.GetKind() == revokdv1.RuleKind_RULE_KIND_BLOCK {
			word = " ends by itself " // and with it what it keeps out comes back
		}
		s += word + formatTime(r.ExpiresAt)
	}
	return s
}

// verdictLine is the first line of check and explain.
func verdictLine(v *revokdv1.CheckResponse) string {
	s := enumName(v.GetVerdict().String(), "VERDICT_")
	switch {
	case v.GetVerdict() == revokdv1.Verdict_VERDICT_REVOKED && v.Rule != nil:
		s += "  " + ruleLine(v.Rule)
	case v.GetVerdict() == revokdv1.Verdict_VERDICT_UNKNOWN && v.GetUnknownCause() != "":
		s += "  cause " + v.GetUnknownCause()
	}
	switch age := v.GetAge().AsDuration(); {
	case age == math.MaxInt64:
		s += "  by a view without a majority of the voters"
	case age > 0: // a node that is a majority by itself has none
		s += "  by a view " + fineText(v.GetAge()) + " old"
	}
	return s
}

// verdictCode returns the exit code that tells a verdict: anything that is not plainly active is not 0.
func verdictCode(v *revokdv1.CheckResponse) error {
	switch v.GetVerdict() {
	case revokdv1.Verdict_VERDICT_ACTIVE:
		return nil
	case revokdv1.Verdict_VERDICT_REVOKED:
		return exitCode(exitRevoked)
	}
	return exitCode(exitUnknown)
}

// receiptText says where a write is.
func receiptText(r *revokdv1.Receipt) string {
	s := "durability " + enumName(r.GetDurability().String(), "DURABILITY_")
	if r.GetDurability() == revokdv1.Durability_DURABILITY_MEMORY {
		s += " (gone with the process)"
	}
	if len(r.GetConfirmed())+len(r.GetUnconfirmed()) <= 1 { // a lone node: there is nobody else to speak of
		return s
	}
	s += " ack " + enumName(r.GetAck().String(), "ACK_LEVEL_")
	if len(r.GetConfirmed()) > 0 {
		s += " confirmed " + strings.Join(r.GetConfirmed(), ", ")
	}
	if len(r.GetUnconfirmed()) > 0 {
		s += " unconfirmed " + strings.Join(r.GetUnconfirmed(), ", ")
	}
	return s
}

// writeText is the answer to revoke, block and unblock.
func writeText(w io.Writer, res *revokdv1.RevokeResponse) {
	if res.GetOutcome() == revokdv1.Outcome_OUTCOME_ALREADY_EXPIRED {
		fmt.Fprintln(w, "already_expired  nothing stored: no token that this names can be alive")
		return
	}
	fmt.Fprint(w, enumName(res.GetOutcome().String(), "OUTCOME_"))
	if res.Rule != nil {
		fmt.Fprint(w, "  ", ruleLine(res.Rule))
	}
	if res.Receipt != nil {
		fmt.Fprint(w, "  ", receiptText(res.Receipt))
	}
	fmt.Fprintln(w)
	if res.UsableAfter != nil {
		fmt.Fprintf(w, "tokens issued from %s on are accepted\n", formatTime(res.UsableAfter))
	}
}

// rehearsalText is the answer to a rehearsal.
func rehearsalText(w io.Writer, m *revokdv1.RehearseResponse) {
	fmt.Fprint(w, "nothing was written; it would be\n  ")
	writeText(w, m.GetResult())
	if m.GetResult().GetRule() != nil {
		about := ""
		if m.GetShapeRecordsEstimated() {
			about = "about "
		}
		if m.GetShapeLive() {
			fmt.Fprintf(w, "claims  in use: %s%d live revocations have these names and this rule\n", about, m.GetShapeRecords())
		} else {
			fmt.Fprintln(w, "claims  new: no live revocation has these names")
		}
	}
	if m.GetChecks() == 0 {
		fmt.Fprintln(w, "checks  none: this node answered none in the last minutes")
		return
	}
	fmt.Fprintf(w, "checks  %d since %s: %d would have been refused, %d match and were refused anyhow, %d unclear\n",
		m.GetChecks(), formatTime(m.GetChecksSince()), m.GetWouldRefuse(), m.GetAlreadyRefused(), m.GetUnclear())
}

// sizeText writes a number of bytes for people.
func sizeText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, suffix := float64(n)/unit, "KiB"
	for _, s := range []string{"MiB", "GiB", "TiB"} {
		if value < unit {
			break
		}
		value, suffix = value/unit, s
	}
	return fmt.Sprintf("%.1f %s", value, suffix)
}

// ageText rounds a duration for people.
func ageText(d time.Duration) string {
	if d > time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}
