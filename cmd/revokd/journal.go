package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revokd/revokd/internal/app"
	"github.com/revokd/revokd/node"
)

func (c *cli) journalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "journal",
		Short: "Look at what a node keeps on disk, and repair it",
		Long: `Look at what a node keeps on disk, and repair it. These commands read the files and ask no node.

verify, stat and dump change nothing and take no lock: the node may run, and the directory may be read-only. repair needs the
node to have ended. The directory is named as for the agent, by --data-dir and --node-name or the same variables of the
environment, or as an argument; with the data of one node only it need not be named.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.journalVerifyCommand(), c.journalStatCommand(), c.journalRepairCommand(), c.journalDumpCommand())
	return cmd
}

// dataFlags adds what names the data of a node; the result is to be called with the arguments behind those that a command has itself.
func (c *cli) dataFlags(cmd *cobra.Command) func(args []string) (app.Data, error) {
	var d app.Data
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&d.DataDir, "data-dir", "", "where the data of the node lies, under its name (default $XDG_STATE_HOME/revokd, else ~/.local/state/revokd)")
	cmd.Flags().StringVar(&d.NodeName, "node-name", "", "name of the node (default: the only one that has data there)")
	return func(args []string) (app.Data, error) {
		both := settings{flags: []*pflag.Flag{cmd.Flag("data-dir"), cmd.Flag("node-name")}}
		if err := both.environment(c.environ); err != nil { // the agent's other variables are there too
			return d, err
		}
		if len(args) > 0 {
			for _, name := range []string{"data-dir", "node-name"} {
				if cmd.Flags().Changed(name) {
					return d, usagef("--%s: conflict: the directory is an argument already", name)
				}
			}
			if args[0] == "" {
				return d, usagef("the directory is empty")
			}
			d.Path = args[0]
			return d, nil
		}
		var err error
		if d.DataDir == "" {
			d.DataDir, err = defaultDataDir(c.getenv)
		}
		return d, err
	}
}

// completeFiles is for commands that take files and directories; the others have the shell complete nothing.
func completeFiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// arguments refuses fewer or more words than a command takes.
func arguments(least, most int, what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("missing argument: %s", what)
		case len(args) > most:
			return usagef("unexpected argument %q: want %s", args[most], what)
		}
		return nil
	}
}

// damage is a damaged part of a file, as JSON.
type damage struct {
	File    string `json:"file"`
	Offset  int64  `json:"offset"`
	Bytes   int64  `json:"bytes"`
	Records int64  `json:"records"` // about
	Reason  string `json:"reason"`
}

// report is what verify and stat print.
type report struct {
	Dir         string     `json:"dir"`
	Whole       bool       `json:"whole"`
	KeyID       string     `json:"keyId"`
	Incarnation string     `json:"incarnation"`
	Files       int        `json:"files"`
	Bytes       int64      `json:"bytes"`
	Torn        int64      `json:"tornBytes"`
	Records     int64      `json:"records"`
	Live        int64      `json:"live"`
	Expired     int64      `json:"expired"`
	Unusable    int64      `json:"unusable"`
	Shapes      int        `json:"shapes"`
	Oldest      *time.Time `json:"oldest,omitempty"`
	Newest      *time.Time `json:"newest,omitempty"`
	Earliest    *time.Time `json:"expiresFirst,omitempty"`
	Latest      *time.Time `json:"expiresLast,omitempty"`
	Damage      []damage   `json:"damage"`
}

func reportOf(r *node.JournalReport) report {
	return report{
		Dir: r.Dir, Whole: r.Whole(), KeyID: r.KeyID.String(), Incarnation: r.Incarnation, Files: r.Files, Bytes: r.Bytes, Torn: r.Torn,
		Records: r.Records, Live: r.Live, Expired: r.Expired, Unusable: r.Unusable, Shapes: r.Shapes,
		Oldest: known(r.Oldest), Newest: known(r.Newest), Earliest: known(r.Earliest), Latest: known(r.Latest), Damage: damageOf(r.Damage),
	}
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func damageOf(list []node.Damage) []damage {
	out := make([]damage, len(list))
	for i, d := range list {
		out[i] = damage{d.File, d.Offset, d.Bytes, d.Records, d.Reason}
	}
	return out
}

func damageText(w io.Writer, list []node.Damage) {
	for _, d := range list {
		fmt.Fprintf(w, "lost  %s\n", oneLine(d.String()))
	}
}

func (c *cli) journalVerifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify [DIR]",
		Short: "Read all of a journal and report damage",
		Long: `Read every byte that counts and report what cannot be read: file, offset, and about how many records are lost. Nothing is
