package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// claims are those of a token of an hour that names one thing besides.
func claims(t testing.TB, named string) *revocation.Claims {
	t.Helper()
	c, err := revocation.ParseClaims(fmt.Appendf(nil, `{"iss":"i","iat":%d,"exp":%d,%s}`, start.Unix(), start.Add(time.Hour).Unix(), named))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A backup of a running node, restored elsewhere, denies the same tokens under numbers that were never used.
func TestBackupRestore(t *testing.T) {
	clk := clocktest.New(start)
	n, stop := runNode(t, Config{Dir: t.TempDir(), Clock: clk})
	for i := range 10 {
		write(t, n, deny(t, fmt.Sprint("j", i)))
	}
	write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=carol")})
	var image bytes.Buffer
	info, err := n.Backup(t.Context(), &image)
	if err != nil || info.Records != 11 || info.Shapes != 2 || info.KeyID != testKey.ID() || info.Bytes != int64(image.Len()) {
		t.Fatalf("%+v, %v", info, err)
	}
	before, incarnation := dots(t, n), n.journal.Incarnation()
	stop()
	if bytes.Contains(image.Bytes(), []byte("carol")) || bytes.Contains(image.Bytes(), testKey[:]) {
		t.Error("the backup has a name or the key")
	}

	if checked, err := CheckBackup(bytes.NewReader(image.Bytes())); err != nil || checked != info {
		t.Errorf("%+v, %v; want %+v", checked, err, info)
	}
	if _, err := CheckBackup(bytes.NewReader(image.Bytes()[:image.Len()-1])); !errors.Is(err, journal.ErrBackup) {
		t.Errorf("%v", err)
	}
	dir := filepath.Join(t.TempDir(), "journal")
	if _, err := RestoreJournal(t.Context(), dir, revocation.NewRing(revocation.Key{9}), bytes.NewReader(image.Bytes())); !errors.Is(err, journal.ErrKeyMismatch) {
		t.Errorf("%v", err)
	}
	if restored, err := RestoreJournal(t.Context(), dir, revocation.NewRing(testKey), bytes.NewReader(image.Bytes())); err != nil || restored != info {
		t.Fatalf("%+v, %v; want %+v", restored, err, info)
	}

	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	for i := range 10 {
		wantStatus(t, n, claims(t, fmt.Sprintf(`"jti":"j%d"`, i)), revocation.Revoked)
	}
	wantStatus(t, n, claims(t, `"jti":"j10"`), revocation.Active)
	wantStatus(t, n, claims(t, `"sub":"carol"`), revocation.Revoked)
	if n.journal.Incarnation() == incarnation {
		t.Error("the incarnation is the old one")
	}
	write(t, n, deny(t, "later"))
	for dot := range dots(t, n) {
		delete(before, dot)
	}
	if len(before) != 0 || len(dots(t, n)) != 12 {
		t.Errorf("%d records lost their dots, %d dots", len(before), len(dots(t, n)))
	}
}

func TestBackupRefused(t *testing.T) {
	n, stop := runNode(t, Config{})
	if _, err := n.Backup(t.Context(), io.Discard); !errors.Is(err, ErrNoJournal) {
		t.Errorf("%v", err)
	}
	stop()
	n, err := New(Config{Name: "n1", Dir: t.TempDir(), Key: testKey, Clock: clocktest.New(start)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Backup(t.Context(), io.Discard); !errors.Is(err, ErrNotReady) {
		t.Errorf("%v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDescribeJournal(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	short, long := deny(t, "short"), deny(t, "long")
	short.ExpiresAt, long.ExpiresAt = start.Add(time.Hour).UnixMilli(), start.Add(48*time.Hour).UnixMilli()
	write(t, n, short)
	clk.Advance(time.Second)
	write(t, n, long)
	write(t, n, revocation.Request{Match: match(t, "iss=i,sub=bob"), Below: &revocation.Below{Claim: "ver", Value: 7}})
	describe := func(now time.Time) (JournalReport, []JournalRecord) {
		t.Helper()
		var list []JournalRecord
		report, err := DescribeJournal(t.Context(), dir, now, func(r JournalRecord) error {
			list = append(list, r)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return report, list
	}
	// While the node runs.
	report, list := describe(start)
	if !report.Whole() || report.Records != 3 || report.Live != 3 || report.Shapes != 2 || report.KeyID != testKey.ID() || len(list) != 3 {
		t.Errorf("%+v", report)
	}
	stop()
	report, list = describe(start.Add(2 * time.Hour))
	if report.Live != 2 || report.Expired != 1 || !report.Oldest.Equal(start.Add(time.Second)) || !report.Newest.Equal(report.Oldest) ||
		!report.Latest.Equal(start.Add(48*time.Hour)) || !report.Earliest.Equal(start.Add(time.Second+24*time.Hour)) {
		t.Errorf("%+v", report)
	}
	for _, r := range list {
		if len(r.Fingerprint) != 32 || r.Since.IsZero() != (r.Rule == "below") {
			t.Errorf("%+v", r)
		}
	}
	failed := errors.New("failed")
	if _, err := DescribeJournal(t.Context(), dir, start, func(JournalRecord) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if _, err := DescribeJournal(t.Context(), t.TempDir(), start, nil); !errors.Is(err, journal.ErrNotJournal) {
		t.Errorf("%v", err)
	}
}

// Damage takes the definition of a shape with it: records that nobody can understand any more are reported, and do not stop the next start.
func TestRepairJournal(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	cfg := Config{Dir: dir, Clock: clk}
	n, stop := runNode(t, cfg)
	write(t, n, revocation.Request{Action: revocation.Block, Match: match(t, "iss=i,sub=carol")})
	write(t, n, deny(t, "first"))
	write(t, n, deny(t, "second"))
	stop()
	segments, err := filepath.Glob(dir + "/wal/*.wal")
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	b, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(b, []byte("shape/")) // of {iss, jti}, with the first deny
	b[at] ^= 1
	if err := os.WriteFile(segments[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *journal.DamageError
	cfg.Name, cfg.Key, cfg.Store.Heap = "n1", testKey, true
	if n, err := New(cfg); !errors.As(err, &damaged) {
		t.Fatalf("%v, %v", n, err)
	}
	report, err := DescribeJournal(t.Context(), dir, start, nil)
	if err != nil || report.Whole() || len(report.Damage) != 1 || report.Damage[0].Offset != damaged.Damage[0].Offset || report.Unusable != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	repaired, err := RepairJournal(t.Context(), dir, start)
	if err != nil || !repaired.Repaired || len(repaired.Damage) != 1 || repaired.Kept != 1 || repaired.Unusable != 1 || len(repaired.Quarantined) != 1 || repaired.Incarnation == report.Incarnation {
		t.Fatalf("%+v, %v", repaired, err)
	}
	if report, err := DescribeJournal(t.Context(), dir, start, nil); err != nil || !report.Whole() {
		t.Errorf("%+v, %v", report, err)
	}
	if again, err := RepairJournal(t.Context(), dir, start); err != nil || again.Repaired || len(again.Damage) > 0 || again.Incarnation != repaired.Incarnation {
		t.Errorf("%+v, %v", again, err)
	}
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	wantStatus(t, n, claims(t, `"sub":"carol"`), revocation.Revoked)
	wantStatus(t, n, claims(t, `"jti":"second"`), revocation.Active)
	write(t, n, deny(t, "second"))
	wantStatus(t, n, claims(t, `"jti":"second"`), revocation.Revoked)
}

// A record that nobody can understand, in a journal without damage, stops the start as well, and a repair helps.
func TestRepairUnusable(t *testing.T) {
	dir, clk := t.TempDir(), clocktest.New(start)
	n, stop := runNode(t, Config{Dir: dir, Clock: clk})
	write(t, n, deny(t, "kept"))
	record := revocation.Record{Shape: 1, Value: start.UnixMilli(), ExpiresAt: uint32(start.Add(time.Hour).Unix()), Class: revocation.ClassDeny}
	bytes, err := appendEntry(nil, entry{record: record})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.journal.Append(t.Context(), &journal.Batch{Records: bytes}); err != nil {
		t.Fatal(err)
	}
	stop()
	broken, err := New(Config{Name: "n1", Dir: dir, Key: testKey, Clock: clk})
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Run(t.Context()); !errors.Is(err, revocation.ErrUnknownShape) {
		t.Errorf("%v", err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	if report, err := DescribeJournal(t.Context(), dir, start, nil); err != nil || report.Whole() || report.Unusable != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if report, err := RepairJournal(t.Context(), dir, start); err != nil || !report.Repaired || report.Kept != 1 || report.Unusable != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	n, stop = runNode(t, Config{Dir: dir, Clock: clk})
	defer stop()
	wantStatus(t, n, claims(t, `"jti":"kept"`), revocation.Revoked)
}
