package api

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// metricOf says which metric shows a field of the owners' Stats. A new field needs its row here, and so its metric, or a reason for none.
var metricOf = map[string]string{
	"WriteStats.Revoked": "revokd_writes_total", "WriteStats.Covered": "revokd_writes_total", "WriteStats.AlreadyExpired": "revokd_writes_total",
	"WriteStats.Unblocked": "revokd_writes_total", "WriteStats.Refused": "revokd_writes_total", "WriteStats.Failed": "revokd_writes_total",
	"TableStats.LiveShapes": "revokd_live_shapes",
	"Stats.Items":           "revokd_records", "Stats.Limit": "revokd_records_limit", "Stats.Bytes": "revokd_memory_bytes",
	"Stats.BytesLimit": "revokd_memory_limit_bytes", "Stats.Expired": "revokd_expired_total",

	"journal.Bytes": "revokd_journal_bytes", "journal.Segments": "revokd_journal_files", "journal.ExpiryFiles": "revokd_journal_files",
	"journal.MetaBytes": "revokd_journal_metadata_bytes", "journal.Cut": "revokd_journal_cut_bytes", "journal.Commits": "revokd_journal_commit_seconds_count",
	"journal.Batches": "revokd_journal_batches_total", "journal.Records": "revokd_journal_records_total", "journal.Written": "revokd_journal_written_bytes_total",
	"journal.Busy": "revokd_journal_busy_total", "journal.Failures": "revokd_journal_failures_total", "journal.Failed": "revokd_journal_failed",
	"journal.Latched": "revokd_journal_latched", "journal.QueueBatches": "revokd_journal_queue_batches", "journal.QueueBytes": "revokd_journal_queue_bytes",
	"journal.Commit": "revokd_journal_commit_seconds_bucket", "journal.Partitioned": "revokd_journal_expiry_total", "journal.Kept": "revokd_journal_expiry_total",
	"journal.Compacted": "revokd_journal_expiry_total", "journal.Released": "revokd_journal_expiry_total",
}

var noMetric = map[string]string{
	"TableStats.Stats":  "its fields are",
	"TableStats.Shapes": "shapes without records are no load, and the live ones are shown",
	"Stats.LookupBytes": "a part of Bytes that only benchmarks ask for", "Stats.Shards": "a constant",
	"Stats.Sweeps": "how the store works, nothing to act on", "Stats.Rebuilds": "the same", "Stats.Grows": "the same",
	"journal.Files": "a sum of two that are shown", "journal.LastError": "it is in the log and, while it lasts, in the status",
	"Stats.FilterBits": "the same", "Stats.Saturation": "the same",
}

// The status says where the journal is, how large, and why it refuses writes.
func TestJournalInStatus(t *testing.T) {
	dir := t.TempDir()
	f := start(t, onDisk(dir))
	status := func() *revokdv1.JournalStatus {
		t.Helper()
		res, err := f.client().Status(t.Context(), connect.NewRequest(&revokdv1.StatusRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetJournal()
	}
	if j := status(); j.GetDir() != dir || j.GetBytes() == 0 || j.GetFiles() != 1 || j.GetError() != "" || j.GetCut() != 0 {
		t.Errorf("%v", j)
	}
	if err := os.Remove(filepath.Join(dir, "LOCK")); err != nil { // one way to make the journal refuse writes
		t.Fatal(err)
	}
	_, _, err := f.node.Write(t.Context(), []revocation.Request{{Match: revocation.Match{}}}, node.WriteOptions{})
	if !errors.Is(err, journal.ErrDisk) {
		t.Fatal(err)
	}
	if j := status(); !strings.Contains(j.GetError(), "lock file") {
		t.Errorf("%v", j)
	}
}

func TestStatsAreShown(t *testing.T) {
	f := start(t, onDisk(t.TempDir()))
	res, err := f.http.Get(f.url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, v := range []any{node.WriteStats{}, revocation.TableStats{}, revocation.TableStats{}.Stats, journal.Stats{}} {
		typ := reflect.TypeOf(v)
		owner := typ.Name()
		if typ == reflect.TypeFor[journal.Stats]() {
			owner = "journal"
		}
		for i := range typ.NumField() {
			name := owner + "." + typ.Field(i).Name
			seen[name] = true
			switch metric := metricOf[name]; {
			case metric == "" && noMetric[name] == "":
				t.Errorf("%s is shown by no metric", name)
			case metric != "" && !strings.Contains(string(b), "\n"+metric):
				t.Errorf("%s: there is no metric %s", name, metric)
			}
		}
	}
	for _, rows := range []map[string]string{metricOf, noMetric} {
		for name := range rows {
			if !seen[name] {
				t.Errorf("%s is in the table and no field", name)
			}
		}
	}
}
