package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

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
		Short: "Describe the node: readiness, clock, records, memory, journal",
		Long:  `Describe the node. The exit code is 0 whenever the node answered; "revokd health" tells whether it is ready.`,
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
		{"ready", ready},
		{"uptime", ageText(s.GetUptime().AsDuration())},
		{"durability", enumName(s.GetDurability().String(), "DURABILITY_")},
		{"records", fmt.Sprintf("%d%s", s.GetRecords(), limit(s.GetRecordsLimit()))},
		{"memory", sizeText(s.GetMemoryBytes())},
		{"shapes", fmt.Sprintf("%d%s", s.GetLiveShapes(), limit(int64(s.GetLiveShapesLimit())))},
		{"clock", s.GetClock()},
		{"now", formatTime(s.GetNow())},
		{"guarded time", formatTime(s.GetGuarded())},
		{"key id", s.GetKeyId()},
		{"issuers", strings.Join(s.GetIssuers(), ", ")},
	}
	if s.GetDev() {
		rows = append(rows, []string{"dev", "yes: tokens can be minted here"})
	}
	if j := s.GetJournal(); j != nil {
		rows = append(rows, []string{"journal", fmt.Sprintf("%s, %d files in %s", sizeText(j.GetBytes()), j.GetFiles(), j.GetDir())})
		if j.GetError() != "" {
			rows = append(rows, []string{"journal error", j.GetError()})
		}
	}
	table(w, rows)
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
			ready, why, err := c.ready(cmd.Context())
			if err != nil {
				return err
			}
			if c.output == "json" {
				err = c.printJSON(map[string]any{"ready": ready, "detail": why})
			} else if ready {
				err = c.write([]byte("ready\n"))
			} else {
				err = c.write([]byte("not ready: " + why + "\n"))
			}
			if err == nil && !ready {
				err = exitCode(exitError)
			}
			return err
		},
	}
	c.clientFlags(cmd)
	return cmd
}

// ready asks once: whoever waits for a node asks again.
func (c *cli) ready(ctx context.Context) (ready bool, why string, err error) {
	base, err := c.baseURL()
	if err != nil {
		return false, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz", nil)
	if err != nil {
		return false, "", err
	}
	res, err := httpClient().Do(req)
	if err != nil {
		return false, "", c.explainFailure(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 4096))
	if err != nil {
		return false, "", c.explainFailure(err)
	}
	switch res.StatusCode {
	case http.StatusOK:
		return true, "", nil
	case http.StatusServiceUnavailable:
		return false, oneLine(strings.TrimSpace(string(body))), nil
	}
	return false, "", fmt.Errorf("%s/readyz: unexpected answer %s: is this a revokd node?", base, res.Status)
}

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: `  revokd version --output json`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if c.output == "json" {
				return c.printJSON(struct {
					Version string `json:"version"`
					Go      string `json:"go"`
					OS      string `json:"os"`
					Arch    string `json:"arch"`
				}{version, runtime.Version(), runtime.GOOS, runtime.GOARCH})
			}
			return c.write(fmt.Appendf(nil, "revokd %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH))
		},
	}
	c.outputFlag(cmd)
	return cmd
}
