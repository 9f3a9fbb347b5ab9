package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes.
const (
	exitOK = iota
	exitError
	exitUsage
	exitRevoked
	exitUnknown
)

// cli is what the commands share: the outside world and the common flags.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string

	addr    string
	tls     tlsFiles
	bearer  string // file with a token
	timeout time.Duration
	output  string
}

// usageError is a mistake of the caller: exit code 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// exitCode ends the program with a code and without a message: the answer has been printed.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// run executes a command line and returns the exit code.
func run(args []string, c *cli) int {
	ctx, stop := interruptible(c.stderr)
	defer stop()
	root := c.root()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var code exitCode
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(c.stderr, "revokd: %s\nRun '%s --help' for the flags and examples.\n", err, cmd.CommandPath())
		return exitUsage
	}
	c.printError(err)
	return exitError
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM; the second one ends the process at once.
func interruptible(stderr io.Writer) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range signals {
			if ctx.Err() != nil {
				fmt.Fprintln(stderr, "revokd: second signal: stopped at once")
				os.Exit(exitError)
			}
			cancel()
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}

func (c *cli) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "revokd",
		Short: "Revoke JSON Web Tokens and ask whether one is revoked",
		Long: `revokd holds every live revocation in memory, keeps them on disk and forgets each by itself once no
token it names can still be alive.

"revokd agent" runs a node. "revokd journal" and "revokd restore" work on the data of one, "revokd ca" makes
certificates; every other command talks to one: --addr or REVOKD_ADDR names it.

Exit codes: 0 done, or the token is active; 1 error; 2 wrong usage; 3 the token is revoked; 4 unknown.`,
		Example: `  revokd agent --dev
  T=$(revokd dev token --sub alice)
  revokd revoke --token "$T"
  revokd check --token "$T"`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArguments,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	root.SetIn(c.stdin)
	root.SetFlagErrorFunc(flagError)
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 110 "))
	root.AddCommand(
		c.agentCommand(),
		c.revokeCommand(), c.blockCommand(), c.unblockCommand(),
		c.checkCommand(), c.explainCommand(),
		c.statusCommand(), c.healthCommand(), c.benchCommand(), c.validateCommand(), c.configCommand(),
		c.membersCommand(), c.joinCommand(), c.leaveCommand(), c.votersCommand(), c.keysCommand(),
		c.backupCommand(), c.restoreCommand(), c.journalCommand(), c.auditCommand(),
		c.caCommand(), c.credentialsCommand(),
		c.setupCommand(),
		c.devCommand(),
		c.versionCommand(),
	)
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" { // cobra's prints its help for a shell that it does not know, and exits with 0
			cmd.Args = noArguments
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return root
}

// noArguments refuses words that are no command and suggests the nearest.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasSubCommands() {
		return usagef("unexpected argument %q: this command takes flags only", args[0])
	}
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("unknown command %q%s", args[0], hint)
}

// flagError makes what pflag says a usage error and adds the nearest flag to an unknown one.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		if near := nearestFlag(cmd, unknown.GetSpecifiedName()); near != "" {
			return usagef("%w; did you mean --%s?", err, near)
		}
	}
	return &usageError{err}
}

func nearestFlag(cmd *cobra.Command, name string) string {
	return nearest(name, func(yield func(string) bool) {
		more := true
		cmd.Flags().VisitAll(func(f *pflag.Flag) { more = more && yield(f.Name) })
	})
}

// nearest returns which of the words somebody may have meant, or nothing.
func nearest(word string, words iter.Seq[string]) string {
	best, distance := "", 3
	for w := range words {
		d := editDistance(word, w)
		if len(word) >= 3 && strings.HasPrefix(w, word) {
			d = 1
		}
		if d < distance {
			best, distance = w, d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// exclusive refuses flags that contradict each other.
func exclusive(cmd *cobra.Command, names ...string) error {
	var given []string
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			given = append(given, "--"+name)
		}
	}
	if len(given) > 1 {
		return usagef("%s: conflict: only one of them", strings.Join(given, " and "))
	}
	return nil
}

// choice is a flag with a closed list of values; - and _ are the same in them.
type choice struct {
	value   string
	allowed []string
}

func (f *choice) String() string { return f.value }

// Type is what the help text shows for the value.
func (f *choice) Type() string {
	if list := strings.Join(f.allowed, "|"); len(list) <= 40 {
		return list
	}
	return "word"
}

func (f *choice) Set(s string) error {
	s = strings.ReplaceAll(strings.ToLower(s), "-", "_")
	if !slices.Contains(f.allowed, s) {
		return fmt.Errorf("must be one of %s", strings.Join(f.allowed, ", "))
	}
	f.value = s
	return nil
}

// choiceFlag adds a flag with a closed list of values and its completion.
func choiceFlag(cmd *cobra.Command, f *choice, name, usage string) {
	if f.Type() == "word" {
		usage += ": " + strings.Join(f.allowed, ", ")
	}
	cmd.Flags().Var(f, name, usage)
	if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(f.allowed, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag has just been added
	}
}
