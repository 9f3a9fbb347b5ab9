package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// Data names the data of one node, for the commands that work on it without the node. Either Path or DataDir is required.
type Data struct {
	Path     string // the node's directory, or the journal in it
	DataDir  string
	NodeName string // empty: the only node that has data in DataDir
	KeyFile  string // for Restore; empty: the identity of a dev node
}

// dir returns the directory of the node.
func (d Data) dir() (string, error) {
	switch {
	case d.Path != "":
		if filepath.Base(d.Path) == journalDir {
			return filepath.Dir(d.Path), nil
		}
		return d.Path, nil
	case d.DataDir == "":
		return "", errors.New("--data-dir: missing")
	case d.NodeName != "":
		if !validName.MatchString(d.NodeName) {
			return "", errBadName
		}
		return filepath.Join(d.DataDir, d.NodeName), nil
	}
	entries, err := os.ReadDir(d.DataDir)
	if err != nil {
		return "", fmt.Errorf("--data-dir: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && validName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	switch len(names) {
	case 0:
		return "", fmt.Errorf("--data-dir: no node has data in %s", d.DataDir)
	case 1:
		return filepath.Join(d.DataDir, names[0]), nil
	}
	return "", fmt.Errorf("--node-name: missing: %d nodes have data in %s: %s", len(names), d.DataDir, strings.Join(names, ", "))
}

func (d Data) journal() (string, error) {
	dir, err := d.dir()
	return filepath.Join(dir, journalDir), err
}

// Describe reads the journal and changes nothing; the node may run: see [node.DescribeJournal].
func (d Data) Describe(ctx context.Context, now time.Time, each func(node.JournalRecord) error) (node.JournalReport, error) {
	dir, err := d.journal()
	if err != nil {
		return node.JournalReport{}, err
	}
	return node.DescribeJournal(ctx, dir, now, each)
}

// Repair repairs the journal: see [node.RepairJournal].
func (d Data) Repair(ctx context.Context, now time.Time) (node.RepairReport, error) {
	dir, err := d.journal()
	if err != nil {
		return node.RepairReport{}, err
	}
	report, err := node.RepairJournal(ctx, dir, now)
	if errors.Is(err, journal.ErrLocked) {
		err = fmt.Errorf("%w: end the agent first", err)
	}
	return report, err
}

// Restore makes the journal from a backup and returns where: see [node.RestoreJournal].
func (d Data) Restore(ctx context.Context, backup io.Reader) (dir string, info node.BackupInfo, err error) {
	if dir, err = d.dir(); err != nil {
		return "", info, err
	}
	key, err := d.key(dir)
	if err != nil {
		return "", info, err
	}
	ring, err := node.LoadRing(filepath.Join(dir, ringFile), key)
	if err != nil {
		return "", info, err
	}
	where := filepath.Join(dir, ringFile)
	dir = filepath.Join(dir, journalDir)
	if info, err = node.RestoreJournal(ctx, dir, ring, backup); errors.Is(err, revocation.ErrKey) {
		err = fmt.Errorf("%w: put the %s of the node that made the backup at %s first", err, ringFile, where)
	}
	return dir, info, err
}

func (d Data) key(dir string) (revocation.Key, error) {
	if d.KeyFile != "" {
		key, err := readKey(d.KeyFile)
		if err != nil {
			return key, fmt.Errorf("--key-file: %w", err)
		}
		return key, nil
	}
	id, err := loadIdentity(filepath.Join(dir, identityFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return revocation.Key{}, fmt.Errorf("--key-file: missing: a backup is of no use without the fingerprint key that the node had; of a dev node it is in its %s, which must be in %s first",
			identityFile, dir)
	case err != nil:
		return revocation.Key{}, err
	}
	return id.key, nil
}

// waysOut adds to damage that stops a start, or to a record that nobody understands, what can be done about it.
func (a *agent) waysOut(err error) error {
	if errors.Is(err, cluster.ErrNoKey) {
		return fmt.Errorf("--gossip-addr: %w. --gossip-key-file names the file of the key (`%s keys generate` makes one)", err, a.cfg.Command)
	}
	var damage *journal.DamageError
	if !errors.As(err, &damage) && !errors.Is(err, revocation.ErrUnknownShape) && !errors.Is(err, revocation.ErrRecord) {
		return err
	}
	where := "--data-dir " + a.cfg.DataDir + " --node-name " + a.cfg.NodeName
	return fmt.Errorf("%w. The node does not start, because what is lost there would be answered Active. Two ways out: "+
		"`%[2]s journal verify %[3]s` lists all that is lost, to put the files or a backup (`%[2]s restore`) back; "+
		"`%[2]s journal repair %[3]s` keeps everything readable, reports the rest, and the node starts without it", err, a.cfg.Command, where)
}