changed. The exit code is 0 if a node can start with the journal and 1 if not. Bytes of a write at the end that was under way when the
node ended are torn: nobody was told of it, and the next start cuts them; that is no damage.`,
		Example: `  revokd journal verify
  revokd journal verify --data-dir /var/lib/revokd --node-name n1
  revokd journal verify /mnt/snapshot/n1 --output json`,
		Args:              arguments(0, 1, "a directory"),
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.describe(cmd, args, data, func(w io.Writer, r *node.JournalReport) {
			damageText(w, r.Damage)
			if r.Unusable > 0 {
				fmt.Fprintf(w, "lost  %d records that can be read but not understood\n", r.Unusable)
			}
			word := "whole"
			if !r.Whole() {
				word = "damaged"
			}
			fmt.Fprintf(w, "%s  %d records in %d files, %s\n", word, r.Records, r.Files, sizeText(r.Bytes))
			if !r.Whole() {
				fmt.Fprintf(w, "put the files or a backup (revokd restore) back, or keep everything readable with: revokd journal repair %s\n", r.Dir)
			}
		})
	}
	c.outputFlag(cmd)
	return cmd
}

// describe prints a report. The exit code is 1 if there is damage.
func (c *cli) describe(cmd *cobra.Command, args []string, data func([]string) (app.Data, error), text func(io.Writer, *node.JournalReport)) error {
	d, err := data(args)
	if err != nil {
		return err
	}
	r, err := d.Describe(cmd.Context(), time.Now(), nil)
	if err != nil {
		return err
	}
	if err := c.printValue(reportOf(&r), func(w io.Writer) { text(w, &r) }); err != nil {
		return err
	}
	if !r.Whole() {
		return exitCode(exitError)
	}
	return nil
}

func (c *cli) journalStatCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "stat [DIR]",
		Short: "Count what is in a journal",
		Long: `Count what is in a journal: live and expired records, bytes, when the oldest and the newest live record were made, and when the first
and the last of them expire. Expired is what has passed its deadline and the slack by this machine's clock; it goes in large pieces. A record that was
made again counts twice until the older one has gone. The exit code is 1 if there is damage.`,
		Example: `  revokd journal stat
  revokd journal stat --node-name n1 --output json`,
		Args:              arguments(0, 1, "a directory"),
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.describe(cmd, args, data, statText)
	}
	c.outputFlag(cmd)
	return cmd
}

func statText(w io.Writer, r *node.JournalReport) {
	instant := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return t.Format("2006-01-02T15:04:05.999Z07:00")
	}
	table(w, [][]string{
		{"journal", r.Dir},
		{"key id", r.KeyID.String()},
		{"incarnation", r.Incarnation},
		{"live", fmt.Sprint(r.Live)},
		{"expired", fmt.Sprint(r.Expired)},
		{"bytes", fmt.Sprintf("%d in %d files", r.Bytes, r.Files)},
		{"shapes", fmt.Sprint(r.Shapes)},
		{"oldest", instant(r.Oldest)},
		{"newest", instant(r.Newest)},
		{"first expires", instant(r.Earliest)},
		{"last expires", instant(r.Latest)},
	})
	damageText(w, r.Damage)
}

func (c *cli) journalRepairCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair [DIR]",
		Short: "Keep everything readable of a damaged journal and report the rest",
		Long: `Make a damaged journal one that a node can start with: everything that can be read is written anew, what cannot is reported and lost, and
