package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The figures in the README stand between these lines and are written by -readme only.
const (
	readmeBegin = "<!-- figures: made by make readme-figures, do not edit -->"
	readmeEnd   = "<!-- end of figures -->"
)

// writeReadme puts the figures of the latest results into the README.
func writeReadme(root string) error {
	path := filepath.Join(root, "README.md")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := withFigures(old, filepath.Join(root, "bench", "results"))
	if err != nil || bytes.Equal(old, text) {
		return err
	}
	return os.WriteFile(path, text, 0o644)
}

// withFigures returns the README with the figures of the latest directory of results, by name.
func withFigures(readme []byte, results string) ([]byte, error) {
	before, rest, ok1 := bytes.Cut(readme, []byte(readmeBegin))
	_, after, ok2 := bytes.Cut(rest, []byte(readmeEnd))
	if !ok1 || !ok2 {
		return nil, errors.New("the README lacks the lines between which the figures stand")
	}
	dirs, err := filepath.Glob(filepath.Join(results, "20*"))
	if err != nil {
		return nil, err
	}
	block := "\nNo complete run has been committed yet: `make bench` makes one.\n"
	if len(dirs) > 0 {
		dir := slices.Max(dirs)
		all, err := readResults(dir)
		if err != nil {
			return nil, err
		}
		block = readmeFigures(all, "bench/results/"+filepath.Base(dir))
	}
	return slices.Concat(before, []byte(readmeBegin+"\n"+block+"\n"+readmeEnd), after), nil
}

// readmeRow is a line of the README: figures at two sizes, or one.
type readmeRow struct {
	what    string
	subject string
	metric  string
	tables  [2]string
}

// readmeFigures is what a user wants to know first. The whole is in the report.
func readmeFigures(all []*Result, dir string) string {
	if len(all) == 0 {
		return "\n" + dir + " holds no results.\n"
	}
	var b strings.Builder
	m := all[0].Machine
	fmt.Fprintf(&b, "\n`make bench` on %d cores of %s, %d GB, %s, %s, commit %s. All of it, with spreads, plots and how it was measured: [report](%s/report.md).\n",
		m.Cores, m.CPU, m.MemoryGB, m.Go, all[0].Began.UTC().Format("2006-01-02"), m.Commit, dir)
	tables := [2]string{"lookup/1000000/0", "lookup/10000000/0"}
	rows := []readmeRow{
		{"**revokd: one key, hashed** (package ttlstore)", oneKey, "p50", tables},
		{"**revokd: a check**, one kind of revocation live", tableCheck, "p50", tables},
		{"**revokd: a check**, six kinds live", "revokd Table.Check, six shapes", "p50", tables},
		{"**revokd client**, whole replica", "revokd client.Check, Full", "p50", tables},
		{"map + RWMutex", "map + RWMutex", "p50", tables},
		{"sync.Map", "sync.Map", "p50", tables},
		{"otter", "otter", "p50", tables},
		{"KrakenD's bloomfilter (only \"maybe\")", "KrakenD bloomfilter, optimal", "p50", tables},
		{"Redis, rueidis with client-side cache, token seen before", "Redis GET, rueidis client cache, token seen before", "p50", tables},
		{"Redis EXISTS, Unix socket", "Redis EXISTS, go-redis, Unix socket", "p50", tables},
		{"Redis EXISTS, TCP", redisTCP, "p50", tables},
		{"memcached", "memcached GET, gomemcache", "p50", tables},
		{"PostgreSQL, primary key", "PostgreSQL primary key, pgx, Unix socket", "p50", tables},
	}
	b.WriteString("\n| Is this token revoked? It is not: p50 / p99, one at a time | 1 M revocations | | 10 M | |\n|---|--:|--:|--:|--:|\n")
	for _, row := range rows {
		line := "| " + row.what + " |"
		some := false
		for _, t := range row.tables {
			p50, p99, one := find(all, t, row.subject, "p50"), find(all, t, row.subject, "p99"), find(all, t, tableCheck, "p50")
			if p50 == nil || p99 == nil || one == nil {
				line += " | |"
				continue
			}
			some = true
			line += fmt.Sprintf(" %s / %s%s | %s |", number(p50.Median(), "ns"), number(p99.Median(), "ns"), mark(p50), ratio(one, p50, false))
		}
		if some {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("\nThe ratio is to a check with one kind of revocation live. What verifying the token takes before it")
	for _, alg := range []string{"HS256", "RS256", "ES256", "EdDSA"} {
		if f := find(all, "verify", alg, "p50"); f != nil {
			fmt.Fprintf(&b, ", %s %s", alg, number(f.Median(), f.Unit))
		}
	}
	b.WriteString(" (golang-jwt).\n\n| | revokd | |\n|---|--:|---|\n")
	for _, row := range []struct {
		what           string
		figure, beside [3]string
		against        string
	}{
		{"memory for a revocation, resident", [3]string{"memory/slope", "revokd table", "resident"}, [3]string{"memory/slope", "Redis, SET key 1 EX", "resident"}, "Redis"},
		{"check over the network, 64 callers (gRPC), keys/s", [3]string{"remote/64", "revokd Check, gRPC", "keys"}, [3]string{"remote/64", redisTCP, "keys"}, "Redis, go-redis"},
		{"fsynced revocations, 64 writers (gRPC)", [3]string{"writes/64", agentRevoke, "revocations"}, [3]string{"writes/64", "Redis SET EX, go-redis", "revocations"}, "Redis, appendfsync always"},
		{"fsynced revocations, batches of 100, 64 writers (gRPC)", [3]string{"writes/64", "revokd RevokeBatch of 100, gRPC", "revocations"}, [3]string{"writes/64", "Redis SET EX, go-redis, pipeline of 100", "revocations"}, "Redis, appendfsync always"},
		{"on all of 5 nodes at 1 000/s, from due, p99", [3]string{"everywhere/5/1000", revokdSpread, "p99"}, [3]string{"everywhere/5/1000", "Redis replication, keyspace events, appendfsync always", "p99"}, "Redis, appendfsync always"},
		{"on all of 5 nodes at 10 000/s, from due, p99", [3]string{"everywhere/5/10000", revokdSpread, "p99"}, [3]string{"everywhere/5/10000", "Redis replication, keyspace events, appendfsync always", "p99"}, "Redis, appendfsync always"},
		{"1 M revocations on all of 5 nodes", [3]string{"mass", "revokd, one stream", "everywhere"}, [3]string{"mass", "Redis SET EX in pipelines of 1000, replicas, appendfsync always", "everywhere"}, "Redis, appendfsync always"},
		{"the same event as one cutoff", [3]string{"mass", "revokd, the same event as one cutoff", "everywhere"}, [3]string{}, ""},
		{"restart with 10 M revocations, warm", [3]string{"restart/start", "revokd, warm", "10 M"}, [3]string{"restart/start", "Redis, AOF, warm", "10 M"}, "Redis, AOF"},
	} {
		f := find(all, row.figure[0], row.figure[1], row.figure[2])
		if f == nil {
			continue
		}
		other := ""
		if g := find(all, row.beside[0], row.beside[1], row.beside[2]); g != nil {
			other = fmt.Sprintf("%s %s%s", row.against, number(g.Median(), g.Unit), mark(g))
		}
		fmt.Fprintf(&b, "| %s | %s%s | %s |\n", row.what, number(f.Median(), f.Unit), mark(f), other)
	}
	b.WriteString("\n! marks figures whose repetitions disagree.\n")
	return b.String()
}

func mark(f *Figure) string {
	if f.Unstable() {
		return " !"
	}
	return ""
}
