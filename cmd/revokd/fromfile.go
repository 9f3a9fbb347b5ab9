package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revokd/revokd/cmd/revokd/internal/bulk"
	"github.com/revokd/revokd/internal/atomicfile"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// bulkFlags are those of revoke --from-file.
type bulkFlags struct {
	file, errors, resume string
	restart              bool
}

func (f *bulkFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.file, "from-file", "",
		`revoke what the lines name, - for stdin: {"jti":"..","iss":"..","exp":..}, {"match":{..},"expires_at":..,"issued_before":..,"below":{..}} or `+
			`{"token":"..","scope":".."}, each with an optional "reason"`)
	cmd.Flags().StringVar(&f.errors, "errors", "", "with --from-file: add a JSON object for each refused line to this file")
	cmd.Flags().StringVar(&f.resume, "resume-file", "", "with --from-file: where it keeps how far it came (default: the file's name + "+resumeSuffix+")")
	cmd.Flags().BoolVar(&f.restart, "restart", false, "with --from-file: begin anew although an earlier run left a resume file")
}

const resumeSuffix = ".revokd-progress"

// perLine are the flags of revoke that go with --from-file; the others belong into the lines.
var perLine = map[string]bool{
	"from-file": true, "errors": true, "resume-file": true, "restart": true,
	"reason": true, "comment": true, "ack": true, "ack-timeout": true, "addr": true, "timeout": true, "output": true,
}

// maxShown bounds the refused lines that are shown; --errors has them all.
const maxShown = 50

// revokeFile revokes what the lines of a file name.
func (c *cli) revokeFile(cmd *cobra.Command, f *revokeFlags) error {
	if err := checkFileFlags(cmd, f); err != nil {
		return err
	}
	svc, err := c.service()
	if err != nil {
		return err
	}
	src, err := c.openSource(&f.bulk)
	if err != nil {
		return err
	}
	defer src.close()
	// A wrong address is found at once; later the import is patient with a node that goes away.
	if _, err := call(cmd.Context(), c, svc.Status, &revokdv1.StatusRequest{}); err != nil {
		return err
	}
	refusals, err := openRefusals(c.stderr, src.name, f.bulk.errors)
	if err != nil {
		return err
	}
	defer refusals.close()

	meter := newMeter(c.stderr, src.size, src.start.Offset, time.Now())
	refusals.before = meter.clear
	options := f.write.options()
	options.IdempotencyKey = "" // of a single call
	var receipt *revokdv1.Receipt
	done, err := bulk.Run(cmd.Context(), bulk.Config{
		Service: svc, Input: src.in, Start: src.start, Options: options,
		Default: &revokdv1.RevokeRequest{Reason: f.write.reasonValue(), Comment: f.write.comment},
		Refused: refusals.add, Confirmed: func(r *revokdv1.Receipt) { receipt = r },
		Settled: func(p bulk.Progress) error {
			now := time.Now()
			meter.update(p, now)
			return src.save(p, now)
		},
	})
	meter.clear()
	unconfirmed := errors.Is(err, bulk.ErrUnconfirmed) && cmd.Context().Err() == nil
	if err != nil && !unconfirmed {
		return c.interrupted(cmd.Context(), src, done, err)
	}
	if err := errors.Join(refusals.close(), src.remove()); err != nil {
		return err
	}
	if unconfirmed {
		receipt = nil // the error has it
	}
	if err := c.printSummary(done, receipt); err != nil {
		return err
	}
	if unconfirmed && receiptOf(err) == nil {
		_, cause, _ := describe(c.explainFailure(err))
		return fmt.Errorf("%w: %s", bulk.ErrUnconfirmed, cause)
	}
	if unconfirmed {
		return err
	}
	if done.Refused > 0 {
		return exitCode(exitError)
	}
	return nil
}

func checkFileFlags(cmd *cobra.Command, f *revokeFlags) error {
	var err error
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if err == nil && !perLine[flag.Name] {
			err = usagef("--%s: conflict: with --from-file it belongs into the lines", flag.Name)
		}
	})
	if err == nil && f.bulk.file == "-" && (f.bulk.resume != "" || f.bulk.restart) {
		err = usagef("--from-file: stdin cannot be resumed: give a file")
	}
	return err
}

// interrupted saves how far it came and says how to go on.
func (c *cli) interrupted(ctx context.Context, src *source, done bulk.Progress, err error) error {
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	} else {
		err = c.explainFailure(err)
	}
	if src.resume == "" {
		return fmt.Errorf("%w; %d lines of stdin were handled", err, done.Line)
	}
	if saveErr := src.write(done); saveErr != nil {
		return errors.Join(err, saveErr)
	}
	return fmt.Errorf("%w; %d lines were handled: run the same command again to go on behind them", err, done.Line)
}

// printSummary writes what became of the lines, and in a cluster who holds them.
func (c *cli) printSummary(p bulk.Progress, receipt *revokdv1.Receipt) error {
	shared := len(receipt.GetConfirmed())+len(receipt.GetUnconfirmed()) > 1
	out := struct {
		Lines          int64           `json:"lines"`
		Revoked        int64           `json:"revoked"`
		Covered        int64           `json:"covered"`
		AlreadyExpired int64           `json:"already_expired"`
		Refused        int64           `json:"refused"`
		Receipt        json.RawMessage `json:"receipt,omitempty"`
	}{p.Line, p.Revoked, p.Covered, p.AlreadyExpired, p.Refused, nil}
	if shared {
		b, err := compactJSON(receipt)
		if err != nil {
			return err
		}
		out.Receipt = b
	}
	return c.printValue(out, func(w io.Writer) {
		fmt.Fprintf(w, "%d lines: %d revoked, %d covered, %d already expired, %d refused\n", p.Line, p.Revoked, p.Covered, p.AlreadyExpired, p.Refused)
		if shared {
			fmt.Fprintln(w, receiptText(receipt))
		}
	})
}