the damaged files are moved to quarantine/ in the journal. Tokens that only lost revocations deny are answered Active afterwards, so restore a
backup instead if there is one that has them. The journal gets a new incarnation: a cluster does not count the node's word before it has
caught up. A journal without damage is not touched. The agent must not run; the disk needs room for what is readable once more.`,
		Example: `  revokd journal verify && echo nothing to repair
  revokd journal repair --node-name n1`,
		Args:              arguments(0, 1, "a directory"),
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := data(args)
		if err != nil {
			return err
		}
		r, err := d.Repair(cmd.Context(), time.Now())
		if err != nil {
			return err
		}
		out := struct {
			Dir         string   `json:"dir"`
			Repaired    bool     `json:"repaired"`
			Kept        int64    `json:"kept"`
			Unusable    int64    `json:"unusable"`
			Incarnation string   `json:"incarnation"`
			Quarantined []string `json:"quarantined"`
			Damage      []damage `json:"damage"`
		}{r.Dir, r.Repaired, r.Kept, r.Unusable, r.Incarnation, append([]string{}, r.Quarantined...), damageOf(r.Damage)}
		return c.printValue(out, func(w io.Writer) {
			if !out.Repaired {
				fmt.Fprintf(w, "nothing to repair in %s: %d records\n", r.Dir, r.Kept)
				return
			}
			damageText(w, r.Damage)
			if r.Unusable > 0 {
				fmt.Fprintf(w, "lost  %d records that could be read: what they mean was in a damaged part\n", r.Unusable)
			}
			for _, name := range r.Quarantined {
				fmt.Fprintf(w, "moved to %s\n", name)
			}
			fmt.Fprintf(w, "repaired  kept %d records, incarnation %s\n", r.Kept, r.Incarnation)
		})
	}
	c.outputFlag(cmd)
	return cmd
}

func (c *cli) journalDumpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dump [DIR]",
		Short: "Print every record: fingerprints and times only",
		Long: `Print every record that can be read, one in a line: fingerprint, rule, since when, and when it expires. No name was ever stored: a
fingerprint tells nothing without the key. The order means nothing, and some records may appear twice. The exit code is 1 if there
is damage, which is reported on stderr.`,
		Example: `  revokd journal dump
  revokd journal dump --output json | jq -r .rule | sort | uniq -c`,
		Args:              arguments(0, 1, "a directory"),
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := data(args)
		if err != nil {
			return err
		}
		w := bufio.NewWriterSize(c.stdout, 64<<10)
		encode := json.NewEncoder(w)
		r, err := d.Describe(cmd.Context(), time.Now(), func(rec node.JournalRecord) error {
			if c.output == "json" {
				return encode.Encode(struct {
					Fingerprint string     `json:"fingerprint"`
					Rule        string     `json:"rule"`
					Since       *time.Time `json:"since,omitempty"`
					ExpiresAt   time.Time  `json:"expiresAt"`
				}{rec.Fingerprint, rec.Rule, known(rec.Since), rec.ExpiresAt})
			}
			since := "-"
			if !rec.Since.IsZero() {
				since = rec.Since.Format(time.RFC3339)
			}
			_, err := fmt.Fprintf(w, "%s  %-13s  since %-20s  expires %s\n", rec.Fingerprint, rec.Rule, since, rec.ExpiresAt.Format(time.RFC3339))
			return err
		})
		if err == nil {
			err = w.Flush()
		}
		if err != nil {
			return err
		}
		damageText(c.stderr, r.Damage)
		if !r.Whole() {
			return exitCode(exitError)
		}
		return nil
	}
	c.outputFlag(cmd)
	return cmd
}
