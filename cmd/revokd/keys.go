package main

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/cluster"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func (c *cli) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Show and rotate the keys that seal gossip, and those of fingerprints",
		Long: `Show and rotate the keys that seal gossip (those under which revocations are stored: "revokd keys fingerprint"). A node opens what any key of its ring has sealed, and seals with the first one.
Whoever has such a key can pretend to be a member; it opens no revocation: those travel over other connections.

A key is rotated on all nodes at once, in three commands; the second and the third ask every node first, and change nothing while one lacks the key, seals with the one
to be removed, or does not answer:

  revokd keys install          a new key, which from then on every node can open
  revokd keys use ID           every node seals with it
  revokd keys remove ID        nobody opens the old one any more

A node that is dead holds that up: bring it back, or say that it is gone for good ("revokd members forget"). One that was away meanwhile has to be told by itself, with
--local and its address (--addr). The first keys come from "revokd keys
generate". A node keeps its ring in its data directory (gossip.keys); once that is there, --gossip-key-file is not read any more.`,
		Example: `  revokd keys generate >gossip.key         # for --gossip-key-file of the first nodes
  revokd keys list`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.keysListCommand(), c.keysInstallCommand(), c.keysUseCommand(), c.keysRemoveCommand(), c.keysGenerateCommand(), c.fingerprintCommand())
	return cmd
}

// newGossipKey is a key for AES-256.
func newGossipKey() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.StdEncoding.EncodeToString(b[:])
}

func (c *cli) keysGenerateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "generate",
		Short:   "Print a new key; no node is asked",
		Long:    `Print 32 random bytes in base64, as --gossip-key-file wants them, one key on each line. No node is asked, and nothing is stored.`,
		Example: `  (umask 077; revokd keys generate >gossip.key)`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			key := newGossipKey()
			if c.output == "json" {
				return c.printJSON(struct {
					Key string `json:"key"`
				}{key})
			}
			return c.write([]byte(key + "\n"))
		},
	}
	c.outputFlag(cmd)
	return cmd
}

func (c *cli) keysListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys of all nodes by their ids",
		Long: `List the keys of all nodes by their ids, the one that a node seals with first. The keys themselves are not shown. A node without keys
gossips in the clear, which only loopback allows.`,
		Example: `  revokd keys list
  revokd keys list --local --output json`,
		Args: noArguments,
	}
	c.keysCall(cmd, "", func(string) *revokdv1.GossipKeysRequest { return &revokdv1.GossipKeysRequest{} })
	return cmd
}

// installed is the answer to keys install.
type installed struct {
	ID    string     `json:"id"`
	Key   string     `json:"key,omitempty"`
	Nodes []nodeKeys `json:"nodes"`
}

type nodeKeys struct {
	Node  string   `json:"node"`
	IDs   []string `json:"ids"`
	Error string   `json:"error,omitempty"`
}

func (c *cli) keysInstallCommand() *cobra.Command {
	var text string
	var local bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Give all nodes another key",
		Long: `Give all nodes another key: a new one, which is printed, or the one of --key. From then on they open what it has sealed and go on
sealing with the key they use. Keep a new key as carefully as the old ones: nodes that join later need it in their --gossip-key-file.

The key travels to the nodes over the API, in the clear unless that has TLS.`,
		Example: `  revokd keys install
  revokd keys install --key @new.key`,
		Args: noArguments,
	}
	cmd.Flags().StringVar(&text, "key", "", "16, 24 or 32 bytes in base64; @file reads it from a file, - from stdin (default: a new one)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		fresh := text == ""
		key := newGossipKey()
		if cmd.Flags().Changed("key") {
			var err error
			if key, err = c.readInput("key", text); err != nil {
				return err
			}
		}
		raw, err := base64.StdEncoding.DecodeString(key)
		if n := len(raw); err != nil || n != 16 && n != 24 && n != 32 {
			return usagef("--key: malformed: want 16, 24 or 32 random bytes in base64, as revokd keys generate makes them")
		}
		id := cluster.KeyID(raw)
		res, err := c.gossipKeys(cmd, &revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Install{Install: key}, Local: local})
		if err != nil {
			return err
		}
		out := installed{ID: id}
		if fresh {
			out.Key = key
		}
		for _, n := range res.GetNodes() {
			out.Nodes = append(out.Nodes, nodeKeys{n.GetNode(), n.GetIds(), n.GetError()})
		}
		err = c.printValue(out, func(w io.Writer) {
			fmt.Fprintf(w, "installed  key id %s\n", id)
			if fresh {
				fmt.Fprintf(w, "key        %s\n", key)
			}
			fmt.Fprintln(w)
			keysText(w, res)
		})
		return cmp.Or(err, keysFailed(res))
	}
	localFlag(cmd, &local)
	c.clientFlags(cmd)
	c.patient(cmd)
	return cmd
}

