package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/app"
	"github.com/revokd/revokd/internal/audit"
)

// auditCommand has no function of its own.
func (c *cli) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Verify the record of who changed what",
		Long: `A node records every change that a caller asks for, accepted or refused, in lines of JSON in DATA/NAME/audit: who, when, from where,
what and why, and what became of it. Each line has a hash over itself and the line before.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.auditVerifyCommand())
	return cmd
}

// place is a line of a file, as JSON.
type place struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Reason string `json:"reason"`
}

func (c *cli) auditVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [PATH...]",
		Short: "Check that no line of an audit was changed, removed or put in",
		Long: `Read the files of an audit, in the order of their numbers, and check that each line follows from the one before. PATH is a directory or
a file; the default is the audit of the node that --data-dir and --node-name name. The files may be copies, and the node may run. The
exit code is 0 if the chain is whole and 1 if not: then the first line that does not fit is named.

The first line of the oldest file is believed: what was before it is not there to be checked. Lines that were cut off at the end, or a
chain that was made anew from some line on, cannot be seen in the files alone: keep the head that this command and the node's log tell,
elsewhere, and ask for it with --head. With --audit-key-file on the agent only the key's holders can make a chain anew; then --key-file
is needed here.`,
		Example: `  revokd audit verify
  revokd audit verify /var/lib/revokd/n1/audit --output json
  revokd audit verify copies/ --key-file audit.key --head 1042:5f2c...`,
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	var keyFiles []string
	var head string
	cmd.Flags().StringArrayVar(&keyFiles, "key-file", nil, "file with a key that the chain was made with, may be repeated")
	cmd.Flags().StringVar(&head, "head", "", "number and hash of a line that must be there, as 1042:5f2c...")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var d app.Data
		var err error
		if len(args) == 0 {
			if d, err = data(nil); err != nil {
				return err
			}
		}
		var anchor *audit.Head
		if head != "" {
			h, err := audit.ParseHead(head)
			if err != nil {
				return usagef("--head: %w", err)
			}
			anchor = &h
		}
		files, err := d.AuditFiles(args)
		if err != nil {
			return err
		}
		keys, err := app.AuditKeys(keyFiles)
		if err != nil {
			return fmt.Errorf("--key-file: %w", err)
		}
		r, err := audit.Verify(cmd.Context(), files, keys, anchor)
		if err != nil {
			return err
		}
		if err := c.printValue(auditReportOf(&r), func(w io.Writer) { auditText(w, &r) }); err != nil {
			return err
		}
		if !r.Whole() {
			return exitCode(exitError)
		}
		return nil
	}
	c.outputFlag(cmd)
	return cmd
}

// auditReport is what verify prints.
type auditReport struct {
	Whole   bool       `json:"whole"`
	Files   int        `json:"files"`
	Lines   uint64     `json:"lines"`
	Bytes   int64      `json:"bytes"`
	Nodes   []string   `json:"nodes"`
	First   uint64     `json:"firstLine"`
	Last    uint64     `json:"lastLine"`
	Head    string     `json:"head,omitempty"`
	From    *time.Time `json:"from,omitempty"`
	Until   *time.Time `json:"until,omitempty"`
	Lost    uint64     `json:"lostLines"`
	Open    int64      `json:"openBytes"`
	Torn    []place    `json:"torn"`
	Break   *place     `json:"break,omitempty"`
	Missing string     `json:"missingHead,omitempty"`
}

func auditReportOf(r *audit.Report) auditReport {
	out := auditReport{
		Whole: r.Whole(), Files: r.Files, Lines: r.Lines, Bytes: r.Bytes, Nodes: append([]string{}, r.Nodes...), First: r.First.N, Last: r.Last.N,
		From: known(r.From), Until: known(r.Until), Lost: r.Lost, Open: r.Open, Torn: []place{},
	}
	for _, t := range r.Torn {
		out.Torn = append(out.Torn, place(t))
	}
	if r.Last.N > 0 {
		out.Head = r.Last.String()
	}
	if r.Break != nil {
		out.Break = (*place)(r.Break)
	}
	if r.Missing != nil {
		out.Missing = r.Missing.String()
	}
	return out
}

func auditText(w io.Writer, r *audit.Report) {
	for _, t := range r.Torn {
		fmt.Fprintf(w, "torn    %s\n", oneLine(t.String()))
	}
	if r.Lost > 0 {
		fmt.Fprintf(w, "lost    %d lines that could not be written; the audit says so itself\n", r.Lost)
	}
	if r.Open > 0 {
		fmt.Fprintf(w, "open    %d bytes at the end are no whole line: a write under way, or one that a crash has torn\n", r.Open)
	}
	if r.Lines > 0 {
		fmt.Fprintf(w, "lines   %d to %d, in %d files, %s\nhead    %s\n", r.First.N, r.Last.N, r.Files, sizeText(r.Bytes), r.Last)
	}
	switch {
	case r.Break != nil:
		fmt.Fprintf(w, "broken  %s\n", oneLine(r.Break.String()))
	case r.Missing != nil:
		fmt.Fprintf(w, "broken  no line is %s: what was there has been cut off or made anew\n", r.Missing)
	default:
		fmt.Fprintln(w, "whole")
	}
}
