package main

import (
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func (c *cli) fingerprintCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fingerprint",
		Short: "Show and rotate the keys under which revocations are stored",
		Long: `Show and rotate the keys under which revocations are stored: of every name only a keyed hash is kept. What is stored cannot be stored anew under
another key, so for as long as it lives it is looked up under the key that it was made with. There are at most two keys at a time, on all nodes and
clients the same; the nodes pass them on, and no key is ever shown.

  revokd keys fingerprint add        a new key, which from then on everybody looks up too
  revokd keys fingerprint use ID     revocations are made under it
  revokd keys fingerprint drop ID    the older one goes, when all its revocations have expired

Each is done at one voter, while all voters are there, and returns when all of them have it. A node keeps the keys in its directory
(fingerprint.ring): a backup is of no use without that file, as it is without the first key.`,
		Example: `  revokd keys fingerprint list`,
		Args:    noArguments,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "List the keys of a node by their ids",
		Long:  `List the keys of a node by their ids, the one in use first: how many live revocations were made under each, and until when there may be any. The keys themselves are not shown.`,
		Example: `  revokd keys fingerprint list
  revokd keys fingerprint list --output json`,
		Args: noArguments,
	}
	c.fingerprintCall(list, func(string) *revokdv1.FingerprintKeysRequest { return &revokdv1.FingerprintKeysRequest{} })
	add := &cobra.Command{
		Use:   "add",
		Short: "Give all nodes and clients another key",
		Long: `Give all nodes and clients another key, which the node that is asked makes. Nothing is made under it before it is used. Versions that know of one key only are
not talked to from then on: upgrade everybody first, clients too.`,
		Example: `  revokd keys fingerprint add`,
		Args:    noArguments,
	}
	c.fingerprintCall(add, func(string) *revokdv1.FingerprintKeysRequest {
		return &revokdv1.FingerprintKeysRequest{Change: &revokdv1.FingerprintKeysRequest_Add{Add: true}}
	})
	use := &cobra.Command{
		Use:     "use ID",
		Short:   "Make revocations under a key that all have",
		Long:    `Make revocations under a key that all have. It is refused unless every voter, and every other node that is connected, has it.`,
		Example: `  revokd keys fingerprint use 0f3a5c77d1e2b490`,
	}
	c.fingerprintCall(use, func(id string) *revokdv1.FingerprintKeysRequest {
		return &revokdv1.FingerprintKeysRequest{Change: &revokdv1.FingerprintKeysRequest_Use{Use: id}}
	})
	drop := &cobra.Command{
		Use:   "drop ID",
		Short: "Take a key away of which no revocation is live",
		Long: `Take a key away of which no revocation is live. It is refused while any node may have one, and while a member does not answer, because that could have one:
bring it back, or have it forgotten if it is gone for good ("revokd members forget"). A block or unblock keeps its key for 400 days.`,
		Example: `  revokd keys fingerprint drop 9b1c0d2e3f405162`,
	}
	c.fingerprintCall(drop, func(id string) *revokdv1.FingerprintKeysRequest {
		return &revokdv1.FingerprintKeysRequest{Change: &revokdv1.FingerprintKeysRequest_Drop{Drop: id}}
	})
	cmd.AddCommand(list, add, use, drop)
	return cmd
}

// fingerprintCall makes a command of a call.
func (c *cli) fingerprintCall(cmd *cobra.Command, request func(id string) *revokdv1.FingerprintKeysRequest) {
	if strings.HasSuffix(cmd.Use, " ID") {
		cmd.Args = arguments(1, 1, "the id of a key, as revokd keys fingerprint list shows it")
	}
	var limit time.Duration
	if cmd.Use != "list" {
		cmd.Flags().DurationVar(&limit, "wait", 10*time.Second, "how long to wait until all voters have the change; at most 1m")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		svc, err := c.clusterService()
		if err != nil {
			return err
		}
		req := request(strings.Join(args, ""))
		if limit != 0 {
			req.Timeout = durationpb.New(limit)
		}
		res, err := call(cmd.Context(), c, svc.FingerprintKeys, req)
		if err != nil {
			return err
		}
		return c.print(res, func(w io.Writer) { fingerprintText(w, res) })
	}
	c.clientFlags(cmd)
	c.patient(cmd)
}

func fingerprintText(w io.Writer, m *revokdv1.FingerprintKeysResponse) {
	rows := [][]string{{"KEY", "IN USE", "REVOCATIONS", "UNTIL"}}
	for _, k := range m.GetKeys() {
		row := []string{k.GetId(), "-", strconv.FormatUint(k.GetRecords(), 10), "-"}
		if k.GetInUse() {
			row[1] = "yes"
		}
		if k.GetLiveUntil() != nil {
			row[3] = formatTime(k.GetLiveUntil())
		}
		rows = append(rows, row)
	}
	table(w, rows)
}
