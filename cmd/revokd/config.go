package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/revokd/revokd/internal/app"
)

const (
	envPrefix     = "REVOKD_"
	maxConfigFile = 1 << 20
)

// notFlags are variables of other commands and of test builds.
var notFlags = []string{"REVOKD_ADDR", "REVOKD_FAULTS"}

// pathFlags name files. In a configuration file they are relative to it, as keys_file in a file of issuers is.
var pathFlags = []string{"data-dir", "issuers", "key-file", "gossip-key-file", "tls-cert", "tls-key", "tls-ca", "credentials", "audit-dir", "audit-key-file"}

// Where a setting comes from, the first wins.
const (
	fromFlag    = "flag"
	fromDefault = "default"
)

// settings are the flags of an agent, which may also be given in the environment and in a file.
type settings struct {
	flags   []*pflag.Flag
	sources map[string]string // by flag; after resolve
	unknown []string          // variables that belong to no flag
}

// resolve sets the flags that were not given: from the environment, else from the file that --config names. A variable that belongs to no
// flag may be of something else, a key in the file may not.
func (s *settings) resolve(cmd *cobra.Command, environ []string) error {
	if err := s.environment(environ); err != nil {
		return err
	}
	if path := cmd.Flag("config").Value.String(); path != "" {
		if err := s.file(cmd, path); err != nil {
			return fmt.Errorf("--config: %s: %w", path, err)
		}
	}
	return nil
}

// environment sets the flags that were not given from the environment.
func (s *settings) environment(environ []string) error {
	s.sources = map[string]string{}
	byVariable := map[string]*pflag.Flag{}
	for _, f := range s.flags {
		byVariable[variable(f.Name)] = f
		s.sources[f.Name] = fromDefault
		if f.Changed {
			s.sources[f.Name] = fromFlag
		}
	}
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		f := byVariable[name]
		switch {
		case !strings.HasPrefix(name, envPrefix) || slices.Contains(notFlags, name) || value == "": // an empty one is none
		case f == nil:
			s.unknown = append(s.unknown, name)
		case s.sources[f.Name] != fromDefault:
		default:
			values := []string{value}
			if repeated(f) {
				values = strings.Split(value, ",")
			}
			if err := s.set(f, name, values); err != nil {
				return usagef("%s: %w", name, err)
			}
		}
	}
	return nil
}

// variable is the name of a flag in the environment.
func variable(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func repeated(f *pflag.Flag) bool {
	_, ok := f.Value.(pflag.SliceValue)
	return ok
}

func (s *settings) set(f *pflag.Flag, source string, values []string) error {
	for _, v := range values {
		if err := f.Value.Set(v); err != nil {
			return err
		}
	}
	s.sources[f.Name] = source
	return nil
}

// file reads a configuration file.
func (s *settings) file(cmd *cobra.Command, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.Unwrap(err) // without the path, which the caller names
	}
	defer f.Close()
	return s.read(cmd, path, f)
}

