// Command bench measures revokd on the machine that it runs on, beside what a user would take instead, and writes raw data, a report and
// plots. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// scenario is one question. It runs in a process of its own, so that neither its memory nor its end concerns the next one.
type scenario struct {
	name  string
	about string
	run   func(ctx context.Context, r *Result, o options) error
	limit time.Duration // after which it is ended
	// isolated: in a network namespace of its own, if root runs this.
	isolated bool
}

func scenarios() []scenario {
	return []scenario{
		{name: "lookup", about: "latency and throughput of a check in memory, beside stores in memory and behind a socket", run: runLookup, limit: 60 * time.Minute},
		{name: "remote", about: "a check over the network", run: runRemote, limit: 24 * time.Minute},
		{name: "memory", about: "bytes for a revocation, and what the garbage collector makes of them", run: runMemory, limit: 40 * time.Minute},
		{name: "everywhere", about: "from a revocation to all nodes", run: runEverywhere, limit: 50 * time.Minute},
		{name: "lossy", about: "the same with packets lost between one node and the others", run: runLossy, limit: 24 * time.Minute, isolated: true},
		{name: "writes", about: "acknowledged writes on disk", run: runWrites, limit: 24 * time.Minute},
		{name: "restart", about: "start, catching up, joining empty", run: runRestart, limit: 40 * time.Minute},
		{name: "mass", about: "a million tokens, and one cutoff", run: runMass, limit: 24 * time.Minute},
		{name: "micro", about: "Go benchmarks of the packages, as benchstat reads them", run: runMicro, limit: 50 * time.Minute},
		{name: "growth", about: "every figure as a function of size: the fitted curve, and the simulator", run: runGrowth, limit: 24 * time.Minute},
	}
}

// options of a run.
type options struct {
	quick   bool
	dir     string // of the results
	profile string // directory of profiles; empty: none
	root    string // of the repository
	program string // revokd, built from it
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == holdArg {
		if err := hold(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "small sizes, under two minutes: shows that everything works, not how fast it is")
	only := flag.String("scenario", "", "some of them, separated by commas: "+names())
	out := flag.String("out", "", "directory of the results, which are merged into what it holds (default results/<date>-<machine>, with -quick a temporary one)")
	flag.StringVar(&o.profile, "profile", "", "directory in which to write CPU and memory profiles of the scenarios")
	flag.StringVar(&o.program, "program", "", "for this program only: revokd, as it was built for this run")
	child := flag.String("child", "", "for this program only: the scenario to run in this process")
	report := flag.String("report", "", "make report and plots of a directory of results anew, and measure nothing")
	readme := flag.Bool("readme", false, "write the figures of the latest committed results into the README, and measure nothing")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := firstLine("git", "rev-parse", "--show-toplevel")
	if root == "" {
		root = ".."
	}
	o.root = root
	switch {
	case *readme:
		return writeReadme(root)
	case *report != "":
		return writeReport(*report)
	case *child != "":
		o.dir = *out
		return runChild(ctx, *child, o)
	}
	chosen := scenarios()
	if *only != "" {
		chosen = nil
		for name := range strings.SplitSeq(*only, ",") {
			i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == strings.TrimSpace(name) })
			if i < 0 {
				return fmt.Errorf("no scenario %q: there are %s", name, names())
			}
			chosen = append(chosen, scenarios()[i])
		}
	}
	env := environment("")
	switch {
	case *out != "":
		o.dir = *out
	case o.quick:
		dir, err := os.MkdirTemp("", "revokd-bench")
		if err != nil {
			return err
		}
		o.dir = dir
	default:
		o.dir = filepath.Join(root, "bench", "results", time.Now().UTC().Format(time.DateOnly)+"-"+env.slug())
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	began := time.Now()
	tmp, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // nodes of other users run it too
		return err
	}
	if o.program, err = buildRevokd(ctx, root, tmp); err != nil {
		return err
	}
	failed := 0
	for i, s := range chosen {
		fmt.Printf("== %d of %d: %s: %s\n", i+1, len(chosen), s.name, s.about)
		if err := runProcess(ctx, s, o); err != nil {
			failed++
			fmt.Printf("== %s FAILED: %v\n", s.name, err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := writeReport(o.dir); err != nil {
		return err
	}
	fmt.Printf("== %d scenarios in %s; %s\n", len(chosen), time.Since(began).Round(time.Second), filepath.Join(o.dir, "report.md"))
	if failed > 0 {
		return fmt.Errorf("%d of %d scenarios failed; run them again with -scenario and -out %s", failed, len(chosen), o.dir)
	}
	return nil
}

func names() string {
	list := make([]string, len(scenarios()))
	for i, s := range scenarios() {
		list[i] = s.name
	}
	return strings.Join(list, ",")
}

// runProcess runs a scenario in a process of its own, which writes its result, and writes one that says so if it did not.
func runProcess(ctx context.Context, s scenario, o options) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	args := []string{"-child", s.name, "-out", o.dir, "-profile", o.profile, "-program", o.program}
	if o.quick {
		args = append(args, "-quick")
	}
	file := filepath.Join(o.dir, s.name+".json")
	if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
		return err
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, self, args...)
	if s.isolated && os.Geteuid() == 0 {
		cmd.SysProcAttr = isolated()
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// What it leaves when it is killed goes too.
	tmp, err := os.MkdirTemp("", "revokd-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // servers run as other users
		return err
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second // in which it ends the servers that it has started
	err = cmd.Run()
	if _, missing := os.Stat(file); missing != nil {
		r := &Result{Scenario: s.name, Quick: o.quick, Began: began, Ended: time.Now(), Machine: environment(command(o)), Failed: []string{fmt.Sprintf("the process: %v", err)}}
		return errors.Join(err, r.write(o.dir))
	}
	return err
}

func command(o options) string {
	if o.quick {
		return "go run -C bench . -quick"
	}
	return "go run -C bench ."
}

func runChild(ctx context.Context, name string, o options) error {
	i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == name })
	if i < 0 {
		return fmt.Errorf("no scenario %q", name)
	}
	r := &Result{Scenario: name, Quick: o.quick, Began: time.Now(), LoadBegan: load(), Machine: environment(command(o))}
	if o.profile != "" {
		stop, err := profile(o.profile, name)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := scenarios()[i].run(ctx, r, o); err != nil {
		r.fail(name, err)
	}
	r.Ended, r.LoadEnded = time.Now(), load()
	if err := r.write(o.dir); err != nil {
		return err
	}
	if len(r.Failed) > 0 {
		return errors.New(strings.Join(r.Failed, "; "))
	}
	return nil
}

// profile begins to profile this process; servers and agents are processes of their own and not in it.
func profile(dir, name string) (stop func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, name+".cpu.pprof"))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		f.Close()
		if h, err := os.Create(filepath.Join(dir, name+".allocs.pprof")); err == nil {
			_ = pprof.Lookup("allocs").WriteTo(h, 0) // what can be had of it
			h.Close()
		}
	}, nil
}

var started = time.Now()

// progress prints what is being done.
func progress(format string, args ...any) {
	fmt.Printf("   %6.1fs %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}
