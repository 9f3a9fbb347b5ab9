package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/revokd/revokd/internal/app"
)

// agentSettings are the flags of an agent and what they set.
type agentSettings struct {
	cfg                app.AgentConfig
	durability, format choice
	levels             levels
	auditFailure       choice
	memory, auditSize  size
	settings           settings
	logs               *logs // after config
}

func (c *cli) agentCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node",
		Long: `Run a node until SIGINT or SIGTERM; a second signal ends it at once. It is no longer ready from then on, lets what it has accepted finish, writes
what is left to disk and says good-bye to the others. SIGHUP makes it read --issuers, --credentials, the files of TLS and
the --log-level and rates of --config anew, all of them or none.

With --dev nothing needs to be configured: the node makes its keys and an issuer whose tokens "revokd dev token"
mints, and keeps them and every revocation in the data directory. Without it --issuers says who issues the tokens and
--key-file holds the fingerprint key.

Each flag can be given in the environment (REVOKD_API_ADDR for --api-addr and so on) and in the file that --config names. Flags win over the
environment, that over the file. "revokd config" checks and prints what comes of it.`,
		Example: `  revokd agent --dev
  revokd agent --issuers issuers.json --key-file fingerprint.key --data-dir /var/lib/revokd
  revokd agent --issuers issuers.json --key-file fingerprint.key --node-name n1 --api-addr 10.0.0.1:7950 \
    --tls-cert n1.crt --tls-key n1.key --tls-ca ca.crt`,
		Args: noArguments,
	}
	a := c.agentFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := a.config(cmd, c)
		if err != nil {
			return err
		}
		for _, name := range a.settings.unknown {
			cfg.Logger.Warn("unknown environment variable", "name", name)
		}
		if cfg.Supervisor, err = app.SupervisorFromEnv(c.getenv, os.Getpid()); err != nil {
			return err
		}
		reload := make(chan os.Signal, 1)
		signal.Notify(reload, syscall.SIGHUP)
		defer signal.Stop(reload)
		cfg.Reload = reload
		cfg.Reread = func() (app.Rates, func(), error) { return a.reread(c) }
		return app.Agent(cmd.Context(), cfg)
	}
	return cmd
}

