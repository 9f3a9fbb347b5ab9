package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/atomicfile"
	"github.com/revokd/revokd/node"
)

// keepTheKey is said wherever a backup is made or described.
const keepTheKey = "A backup is of no use without the fingerprint key (--key-file of the agent; of a dev node, identity.json), which is not in it: keep both, apart."

// backupResult is what backup and restore print.
type backupResult struct {
	File    string `json:"file"`
	Dir     string `json:"dir,omitempty"`
	Records int64  `json:"records"`
	Shapes  int    `json:"shapes"`
	Bytes   int64  `json:"bytes"`
	KeyID   string `json:"keyId"`
}

func (c *cli) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Back up a running node to a file",
		Long: `Write everything that a running node has on disk to a file that does not exist yet: every revocation that was acknowledged before the
command began, with what is needed to understand them. Checks and writes go on. The file is verified while it is written, and is there only if it is complete.

` + keepTheKey + ` The file tells no names.`,
		Example: `  revokd backup /backup/n1-$(date +%F)
  revokd backup n1.backup --addr http://127.0.0.1:7950 --output json`,
		Args:              arguments(1, 1, "a file"),
		ValidArgsFunction: completeFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			var info node.BackupInfo
			// Before the node is asked: it may have much to send.
			if _, err := os.Lstat(args[0]); err == nil {
				return fmt.Errorf("%s exists: a backup overwrites nothing", args[0])
			}
			err := atomicfile.CreateFrom(args[0], func(w io.Writer) (err error) {
				info, err = c.fetchBackup(cmd.Context(), w)
				return err
			})
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s exists: a backup overwrites nothing", args[0])
			}
			if err != nil {
				return err
			}
			return c.printValue(backupResult{args[0], "", info.Records, info.Shapes, info.Bytes, info.KeyID.String()}, func(w io.Writer) {
				fmt.Fprintf(w, "backed up  %d records, %d shapes, %s to %s\nkey id %s: keep that key, without it the file is of no use\n",
					info.Records, info.Shapes, sizeText(info.Bytes), args[0], info.KeyID)
			})
		},
	}
	c.clientFlags(cmd)
	cmd.Flags().Lookup("timeout").Usage = "how long to wait for the node each time it says nothing"
	return cmd
}

// fetchBackup copies a backup from the node and verifies it.
func (c *cli) fetchBackup(ctx context.Context, w io.Writer) (info node.BackupInfo, err error) {
	if c.timeout <= 0 {
		return info, usagef("--timeout: out of range: more than 0")
	}
	client, base, err := c.httpClient()
	if err != nil {
		return info, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := fmt.Errorf("%s says nothing for %s (--timeout)", base, c.timeout)
	timer := time.AfterFunc(c.timeout, func() { cancel(silence) })
	defer timer.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/backup", nil)
	if err != nil {
		return info, err
	}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return info, cause
		}
		return info, c.explainFailure(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return info, refusedBackup(base, res)
	}
	info, err = node.CheckBackup(io.TeeReader(&watched{res.Body, timer, c.timeout}, w))
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return info, err
}

// watched puts a timer off with every read.
type watched struct {
	io.Reader
	timer *time.Timer
	after time.Duration
}

func (r *watched) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.timer.Reset(r.after)
	return n, err
}

// refusedBackup reads the error of Connect, or says what came instead.
func refusedBackup(base string, res *http.Response) error {
	var told struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err == nil && json.Unmarshal(b, &told) == nil && told.Message != "" {
		return fmt.Errorf("%s: %s", base, oneLine(told.Message))
	}
	if res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusUnauthorized {
		return fmt.Errorf("%s: %s", base, oneLine(strings.TrimSpace(string(b))))
	}
	return fmt.Errorf("%s/backup: unexpected answer %s: is this a revokd node of this version?", base, res.Status)
}

func (c *cli) restoreCommand() *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use:   "restore FILE [DIR]",
		Short: "Make the data of a node from a backup",
		Long: `Make the journal of a node that does not run from a backup. There must be none yet; a damaged one has to be moved away first. A file that is damaged or
incomplete is refused, and so is one whose records belong to another fingerprint key; then nothing is left behind.

The key is that of --key-file, or of a dev node's identity.json, which must be in its directory first. What was revoked after the backup is not in
it: tokens that only those revocations deny are answered Active. The journal gets a new incarnation: a cluster does not count the node's word
before it has caught up.`,
		Example: `  revokd restore n1.backup --node-name n1 --data-dir /var/lib/revokd --key-file fingerprint.key
  revokd restore dev.backup ~/.local/state/revokd/dev`,
		Args:              arguments(1, 2, "a file, and perhaps a directory"),
		ValidArgsFunction: completeFiles,
	}
	data := c.dataFlags(cmd)
	cmd.Flags().StringVar(&keyFile, "key-file", "", "file with the fingerprint key: 16 random bytes as 32 hex digits")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := data(args[1:])
		if err != nil {
			return err
		}
		d.KeyFile = keyFile
		f, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		dir, info, err := d.Restore(cmd.Context(), f)
		if err != nil {
			return err
		}
		return c.printValue(backupResult{args[0], dir, info.Records, info.Shapes, info.Bytes, info.KeyID.String()}, func(w io.Writer) {
			fmt.Fprintf(w, "restored  %d records, %d shapes from %s to %s\n", info.Records, info.Shapes, args[0], dir)
		})
	}
	c.outputFlag(cmd)
	return cmd
}
