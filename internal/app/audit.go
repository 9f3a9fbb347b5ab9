package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/revokd/revokd/internal/audit"
)

// AuditConfig says how what callers change is recorded. Zero fields mean the defaults.
type AuditConfig struct {
	Dir       string        // default: in the node's data
	Values    bool          // of claims, and not only their names
	OnFailure string        // refuse, the default: nothing is changed while the audit cannot be written; continue: lines are lost and counted
	KeyFile   string        // hex: the chain is made with it; empty: without a key
	FileBytes int64         // see audit.Config
	FileAge   time.Duration // likewise
	Files     int           // likewise
}

// What happens while the audit cannot be written.
const (
	auditRefuse   = "refuse"
	auditContinue = "continue"
)

// auditDir is in a node's directory.
const auditDir = "audit"

// config returns the configuration of the audit for a node whose data is in dir.
func (c *AuditConfig) config(dir string) (audit.Config, error) {
	if c.OnFailure != "" && c.OnFailure != auditRefuse && c.OnFailure != auditContinue {
		return audit.Config{}, errors.New("--audit-on-failure: malformed: refuse or continue")
	}
	cfg := audit.Config{Dir: c.Dir, FileBytes: c.FileBytes, FileAge: c.FileAge, Files: c.Files}
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(dir, auditDir)
	}
	if err := cfg.Validate(); err != nil {
		return cfg, fmt.Errorf("--audit-dir, --audit-file-size, --audit-file-age, --audit-files: %w", err)
	}
	if c.KeyFile != "" {
		keys, err := AuditKeys([]string{c.KeyFile})
		if err != nil {
			return cfg, fmt.Errorf("--audit-key-file: %w", err)
		}
		cfg.Key = keys[0]
	}
	return cfg, nil
}

// AuditKeys reads files of keys of an audit. Errors name the file.
func AuditKeys(paths []string) (keys []audit.Key, err error) {
	for _, path := range paths {
		b, err := readLimited(path, 4096)
		if err != nil {
			return nil, err
		}
		key, err := audit.ParseKey(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// openAudit opens the audit of the node.
func (a *agent) openAudit() error {
	cfg, err := a.cfg.Audit.config(a.dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Dir), 0o700); err != nil {
		return fmt.Errorf("--audit-dir: %w", err)
	}
	cfg.Node, cfg.Logger = a.cfg.NodeName, a.cfg.Logger
	if a.audit, err = audit.Open(cfg); err != nil {
		return fmt.Errorf("--audit-dir: %w", err)
	}
	return nil
}

// AuditFiles returns the files of the audit: those in paths, or those of the node.
func (d Data) AuditFiles(paths []string) ([]string, error) {
	if len(paths) > 0 {
		return audit.Files(slices.Clone(paths))
	}
	dir, err := d.dir()
	if err != nil {
		return nil, err
	}
	return audit.Files([]string{filepath.Join(dir, auditDir)})
}