// agentFlags adds the flags of an agent.
func (c *cli) agentFlags(cmd *cobra.Command) *agentSettings {
	a := &agentSettings{
		cfg:          app.AgentConfig{Version: version, Stdout: c.stdout, Command: programName()},
		durability:   choice{value: "disk", allowed: []string{"disk", "memory"}},
		auditFailure: choice{value: "refuse", allowed: []string{"refuse", "continue"}},
		levels:       levels{text: "info", least: hclog.Info},
		format:       choice{value: "text", allowed: []string{"text", "json"}},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	var path string
	flags.StringVar(&path, "config", "", "YAML file with settings: the names of these flags with their values; flags and the environment win")
	flags.BoolVar(&a.cfg.Dev, "dev", false, "one node with nothing to configure, which mints tokens: to try things out")
	flags.StringVar(&a.cfg.APIAddr, "api-addr", app.DefaultAPIAddr, "where to listen; beyond loopback only with TLS. Port 0 takes a free one, and so does --dev if the port is taken")
	flags.StringVar(&a.cfg.DataDir, "data-dir", "", "where the data of the node lies, under its name (default $XDG_STATE_HOME/revokd, else ~/.local/state/revokd)")
	flags.StringVar(&a.cfg.NodeName, "node-name", "", "name of the node (default dev with --dev, else the name of the host)")
	choiceFlag(cmd, &a.durability, "durability", "disk: what was acknowledged survives; memory: it is gone with the process")
	flags.StringVar(&a.cfg.IssuersFile, "issuers", "", `JSON file of the issuers: {"issuers":[{"issuer":"https://id.example","discovery":true}]}`)
	flags.StringVar(&a.cfg.KeyFile, "key-file", "", "file with the fingerprint key: 16 random bytes as 32 hex digits")
	flags.StringArrayVar(&a.cfg.Cluster.Join, "join", nil, "node to meet, may be repeated: its gossip address (host:port, dns+name:port, dnssrv+name); with --dev the address of its API")
	flags.StringVar(&a.cfg.Cluster.GossipAddr, "gossip-addr", "", "where to gossip, ip:port over UDP and TCP (default "+app.DefaultGossipAddr+" in a cluster, any free port with --dev)")
	flags.StringVar(&a.cfg.Cluster.GossipAdvertise, "gossip-advertise", "", "ip:port at which others reach --gossip-addr, if it is another")
	flags.StringVar(&a.cfg.Cluster.APIAdvertise, "api-advertise", "", "host:port at which other nodes reach the API, if it is not --api-addr")
	flags.StringVar(&a.cfg.Cluster.GossipKeyFile, "gossip-key-file", "", "file with the keys of the gossip, base64, one on each line; required beyond loopback (revokd keys generate)")
	flags.IntVar(&a.cfg.Cluster.BootstrapExpect, "bootstrap-expect", 0, "how many nodes form the first list of voters when all of them are there; 1 makes a cluster of this node; 0 joins one that exists")
	flags.BoolVar(&a.cfg.Cluster.StartAlone, "start-alone", false, "after a start do not wait for another node: checks with freshness any may then call a revoked token active")
	flags.DurationVar(&a.cfg.Cluster.MaxStaleness, "max-staleness", 0, "how old the view of a majority may be before checks answer unknown (default 30s)")
	flags.DurationVar(&a.cfg.Cluster.AckTimeout, "ack-timeout", 0, "how long a write waits for other nodes before it says which have not confirmed (default 5s)")
	flags.StringVar(&a.cfg.TLS.Cert, "tls-cert", "", "file with the certificate of this node, for TLS with other nodes and clients (revokd ca issue node); a renewed one is taken while the node runs")
	flags.StringVar(&a.cfg.TLS.Key, "tls-key", "", "file with its key")
	flags.StringVar(&a.cfg.TLS.CA, "tls-ca", "", "file with the authority, whose certificates are believed: each caller may what the role in his says")
	flags.BoolVar(&a.cfg.Insecure, "insecure", false, "listen beyond loopback without TLS: whoever reaches the port reads along and may do everything. The log says so every hour")
	flags.StringVar(&a.cfg.CredentialsFile, "credentials", "", "YAML file of the bearer tokens that are taken besides certificates, and of the issuers and tenants that writers are limited to (revokd credentials new)")
	flags.IntVar(&a.cfg.Rates.Writer, "writer-rate", 1000, "records that one writer may write in a second, in calls; admins are not held")
	flags.IntVar(&a.cfg.Rates.Bulk, "bulk-rate", 50_000, "records that one writer may write in a second, in streams, which wait")
	flags.IntVar(&a.cfg.Rates.Issuer, "issuer-rate", 50_000, "records that all writers together may write in a second for one issuer")
	flags.IntVar(&a.cfg.IssuerRecords, "issuer-records", 0, "live records that all writers together may have written on this node for one issuer; admins are not held (default no limit but those of the node)")
	flags.IntVar(&a.cfg.Cluster.NodeRecords, "max-node-records", 0, "most live records that one node of the cluster may have written; the same on all (default what writers may write)")
	flags.IntVar(&a.cfg.Cluster.NodeRate, "max-node-rate", 0, "most records that one node of the cluster may write in a second, over ten (default 250000)")
	flags.IntVar(&a.cfg.MaxRecords, "max-records", 0, "most records held; beyond it writes are refused (default 100 million)")
	flags.Var(&a.memory, "max-memory", "most memory for records, such as 512MiB; beyond it writes are refused (default 8GiB)")
	flags.DurationVar(&a.cfg.ShutdownDelay, "shutdown-delay", 0, "how long to go on answering, no longer ready, after SIGTERM: as long as a load balancer needs to see it")
	flags.StringVar(&a.cfg.Trace.Endpoint, "trace-endpoint", "", "URL of a receiver of OTLP over HTTP, to which spans of writes are sent, such as http://127.0.0.1:4318 (default what OTEL_EXPORTER_OTLP_ENDPOINT says; none without it)")
	flags.StringVar(&a.cfg.Trace.Sample, "trace-sample", "", "fraction of the writes that are traced if their callers do not say (default 0.01, or as OTEL_TRACES_SAMPLER says)")
	flags.StringVar(&a.cfg.PprofAddr, "pprof-addr", "", "loopback address at which profiles of this process are served to whoever is on this machine (/debug/pprof/); none by default")
	flags.StringVar(&a.cfg.Audit.Dir, "audit-dir", "", "where the audit lies: who changed what, in lines of JSON (default audit in the data of the node)")
	flags.BoolVar(&a.cfg.Audit.Values, "audit-values", false, "have the values of claims in the audit, and not only their names and a fingerprint")
	choiceFlag(cmd, &a.auditFailure, "audit-on-failure", "while the audit cannot be written: refuse every change, or continue and count what is lost")
	flags.StringVar(&a.cfg.Audit.KeyFile, "audit-key-file", "", "file with a key, 32 random bytes or more in hex: without it nobody can make the audit anew, nor verify it")
	flags.Var(&a.auditSize, "audit-file-size", "size at which the audit goes on in a new file, 64KiB to 1GiB (default 64MiB)")
	flags.DurationVar(&a.cfg.Audit.FileAge, "audit-file-age", 0, "age at which it does (default 24h)")
	flags.IntVar(&a.cfg.Audit.Files, "audit-files", 0, "how many files of the audit are kept (default 100)")
	flags.Var(&a.levels, "log-level", "least level that is logged, to stderr: "+strings.Join(logLevels, ", ")+"; of parts too: info,cluster=debug,journal=trace")
	if err := cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions(a.levels.completions(), cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // the flag has just been added
	}
	choiceFlag(cmd, &a.format, "log-format", "text, or one JSON object per line")
	flags.VisitAll(func(f *pflag.Flag) { a.settings.flags = append(a.settings.flags, f) })
	return a
}

// config returns what the agent is started with, of flags, environment, file and defaults.
func (a *agentSettings) config(cmd *cobra.Command, c *cli) (cfg app.AgentConfig, err error) {
	if err := a.settings.resolve(cmd, c.environ); err != nil {
		return cfg, err
	}
	cfg = a.cfg
	if cfg.DataDir == "" {
		if cfg.DataDir, err = defaultDataDir(c.getenv); err != nil {
			return cfg, err
		}
	}
	cfg.MaxMemory = int64(a.memory)
	cfg.Durability = a.durability.value
	cfg.Audit.OnFailure, cfg.Audit.FileBytes = a.auditFailure.value, int64(a.auditSize)
	a.logs = newLogs(c.stderr, a.format.value == "json", a.levels)
	cfg.Logger = a.logs.root
	return cfg, nil
}

// reloadable are the settings that are taken from the file of --config at SIGHUP.
var reloadable = []string{"log-level", "writer-rate", "bulk-rate", "issuer-rate"}

// reread takes flags, environment and file again. Of what has changed in the file the rates and, by apply, the levels of the log are taken; the rest needs a restart, which it says.
func (a *agentSettings) reread(c *cli) (rates app.Rates, apply func(), err error) {
	again := &cobra.Command{}
	next := c.agentFlags(again)
	for _, f := range a.settings.flags {
		if a.settings.sources[f.Name] != fromFlag {
			continue
		}
		values := []string{f.Value.String()}
		if several, ok := f.Value.(pflag.SliceValue); ok {
			values = several.GetSlice()
		}
		for _, v := range values {
			if err := again.Flags().Set(f.Name, v); err != nil {
				return rates, nil, fmt.Errorf("--%s: %w", f.Name, err)
			}
		}
	}
	if err := next.settings.resolve(again, c.environ); err != nil {
		return rates, nil, err
	}
	var restart []string
	for _, f := range a.settings.flags {
		if !slices.Contains(reloadable, f.Name) && f.Value.String() != again.Flag(f.Name).Value.String() {
			restart = append(restart, f.Name)
		}
	}
	return next.cfg.Rates, func() {
		a.logs.set(next.levels)
		if len(restart) > 0 {
			a.logs.root.Warn("changed in the file, but in force only after a restart", "settings", strings.Join(restart, ","))
		}
	}, nil
}

// defaultDataDir follows the XDG base directories: state is what should survive a restart.
func defaultDataDir(getenv func(string) string) (string, error) {
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) { // the specification ignores relative ones
		return filepath.Join(dir, "revokd"), nil
	}
	if home := getenv("HOME"); home != "" {
		return filepath.Join(home, ".local", "state", "revokd"), nil
	}
	return "", usagef("--data-dir: missing, and there is no HOME to put it under")
}

// programName is how the user called this program, so that what is printed can be copied.
func programName() string {
	called := os.Args[0]
	switch {
	case strings.Contains(called, string(filepath.Separator)+"go-build"):
		return "go run ./cmd/revokd"
	case strings.ContainsRune(called, filepath.Separator) && !strings.ContainsAny(called, " '\"$"):
		return called
	}
	return "revokd"
}

// size is a flag that takes bytes with a unit.
type size int64

func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}
func (s *size) Type() string { return "size" }

func (s *size) Set(text string) error {
	digits, shift := text, 0
	for i, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if d, ok := strings.CutSuffix(text, unit); ok {
			digits, shift = d, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)>>shift {
		return fmt.Errorf("want bytes, with a unit such as 512MiB or 4GiB")
	}
	*s = size(n << shift)
	return nil
}
