package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/revokd/revokd/internal/e2e"
	"github.com/revokd/revokd/internal/history"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// nextTags build a synthetic later version of the program of a trial: see revocation/version_next.go and cluster/replication/version_next.go.
const nextTags = "faults,nextversion"

// nextVersion is what it calls itself.
const nextVersion = "next"

// replace ends a node and starts it with another program, and reports whether it was seen to run that one.
func (f *faults) replace(m *member, program string) bool {
	f.stopped(m)
	m.program = program
	f.started(m)
	st, err := f.status(m)
	return err == nil && (st.GetVersion() == nextVersion) == (program != "")
}

// upgrade puts a later version into the place of the program on each node in turn, and then the former one again. It goes on beside other faults, so it does not wait until a node is ready.
func (f *faults) upgrade(rng *rand.Rand, _ time.Duration) bool {
	all := true
	for _, to := range []string{f.next, ""} {
		for left := slices.Clone(f.tr.nodes); len(left) > 0; {
			m := f.takeOf(rng, left)
			if m == nil {
				time.Sleep(50 * time.Millisecond) // other faults end, and give back what they have taken
				continue
			}
			all = f.replace(m, to) && all
			if to != "" {
				ctx, cancel := context.WithTimeout(f.tr.t.Context(), time.Second)
				_ = f.tr.newRule(ctx, m, fmt.Sprint("new-", rng.Uint64()), revokdv1.AckLevel_ACK_LEVEL_LOCAL) // it may not be ready yet
				cancel()
			}
			f.give(m)
			left = slices.DeleteFunc(left, func(o *member) bool { return o == m })
		}
	}
	return all
}

// newClaim is the claim that has a later version make a record of a class that this one does not know.
const newClaim = "next_version"

// newRule revokes a token by the rule of that class, on a node of the later version.
func (tr *trial) newRule(ctx context.Context, m *member, id string, ack revokdv1.AckLevel) error {
	res, err := m.api.Revoke(ctx, connect.NewRequest(&revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": id, newClaim: id}}},
		ExpiresAt: inAnHour(), Options: &revokdv1.WriteOptions{Ack: ack},
	}))
	if err == nil && res.Msg.GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED {
		err = fmt.Errorf("%v", res.Msg)
	}
	return err
}

// seesNew asks everybody about tokens that were revoked by the new rule: who knows it says Revoked, who does not says Unknown because of it, and nobody Active, clients beyond MaxStaleness.
func (tr *trial) seesNew(when string, ids []string) {
	tr.t.Helper()
	now := time.Now()
	for i, id := range ids {
		payload := fmt.Appendf(nil, `{"iss":%q,"jti":%q,%q:%q,"iat":%d,"exp":%d}`, issuer, id, newClaim, id, now.Add(-time.Hour).Unix(), now.Add(time.Hour).Unix())
		for _, m := range tr.nodes {
			want := "VERDICT_UNKNOWN class"
			if m.program != "" {
				want = "VERDICT_REVOKED "
			}
			tr.until(fmt.Sprintf("%s: %s says %s of %s", when, m.name, want, id), func() error {
				res, err := m.api.Check(tr.t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}}))
				if err != nil {
					return err
				}
				if res.Msg.GetVerdict() == revokdv1.Verdict_VERDICT_ACTIVE {
					tr.t.Fatalf("%s: %s calls %s active", when, m.name, id)
				}
				if got := res.Msg.GetVerdict().String() + " " + res.Msg.GetUnknownCause(); got != want {
					return errors.New(got)
				}
				return nil
			})
		}
		for _, e := range tr.clients[:2] { // of this version; the third one asks nodes
			c := claimsOf(id, now.Add(-30*time.Minute))
			if err := c.Set(newClaim, revocation.String(id)); err != nil {
				tr.t.Fatal(err)
			}
			tr.until(fmt.Sprintf("%s: %s does not know the rule of %s", when, e.name, id), func() error {
				v := e.Check(c)
				// All nodes have acknowledged the last one a moment ago: a client may take as long as its view may be old.
				if v.Status == revocation.Active && (i < len(ids)-1 || time.Since(now) > staleness) {
					tr.t.Fatalf("%s: %s calls %s active", when, e.name, id)
				}
				if v.Status != revocation.Unknown || v.Cause != revocation.CauseClass {
					return fmt.Errorf("%v", v)
				}
				return nil
			})
		}
	}
}