// read reads what the file of a path holds: one mapping in YAML, from the names of flags to their values. Each key must be a flag, once.
func (s *settings) read(cmd *cobra.Command, path string, r io.Reader) error {
	limited := &io.LimitedReader{R: r, N: maxConfigFile + 1}
	decoder := yaml.NewDecoder(limited)
	var document yaml.Node
	err := decoder.Decode(&document)
	if err == nil {
		if next := decoder.Decode(new(yaml.Node)); !errors.Is(next, io.EOF) {
			err = errors.New("one document, and no more")
		}
	}
	switch {
	case limited.N <= 0:
		return fmt.Errorf("too large: at most %d bytes", maxConfigFile)
	case errors.Is(err, io.EOF): // it is empty
		return nil
	case err != nil:
		return fmt.Errorf("malformed: %w", err)
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return errors.New("malformed: want lines such as api-addr: 127.0.0.1:7950")
	}
	seen := map[string]bool{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := slices.IndexFunc(s.flags, func(f *pflag.Flag) bool { return f.Name == key.Value && f.Name != "config" })
		switch {
		case at < 0:
			return fmt.Errorf("line %d: unknown key %q%s", key.Line, key.Value, s.hint(cmd, key.Value))
		case seen[key.Value]:
			return fmt.Errorf("line %d: %s: conflict: it is there twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		flag := s.flags[at]
		values, err := scalars(value, repeated(flag))
		if err == nil && slices.Contains(pathFlags, flag.Name) && !filepath.IsAbs(values[0]) {
			values[0] = filepath.Join(filepath.Dir(path), values[0])
		}
		if err == nil && s.sources[flag.Name] == fromDefault {
			err = s.set(flag, fmt.Sprintf("%s:%d", path, key.Line), values)
		}
		if err != nil {
			return fmt.Errorf("line %d: %s: %w", value.Line, flag.Name, err)
		}
	}
	return nil
}

func (s *settings) hint(cmd *cobra.Command, key string) string {
	near := nearestFlag(cmd, strings.ReplaceAll(strings.ToLower(key), "_", "-"))
	if !slices.ContainsFunc(s.flags, func(f *pflag.Flag) bool { return f.Name == near && near != "config" }) {
		return "; the keys are the flags of revokd agent"
	}
	return "; did you mean " + near + "?"
}

// scalars returns the value of a key, or several.
func scalars(n *yaml.Node, several bool) ([]string, error) {
	nodes := []*yaml.Node{n}
	if several && n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	var values []string
	for _, n := range nodes {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Value == "" {
			return nil, errors.New("malformed: want a value on the same line, or for a flag that may be repeated a list of them")
		}
		values = append(values, n.Value)
	}
	if len(values) == 0 {
		return nil, errors.New("missing: the list is empty")
	}
	return values, nil
}

// configCommand has no function of its own.
func (c *cli) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or print the settings of an agent",
		Long: `The settings of "revokd agent" are its flags. Each can also be given in the environment (REVOKD_API_ADDR for --api-addr) and in the YAML file that --config names,
under the name of the flag. A flag wins over the environment, that over the file, that over the default:

  # /etc/revokd/config.yaml; files are relative to this one
  node-name: n1
  api-addr: 10.0.0.1:7950
  join: [10.0.0.2:7956, 10.0.0.3:7956]
  tls-key: n1.key

Secrets are never settings, but in files that settings name.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.configValidateCommand(), c.configPrintCommand())
	return cmd
}

func (c *cli) configValidateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the settings of an agent, and every file that they name",
		Long: `Take flags, environment and file as "revokd agent" would, read every file that they name and say all that is wrong. Nothing is started, asked or written. The
exit code is 1 if something is wrong. A variable of the environment that belongs to no flag is an error here.`,
		Example: `  revokd config validate --config /etc/revokd/config.yaml`,
		Args:    noArguments,
	}
	agent := c.agentFlags(cmd)
	c.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := agent.config(cmd, c)
		if err != nil {
			return err
		}
		if unknown := agent.settings.unknown; len(unknown) > 0 {
			return fmt.Errorf("%s: unknown: no flag of the agent has that name", strings.Join(unknown, ", "))
		}
		issuers, err := app.ValidateConfig(cfg)
		if err != nil {
			return err
		}
		return c.printValid(issuers)
	}
	return cmd
}

func (c *cli) configPrintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print the settings that an agent would have, and where each comes from",
		Example: `  revokd config print --config /etc/revokd/config.yaml
  REVOKD_NODE_NAME=n7 revokd config print --output json`,
		Args: noArguments,
	}
	agent := c.agentFlags(cmd)
	c.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := agent.config(cmd, c); err != nil {
			return err
		}
		type setting struct {
			Name   string `json:"name"`
			Value  any    `json:"value"`
			Source string `json:"source"`
		}
		var list []setting
		for _, f := range agent.settings.flags {
			if f.Name == "config" {
				continue
			}
			var value any = f.Value.String()
			if v, ok := f.Value.(pflag.SliceValue); ok {
				value = v.GetSlice()
			}
			list = append(list, setting{f.Name, value, agent.settings.sources[f.Name]})
		}
		return c.printValue(list, func(w io.Writer) {
			rows := make([][]string, 0, len(list))
			for _, s := range list {
				text := fmt.Sprint(s.Value)
				if several, ok := s.Value.([]string); ok {
					text = strings.Join(several, ",")
				}
				if text == "" {
					text = "-"
				}
				rows = append(rows, []string{s.Name, text, s.Source})
			}
			table(w, rows)
		})
	}
	return cmd
}