func localFlag(cmd *cobra.Command, local *bool) {
	cmd.Flags().BoolVar(local, "local", false, "only on the node that is asked")
}

// keysCall makes a command of a change that is one call; without a change it lists.
func (c *cli) keysCall(cmd *cobra.Command, change string, request func(id string) *revokdv1.GossipKeysRequest) {
	var local bool
	if change != "" {
		cmd.Args = arguments(1, 1, "the id of a key, as revokd keys list shows it")
		cmd.ValidArgsFunction = c.completeKeys
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := request(strings.Join(args, ""))
		req.Local = local
		res, err := c.gossipKeys(cmd, req)
		if err != nil {
			return err
		}
		err = c.print(res, func(w io.Writer) { keysText(w, res) })
		return cmp.Or(err, keysFailed(res))
	}
	localFlag(cmd, &local)
	c.clientFlags(cmd)
	c.patient(cmd)
}

func (c *cli) gossipKeys(cmd *cobra.Command, req *revokdv1.GossipKeysRequest) (*revokdv1.GossipKeysResponse, error) {
	svc, err := c.clusterService()
	if err != nil {
		return nil, err
	}
	res, err := call(cmd.Context(), c, svc.GossipKeys, req)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(res.Nodes, func(a, b *revokdv1.GossipKeysResponse_NodeKeys) int { return strings.Compare(a.GetNode(), b.GetNode()) })
	return res, nil
}

func keysText(w io.Writer, m *revokdv1.GossipKeysResponse) {
	rows := [][]string{{"NODE", "IN USE", "OTHERS", "ERROR"}}
	for _, n := range m.GetNodes() {
		row := []string{n.GetNode(), "-", "-", orDash(oneLine(n.GetError()))}
		if ids := n.GetIds(); len(ids) > 0 {
			row[1], row[2] = ids[0], orDash(strings.Join(ids[1:], ", "))
		}
		rows = append(rows, row)
	}
	table(w, rows)
}

// keysFailed is the exit code of a change that has not reached every node.
func keysFailed(m *revokdv1.GossipKeysResponse) error {
	if slices.ContainsFunc(m.GetNodes(), func(n *revokdv1.GossipKeysResponse_NodeKeys) bool { return n.GetError() != "" }) {
		return exitCode(exitError)
	}
	return nil
}

// completeKeys asks the node, briefly, for the ids of its keys.
func (c *cli) completeKeys(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c.timeout = completionTimeout
	res, err := c.gossipKeys(cmd, &revokdv1.GossipKeysRequest{Local: true})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for _, n := range res.GetNodes() {
		ids = append(ids, n.GetIds()...)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (c *cli) keysUseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "use ID",
		Short: "Make all nodes seal with a key that they have",
		Long: `Make all nodes seal with a key that they have. Nothing is changed unless every node has it and answers: what is sealed with it would not be
understood everywhere.`,
		Example: `  revokd keys use 0f3a5c77d1e2b490`,
	}
	c.keysCall(cmd, "use", func(id string) *revokdv1.GossipKeysRequest {
		return &revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Use{Use: id}}
	})
	return cmd
}

func (c *cli) keysRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Take a key from all nodes",
		Long: `Take a key from all nodes. Nothing is changed while one of them seals with it, or does not answer: use another one first. It may have been
removed from some already.`,
		Example: `  revokd keys use 0f3a5c77d1e2b490
  revokd keys remove 9b1c0d2e3f405162`,
	}
	c.keysCall(cmd, "remove", func(id string) *revokdv1.GossipKeysRequest {
		return &revokdv1.GossipKeysRequest{Change: &revokdv1.GossipKeysRequest_Remove{Remove: id}}
	})
	return cmd
}
