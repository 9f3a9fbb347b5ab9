package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
)

func (f *fixture) postBackup(header ...string) (*http.Response, string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), http.MethodPost, f.url+"/backup", nil)
	if err != nil {
		f.Fatal(err)
	}
	if len(header) > 0 {
		r.Header.Set(header[0], header[1])
	}
	return f.do(r)
}

func onDisk(dir string) func(*setup) {
	return func(c *setup) { c.node.Durability, c.node.Dir = node.DurabilityDisk, dir }
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	f := start(t, onDisk(dir))
	f.post("Revoke", `{"token":"`+f.mint(devissuer.Params{Sub: canary})+`"}`)
	res, image := f.postBackup()
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/octet-stream" {
		t.Fatalf("%s: %s", res.Status, image)
	}
	if info, err := node.CheckBackup(strings.NewReader(image)); err != nil || info.Records != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	f.clean("the backup", image)
	if res, _ := f.postBackup("Sec-Fetch-Site", "cross-site"); res.StatusCode != http.StatusForbidden {
		t.Errorf("from a web page: %s", res.Status)
	}

	// One at a time.
	f.server.backups <- struct{}{}
	if res, body := f.postBackup(); res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") != "5" || !strings.Contains(body, "resource_exhausted") {
		t.Errorf("%s: %s", res.Status, body)
	}
	<-f.server.backups

	// What cannot be read is not left out: the answer is cut off, and is no backup.
	names, err := filepath.Glob(dir + "/wal/*.wal")
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+"/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := f.http.Do(r); err == nil {
		part, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err == nil {
			t.Error("the answer was not cut off")
		}
		if _, err := node.CheckBackup(bytes.NewReader(part)); !errors.Is(err, journal.ErrBackup) {
			t.Errorf("%v", err)
		}
	}
	eventually(t, "the log tells of it", func() bool { return strings.Contains(f.log.String(), "a backup was cut off") })
}

func TestBackupRefused(t *testing.T) {
	f := start(t)
	if res, body := f.postBackup(); res.StatusCode != http.StatusBadRequest || !strings.Contains(body, "failed_precondition") {
		t.Errorf("memory: %s: %s", res.Status, body)
	}
	f = start(t, onDisk(t.TempDir()), func(c *setup) { c.noRun = true })
	if res, body := f.postBackup(); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "unavailable") {
		t.Errorf("not ready: %s: %s", res.Status, body)
	}
}

// A backup ends with the server.
func TestBackupStops(t *testing.T) {
	f := start(t, onDisk(t.TempDir()))
	out := &backupStream{server: f.server}
	close(f.server.stopping)
	defer func() { f.server.stopping = make(chan struct{}) }() // Serve closes it again
	if _, err := f.node.Backup(t.Context(), out); !errors.Is(err, errStopping) {
		t.Errorf("%v", err)
	}
}
