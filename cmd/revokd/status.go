package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
)

// table writes rows in columns.
func table(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	tw.Flush()
}

func (c *cli) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Describe the node: readiness, clock, records, memory, journal, cluster",
		Long:  `Describe the node, and how it stands to the voters of its cluster; "revokd members" lists the other nodes. The exit code is 0 whenever the node answered; "revokd health" tells whether it is ready.`,
		Example: `  revokd status
  revokd status --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			svc, err := c.service()
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), c, svc.Status, &revokdv1.StatusRequest{})
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) { statusText(w, res) })
		},
	}
	c.clientFlags(cmd)
	return cmd
}

func statusText(w io.Writer, s *revokdv1.StatusResponse) {
	ready := "yes"
	if !s.GetReady() {
		ready = "no: " + strings.Join(s.GetWaitingFor(), "; ")
	}
	limit := func(n int64) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf(" of %d", n)
	}
	rows := [][]string{
		{"node", s.GetNode()},
		{"version", s.GetVersion()},
		{"epoch", orDash(s.GetEpoch())},
		{"ready", ready},
		{"uptime", ageText(s.GetUptime().AsDuration())},
		{"durability", enumName(s.GetDurability().String(), "DURABILITY_")},
		{"records", fmt.Sprintf("%d%s", s.GetRecords(), limit(s.GetRecordsLimit()))},
		{"memory", sizeText(s.GetMemoryBytes())},
		{"shapes", fmt.Sprintf("%d%s", s.GetLiveShapes(), limit(int64(s.GetLiveShapesLimit())))},
		{"clock", s.GetClock()},
		{"now", formatTime(s.GetNow())},
		{"guarded time", formatTime(s.GetGuarded())},
		{"key id", keyText(s)},
		{"issuers", strings.Join(s.GetIssuers(), ", ")},
	}
	if n := s.GetBlocksEndingSoon(); n > 0 {
		rows = append(rows, []string{"blocks", fmt.Sprintf("%d end within 7 days", n)})
	}
	if s.GetDev() {
		rows = append(rows, []string{"dev", "yes: tokens can be minted here"})
	}
	if j := s.GetJournal(); j != nil {
		rows = append(rows, []string{"journal", fmt.Sprintf("%s, %d files in %s", sizeText(j.GetBytes()), j.GetFiles(), j.GetDir())})
		if j.GetCut() > 0 {
			rows = append(rows, []string{"journal cut", fmt.Sprintf("%d bytes at its end, torn or damaged, when the node started", j.GetCut())})
		}
		if j.GetError() != "" {
			rows = append(rows, []string{"journal error", j.GetError()})
		}
	}
	if r := s.GetReplication(); r.GetVotersNumber() > 0 || r.GetPeers() > 0 || r.GetClients() > 0 {
		rows = append(rows, replicationRows(r)...)
	}
	table(w, rows)
}

func replicationRows(r *revokdv1.ReplicationStatus) [][]string {
	voters := "none yet"
	if r.GetVotersNumber() > 0 {
		role := "this node is not one of them"
		if r.GetVotes() {
			role = "this node votes"
		}
		voters = fmt.Sprintf("%s (list %d, %s)", strings.Join(r.GetVoters(), ", "), r.GetVotersNumber(), role)
	}
	age := func(d *durationpb.Duration) string {
		if d == nil {
			return "none"
		}
		return fineText(d) + " old"
	}
	return [][]string{
		{"voters", voters},
		{"connected", fmt.Sprintf("%d nodes, %d client replicas", r.GetPeers(), r.GetClients())},
		{"view", fmt.Sprintf("of a majority of the voters %s, of all %s", age(r.GetQuorumAge()), age(r.GetAllAge()))},
		{"behind", fmt.Sprintf("in %d origins of records", r.GetBehind())},
		{"from peers", fmt.Sprintf("%d records refused, %d repaired by audits", r.GetRefused(), r.GetRepaired())},
	}
}

func (c *cli) healthCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Tell by the exit code whether the node is ready",
		Long:  `Exit with 0 if the node is ready to answer and 1 if not: a health check for containers and scripts.`,
		Example: `  revokd health
  until revokd health >/dev/null 2>&1; do sleep 0.1; done`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := c.readiness(cmd.Context())
			switch {
			case err != nil:
				return err
			case c.output == "json":
				err = c.printJSON(r)
			case r.Ready:
				err = c.write([]byte("ready\n"))
			default:
				err = c.write([]byte("not ready: " + oneLine(strings.Join(r.WaitingFor, "; ")) + "\n"))
			}
			if err == nil && !r.Ready {
				err = exitCode(exitError)
			}
			return err
		},
	}
	c.clientFlags(cmd)
	return cmd
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready      bool     `json:"ready"`
	WaitingFor []string `json:"waitingFor,omitempty"`
}

// readiness asks once: whoever waits for a node asks again.
func (c *cli) readiness(ctx context.Context) (r readiness, err error) {
	client, base, err := c.httpClient()
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		return r, err
	}
	res, err := client.Do(req)
	if err != nil {
		return r, c.explainFailure(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return r, c.explainFailure(err)
	}
	if err := json.Unmarshal(body, &r); err != nil || r.Ready != (res.StatusCode == http.StatusOK) {
		return r, fmt.Errorf("%s/readyz: unexpected answer %s: is this a revokd node?", base, res.Status)
	}
	return r, nil
}

// keyText names the fingerprint keys: if there has been another than the first, the one in use first.
func keyText(s *revokdv1.StatusResponse) string {
	if keys := s.GetFingerprintKeys(); len(keys) > 1 || len(keys) == 1 && keys[0] != s.GetKeyId() {
		return s.GetKeyId() + " (now " + strings.Join(keys, ", ") + ")"
	}
	return s.GetKeyId()
}
