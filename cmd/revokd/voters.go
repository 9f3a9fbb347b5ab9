package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

func (c *cli) votersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "voters",
		Short: "List or change the nodes whose word counts",
		Long: `List or change the voters: the nodes whose acknowledgements and views count. A revocation is acknowledged at quorum when more than half of them
hold it durably, and a check is as fresh as the view of more than half of them.

The voters agree on their list themselves, one change at a time; a majority of them has to be there. Other nodes replicate and answer checks as
well, but nobody waits for them.`,
		Example: `  revokd voters
  revokd voters add n4
  revokd voters remove n1`,
		Args: noArguments,
	}
	list := &cobra.Command{
		Use:     "list",
		Short:   "List the voters, as does revokd voters alone",
		Example: `  revokd voters list --output json`,
		Args:    noArguments,
	}
	for _, cmd := range []*cobra.Command{cmd, list} {
		cmd.RunE = func(cmd *cobra.Command, _ []string) error {
			res, err := c.members(cmd)
			if err != nil {
				return err
			}
			return c.print(res.GetVoters(), func(w io.Writer) { votersText(w, res) })
		}
		c.clientFlags(cmd)
	}
	cmd.AddCommand(list, c.votersAddCommand(), c.votersRemoveCommand(), c.votersAcceptLossCommand())
	return cmd
}

func votersText(w io.Writer, m *revokdv1.MembersResponse) {
	v := m.GetVoters()
	fmt.Fprintln(w, votersLine(v))
	if v.GetPending() != "" {
		fmt.Fprintln(w, "waits for", v.GetPending())
	}
	if v.GetNumber() == 0 {
		return
	}
	fmt.Fprintln(w)
	rows := [][]string{{"VOTER", "STATUS", "STATE", "VIEW"}}
	for _, name := range v.GetNames() {
		row := []string{name, "-", "-", "-"}
		if i := slices.IndexFunc(m.GetMembers(), func(p *revokdv1.Member) bool { return p.GetName() == name }); i >= 0 {
			p := m.GetMembers()[i]
			row = []string{name, p.GetStatus(), p.GetState(), fineText(p.GetViewAge())}
			if p.GetSelf() {
				row[3] = "asked here"
			}
		}
		rows = append(rows, row)
	}
	table(w, rows)
}

func (c *cli) votersAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a node a voter",
		Long: `Make a node that is a member ("revokd members") a voter. It becomes one when it has caught up with a majority of the voters; the
command waits for that, and after --timeout says what is still missing. Run it again then: it goes on.`,
		Example: `  revokd voters add n4
  revokd voters add n4 --timeout 10s --output json`,
	}
	c.voterChange(cmd, func(name string) *revokdv1.ChangeVotersRequest {
		return &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Add{Add: name}}
	})
	return cmd
}

func (c *cli) votersRemoveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a node from the voters",
		Long: `Take a node from the voters, running or not. A majority of the voters has to be there to agree. Remove a node that is gone for
good, and replace it with "revokd voters add": one change at a time.`,
		Example: `  revokd voters remove n1 && revokd voters add n4`,
	}
	c.voterChange(cmd, func(name string) *revokdv1.ChangeVotersRequest {
		return &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Remove{Remove: name}}
	})
	return cmd
}

// lossText says what the operator agrees to.
const lossText = `The voter %[1]s is given up without asking the others, on the word of whoever runs this command.

  What is lost: revocations that only %[1]s holds. Those that were acknowledged at ack local there, and those acknowledged at quorum
  whose other holders are gone as well, are then answered Active, until %[1]s comes back with its data.
  What it is for: too few voters are left to agree, and the others will not come back. While a majority is there,
  "revokd voters remove" does the same and loses nothing.
  Never on two nodes that do not reach each other: each would go on alone, and both would call themselves the majority.

`

func (c *cli) votersAcceptLossCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "accept-loss NAME",
		Short: "Go on without a voter when too few are left to agree",
		Long: fmt.Sprintf(lossText, "NAME") + `The command asks for the name of the voter once more unless --yes is given. Run it on one node only: the one that holds
the most records. With several voters gone, run it for each. The node logs it.`,
		Example: `  revokd voters accept-loss n3
  revokd voters accept-loss n3 --yes`,
	}
	send := c.voterChange(cmd, func(name string) *revokdv1.ChangeVotersRequest {
		return &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_AcceptLoss{AcceptLoss: name}}
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask: what is lost is known")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			if err := c.confirm(args[0]); err != nil {
				return err
			}
		}
		return send(cmd, args)
	}
	return cmd
}

// confirm asks on stderr, because stdout is for the answer of the node, and reads the voter's name from stdin.
func (c *cli) confirm(name string) error {
	fmt.Fprintf(c.stderr, lossText+"Type the name of the voter to go on: ", name)
	line, err := bufio.NewReader(io.LimitReader(c.stdin, 256)).ReadString('\n')
	switch typed := strings.TrimSpace(line); {
	case typed == name:
		return nil
	case typed == "" && err != nil:
		fmt.Fprintln(c.stderr)
		return usagef("nobody has confirmed it: type the name, or give --yes")
	}
	return errors.New("not confirmed: nothing was changed")
}

// voterChange makes a command that changes the voters, and returns what it does.
func (c *cli) voterChange(cmd *cobra.Command, request func(name string) *revokdv1.ChangeVotersRequest) func(cmd *cobra.Command, args []string) error {
	cmd.Args = arguments(1, 1, "the name of one node, as revokd members lists it")
	cmd.ValidArgsFunction = c.completeMembers
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		svc, err := c.clusterService()
		if err != nil {
			return err
		}
		req := request(args[0])
		req.Timeout = durationpb.New(waitOf(c.timeout))
		res, err := call(cmd.Context(), c, svc.ChangeVoters, req)
		if err != nil {
			return err
		}
		return c.print(res, func(w io.Writer) { fmt.Fprintln(w, votersLine(res.GetVoters())) })
	}
	c.clientFlags(cmd)
	c.patient(cmd)
	return cmd.RunE
}

// waitOf is how long the node may wait, so that its answer, which says for what, still comes in time: an eighth before the end, at least a second, at most half.
// No node lets a call take more than 30 s.
func waitOf(timeout time.Duration) time.Duration {
	return min(timeout-max(timeout/8, min(time.Second, timeout/2)), 28*time.Second)
}

// completionTimeout is how long a shell waits for names at most.
const completionTimeout = 5 * time.Second

// completeMembers asks the node, briefly, for names.
func (c *cli) completeMembers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c.timeout = completionTimeout
	res, err := c.members(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, m := range res.GetMembers() {
		names = append(names, m.GetName())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
