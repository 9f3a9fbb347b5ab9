package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func (c *cli) membersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the nodes of the cluster as one node sees them, or forget a dead one",
		Long: `List the nodes of the cluster as the node sees that is asked.

STATUS is what gossip says: alive, suspect, dead, left. STATE is what the other says of itself: starting, replaying, syncing, ready, leaving.
EPOCH is the number of its run, another one after each start. RECORDS are those that it holds, which may differ by such that have expired.
CONNECTED: there is a session over which records travel. RTT and CLOCK are measured over it; CLOCK is how far the other's clock is ahead.
BEHIND are records that the other lacks of what this node holds, AHEAD those that this node lacks.
VIEW is how old this node's view of the other is; AUDIT is how long ago sums over all records were last found equal.
LAG is how long revocations made here took until the other said that it holds them, the way back included: upper bounds of half of
them and of 99 in 100. There is none until somebody revokes here: an idle link is judged by RTT, over the same session, and VIEW.`,
		Example: `  revokd members
  revokd members forget n3             # it is gone for good
  revokd members --output json | jq '.members[] | select(.status != "alive") | .name'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			res, err := c.members(cmd)
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) { membersText(w, res) })
		},
	}
	c.clientFlags(cmd)
	cmd.AddCommand(c.forgetCommand())
	return cmd
}

func (c *cli) forgetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "forget NAME",
		Short: "Say that a dead node is gone for good",
		Long: `Say that a dead node is gone for good: for all nodes that are alive it counts as one that has left. Nobody asks it to join any more, and keys of gossip and of
fingerprints are changed without it, which else waits for it.

Nothing is done if it is alive or connected for any node, if a node does not answer, or while it is a voter: remove it from the voters first. If it comes back all the
same it is a member again, but without the keys that it has missed; so give it an empty data directory and the gossip key in use.`,
		Example:           `  revokd voters remove n3 && revokd members forget n3`,
		Args:              arguments(1, 1, "the name of one node, as revokd members lists it"),
		ValidArgsFunction: c.completeMembers,
		RunE: func(cmd *cobra.Command, args []string) error {
			svc, err := c.clusterService()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Forget, &revokdv1.ForgetRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) {
				fmt.Fprintf(w, "%s counts as left on %s\n", args[0], strings.Join(res.GetNodes(), ", "))
			})
		},
	}
	c.clientFlags(cmd)
	c.patient(cmd)
	return cmd
}

func (c *cli) members(cmd *cobra.Command) (*revokdv1.MembersResponse, error) {
	svc, err := c.clusterService()
	if err != nil {
		return nil, err
	}
	return call(cmd.Context(), c, svc.Members, &revokdv1.MembersRequest{})
}

func membersText(w io.Writer, m *revokdv1.MembersResponse) {
	rows := [][]string{{"NAME", "STATUS", "STATE", "VOTER", "CONNECTED", "VERSION", "EPOCH", "RECORDS", "RTT", "CLOCK", "BEHIND", "AHEAD", "VIEW", "AUDIT", "LAG P50", "LAG P99"}}
	for _, p := range m.GetMembers() {
		row := []string{p.GetName(), p.GetStatus(), p.GetState(), yesNo(p.GetVoter())}
		connected := yesNo(p.GetConnected())
		if p.GetSelf() {
			connected = "asked here"
		}
		records := "-"
		if p.Records != nil {
			records = strconv.FormatUint(p.GetRecords(), 10)
		}
		row = append(row, connected, orDash(p.GetVersion()), orDash(p.GetEpoch()), records, fineText(p.GetRtt()), signText(p.GetClockOffset()))
		if p.GetConnected() {
			row = append(row, strconv.FormatUint(p.GetBehind(), 10), strconv.FormatUint(p.GetAhead(), 10))
		} else {
			row = append(row, "-", "-")
		}
		row = append(row, fineText(p.GetViewAge()), fineText(p.GetAuditAge()))
		if lag := p.GetLag(); lag.GetCount() > 0 {
			row = append(row, fineText(lag.GetP50()), fineText(lag.GetP99()))
		} else {
			row = append(row, "-", "-")
		}
		rows = append(rows, row)
	}
	table(w, rows)
	fmt.Fprintln(w)
	fmt.Fprintln(w, votersLine(m.GetVoters()))
	if p := m.GetVoters().GetPending(); p != "" {
		fmt.Fprintln(w, "waits for", p)
	}
}

func votersLine(v *revokdv1.Voters) string {
	if v.GetNumber() == 0 {
		return "no voters yet: the first list is formed when as many nodes are there as --bootstrap-expect says"
	}
	return fmt.Sprintf("voters, list %d: %s; %d of them are a quorum", v.GetNumber(), strings.Join(v.GetNames(), ", "), len(v.GetNames())/2+1)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// fineText writes a duration with about three digits, and a dash for one that there is none of.
func fineText(m *durationpb.Duration) string {
	if m == nil {
		return "-"
	}
	switch d := m.AsDuration(); {
	case d.Abs() < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d.Abs() < 100*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return ageText(d)
	}
}

// signText is fineText of an offset.
func signText(m *durationpb.Duration) string {
	if m.AsDuration() > 0 {
		return "+" + fineText(m)
	}
	return fineText(m)
}

func (c *cli) joinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join ADDR...",
		Short: "Make a running node meet others",
		Long: `Make a running node meet others: it exchanges the members it knows with them, goes on trying for ever, and remembers them over restarts.