// source is the input of a bulk revocation and where its progress is kept.
type source struct {
	name   string
	in     io.Reader
	file   *os.File // nil: stdin
	size   int64    // 0: not known
	resume string   // "": cannot be resumed
	head   string   // hash of the first bytes of the file
	start  bulk.Progress
	saved  time.Time
}

// resumeState is the resume file.
type resumeState struct {
	Version    int    `json:"version"`
	Size       int64  `json:"size"`
	HeadSHA256 string `json:"head_sha256"`
	bulk.Progress
}

const (
	resumeVersion = 1
	headBytes     = 64 << 10
	saveEvery     = 200 * time.Millisecond
)

func (c *cli) openSource(f *bulkFlags) (*source, error) {
	if f.file == "-" {
		return &source{name: "stdin", in: c.stdin}, nil
	}
	file, err := os.Open(f.file)
	if err != nil {
		return nil, fmt.Errorf("--from-file: %w", err)
	}
	s := &source{name: f.file, in: file, file: file, resume: f.resume}
	if s.resume == "" {
		s.resume = f.file + resumeSuffix
	}
	if err := s.open(f.restart); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if s.start.Line > 0 {
		fmt.Fprintf(c.stderr, "revokd: going on behind line %d, as %s says (--restart begins anew)\n", s.start.Line, s.resume)
	}
	return s, nil
}

func (s *source) open(restart bool) error {
	info, err := s.file.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("--from-file: %w", err)
	case !info.Mode().IsRegular(): // a pipe: it can be read once and not be resumed
		s.resume = ""
		return nil
	}
	s.size = info.Size()
	head, err := io.ReadAll(io.LimitReader(s.file, headBytes))
	if err != nil {
		return fmt.Errorf("--from-file: %w", err)
	}
	sum := sha256.Sum256(head)
	s.head = hex.EncodeToString(sum[:])
	if !restart {
		if err := s.load(); err != nil {
			return err
		}
	}
	if _, err := s.file.Seek(s.start.Offset, io.SeekStart); err != nil {
		return fmt.Errorf("--from-file: %w", err)
	}
	return nil
}

// load reads the resume file of an earlier run, if there is one.
func (s *source) load() error {
	b, err := os.ReadFile(s.resume)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--resume-file: %w", err)
	}
	var state resumeState
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	switch err := dec.Decode(&state); {
	case err != nil || state.Version != resumeVersion || state.Offset < 0 || state.Offset > s.size || state.Line < 0:
		return fmt.Errorf("%s: malformed: not a resume file of this version; --restart begins anew", s.resume)
	case state.Size != s.size || state.HeadSHA256 != s.head:
		return fmt.Errorf("%s: conflict: it was made for another content of %s; --restart begins anew", s.resume, s.name)
	}
	s.start = state.Progress
	return nil
}

// save keeps the progress now and then: what is lost of it is done again, which changes nothing.
func (s *source) save(p bulk.Progress, now time.Time) error {
	if s.resume == "" || now.Sub(s.saved) < saveEvery {
		return nil
	}
	s.saved = now
	return s.write(p)
}

func (s *source) write(p bulk.Progress) error {
	b, err := json.Marshal(resumeState{Version: resumeVersion, Size: s.size, HeadSHA256: s.head, Progress: p})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(s.resume, append(b, '\n')); err != nil {
		return fmt.Errorf("--resume-file: %w", err)
	}
	return nil
}

func (s *source) remove() error {
	if s.resume == "" {
		return nil
	}
	if err := os.Remove(s.resume); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("--resume-file: %w", err)
	}
	return nil
}

func (s *source) close() {
	if s.file != nil {
		s.file.Close() // only read from
	}
}

// refusals reports refused lines: by number, never with what they hold.
type refusals struct {
	stderr io.Writer
	name   string
	file   *os.File // nil: no --errors
	before func()   // called before a line is written to stderr
	shown  int
}

func openRefusals(stderr io.Writer, name, path string) (*refusals, error) {
	r := &refusals{stderr: stderr, name: name}
	if path == "" {
		return r, nil
	}
	var err error
	if r.file, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, fmt.Errorf("--errors: %w", err)
	}
	return r, nil
}

func (r *refusals) add(x bulk.Refusal) error {
	line := struct {
		Line    int64  `json:"line"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}{x.Line, "invalid_argument", ""}
	if x.Err != nil {
		line.Message = oneLine(x.Err.Error())
	} else {
		line.Code, line.Message = x.Item.GetCode(), withDetail(x.Item.GetMessage(), x.Item.GetDetail())
	}
	if r.file != nil {
		b, err := json.Marshal(line)
		if err == nil {
			_, err = r.file.Write(append(b, '\n'))
		}
		if err != nil {
			return fmt.Errorf("--errors: %w", err)
		}
	}
	r.shown++
	switch {
	case r.shown <= maxShown:
		r.before()
		fmt.Fprintf(r.stderr, "%s:%d: %s\n", r.name, x.Line, line.Message)
	case r.shown == maxShown+1:
		r.before()
		fmt.Fprintf(r.stderr, "%s: more lines are refused; --errors FILE lists them all\n", r.name)
	}
	return nil
}

func (r *refusals) close() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	if err != nil {
		return fmt.Errorf("--errors: %w", err)
	}
	return nil
}