// roll puts a program into the place of another on each node in turn, each when the one before is ready, and looks at every step at what was revoked by the new rule.
func (tr *trial) roll(what, program string, ids *[]string) {
	tr.t.Helper()
	for _, m := range tr.nodes {
		if !tr.faults.replace(m, program) {
			tr.t.Fatalf("%s: %s does not run the other version\n%s", what, m.name, tail(m.proc.Stderr()))
		}
		tr.until(m.name+" is ready", func() error {
			if !m.proc.Ready(tr.t.Context()) {
				return errors.New("it is not")
			}
			return nil
		})
		when := fmt.Sprintf("%s, behind %s", what, m.name)
		if program != "" {
			id := fmt.Sprintf("new-%d", len(*ids))
			tr.until(m.name+" has all acknowledge "+id, func() error { return tr.newRule(tr.t.Context(), m, id, revokdv1.AckLevel_ACK_LEVEL_ALL) })
			*ids = append(*ids, id)
		}
		tr.seesNew(when, (*ids)[max(0, len(*ids)-6):])
	}
}

// TestUpgrade: a cluster under load goes over to a later version and back, node by node. Nothing that a majority has acknowledged is lost, nobody calls a token active that it must not, what
// the later version has written and this one does not understand stays, is passed on and makes tokens Unknown, and all nodes are level again after each step. A directory in a later
// format is refused and left as it is. REVOKD_UPGRADE_ROUNDS says how often (default 1).
func TestUpgrade(t *testing.T) {
	rounds := fromEnv(t, "REVOKD_UPGRADE_ROUNDS", 1)
	noLeaks(t)
	tr := newTrial(t, 3, "faults", 1, afterStart)
	tr.next = program(t, nextTags)
	rng := rand.New(rand.NewPCG(1, 0))
	tr.start(2000)
	defer func() {
		if t.Failed() {
			for _, m := range tr.running() {
				t.Logf("%s:\n%s", m.name, tail(m.proc.Stderr()))
			}
		}
	}()
	defer tr.end()
	var ids []string
	for round := range rounds {
		tr.roll(fmt.Sprint("upgrade ", round+1), tr.next, &ids)
		tr.settle(fmt.Sprintf("upgraded-%d", round+1), rng)
		tr.roll(fmt.Sprint("roll-back ", round+1), "", &ids)
		tr.settle(fmt.Sprintf("rolled-back-%d", round+1), rng)
		tr.judge.Fault("upgrade/rolling")
		if len(tr.judge.Violations()) > 0 || t.Failed() {
			break
		}
	}
	tr.end()
	tr.settle("end", rng)
	tr.final(tr.marks)
	tr.seesNew("at the end", ids)
	for _, v := range tr.judge.Violations() {
		t.Error(v)
	}
	c := tr.judge.Counts()
	t.Logf("%d rolling upgrades and roll-backs, %d revocations acknowledged by a majority, %d unsure; %d checks, %d unknown, %d could have shown a loss",
		c.Faults["upgrade/rolling"], c.Acknowledged, c.Unsure, c.Checks, c.Unknown, c.Judged)
	if len(c.Broken) > 0 {
		t.Errorf("broken promises: %v", c.Broken)
	}
	if err := c.Valid(history.Gate{Acknowledged: 1000 * int64(rounds), Checks: 100_000 * int64(rounds), Judged: 10_000 * int64(rounds)}); err != nil {
		t.Error(err)
	}
	saved(t, history.Report{Nodes: 3, Rounds: rounds, Seconds: int(tr.judge.Now().Seconds()), Counts: c})
	tr.dumps(-1)
	tr.refusesLater(tr.nodes[0])
}

// refusesLater puts the directory of a node that has ended into a later format, as a later version may once everybody has agreed to it.
func (tr *trial) refusesLater(m *member) {
	t := tr.t
	t.Helper()
	path := tr.path(m.name + "/journal/FORMAT")
	format, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(format, []byte("journal 1\n")) {
		t.Fatalf("the later version has changed the format of the directory, and it could not have been rolled back: %s", format)
	}
	later := bytes.Replace(format, []byte("journal 1\n"), []byte("journal 2\n"), 1)
	if err := os.WriteFile(path, later, 0o600); err != nil {
		t.Fatal(err)
	}
	before := directory(t, tr.path(m.name+"/journal"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := e2e.Start(ctx, e2e.Config{Args: tr.flags(m), Env: append([]string{"HOME=" + tr.home, "PATH=" + os.Getenv("PATH")}, tr.env(m)...), Dir: tr.home, HTTP: m.http, Unready: true})
	if err == nil {
		p.Kill()
		t.Fatal("a directory of a later version is taken")
	}
	if !strings.Contains(err.Error(), "the journal has a newer format: 2, this version reads up to 1") {
		t.Errorf("a directory of a later version: %v", err)
	}
	if after := directory(t, tr.path(m.name+"/journal")); after != before {
		t.Errorf("a directory of a later version is not left as it is:\n%s\n%s", before, after)
	}
}

// directory lists files with their sizes and times.
func directory(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		fmt.Fprintln(&b, name, info.Size(), info.ModTime())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