An address is where another node gossips (--gossip-addr), not its API:

  host:port           every address that the name has now, looked up anew each time
  dns+name:port       the same, by its full name
  dnssrv+name         hosts and ports of the SRV records

Nodes that meet must have the same fingerprint key and share a gossip key. Who is new does not vote until "revokd voters add".`,
		Example: `  revokd join 10.0.0.1:7956 10.0.0.2:7956
  revokd join dnssrv+_revokd._udp.example.com`,
		Args:              arguments(1, 64, "the addresses of gossip of other nodes"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			svc, err := c.clusterService()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Join, &revokdv1.JoinRequest{Addresses: args})
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) {
				fmt.Fprintln(w, "joining: the node goes on trying until it has met them; \"revokd members\" shows who is there")
			})
		},
	}
	c.clientFlags(cmd)
	return cmd
}

func (c *cli) leaveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Let a node say good-bye to its cluster and stop",
		Long: `Let the node that is asked say good-bye to the others and stop. Its data stays, and when it is started again it is a member again.

It stays a voter: while it is away a quorum has to come from the others. To take a node away for good, remove it from the voters first.`,
		Example: `  revokd voters remove n3              # for good: on any node, first
  revokd leave --addr 10.0.0.3:7950`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			before, err := c.members(cmd)
			if err != nil {
				return err
			}
			svc, err := c.clusterService()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Leave, &revokdv1.LeaveRequest{})
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) {
				fmt.Fprintln(w, "left: the node has said good-bye and stops")
				i := slices.IndexFunc(before.GetMembers(), func(m *revokdv1.Member) bool { return m.GetSelf() && m.GetVoter() })
				if i >= 0 && len(before.GetVoters().GetNames()) > 1 {
					name := before.GetMembers()[i].GetName()
					fmt.Fprintf(w, "it is still a voter; if it does not come back, ask another node to: revokd voters remove %s\n", name)
				}
			})
		},
	}
	c.clientFlags(cmd)
	c.patient(cmd)
	return cmd
}

// patientTimeout is the default of --timeout where a node waits for others.
const patientTimeout = 30 * time.Second

// patient gives a command that default.
func (c *cli) patient(cmd *cobra.Command) {
	f := cmd.Flags().Lookup("timeout")
	f.DefValue = patientTimeout.String()
	cmd.PreRun = func(*cobra.Command, []string) {
		if !f.Changed {
			c.timeout = patientTimeout
		}
	}
}
