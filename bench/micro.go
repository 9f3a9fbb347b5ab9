package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// microBenchmarks are those of the packages that measure what nobody can from outside: parts without network or disk.
var microBenchmarks = []struct {
	pkg, bench, time string
}{
	{"./journal", "^BenchmarkAppend$", "1s"},
	{"./node", "^Benchmark(Propagation|Bulk)$", "1x"},
	{"./node", "^Benchmark(Difference|Bootstrap)$", "1x"},
}

// microFile is what they print, for benchstat.
const microFile = "micro.txt"

func runMicro(ctx context.Context, r *Result, o options) error {
	var all bytes.Buffer
	for _, m := range microBenchmarks {
		args := []string{"test", "-run", "^$", "-bench", m.bench, "-benchtime", m.time, "-benchmem", "-timeout", "15m"}
		if o.quick {
			if strings.Contains(m.bench, "Difference") {
				continue // a million records at least
			}
			args = append(args[:4:4], "-bench", strings.Replace(m.bench, "|Bulk", "", 1), "-benchtime", "1x", "-benchmem", "-short")
			args = append(args[:1:1], append([]string{"-run", "^$"}, args[4:]...)...)
		}
		if o.profile != "" {
			args = append(args, "-outputdir", absolute(o.profile), "-cpuprofile", strings.Trim(m.pkg, "./")+"-"+strings.ReplaceAll(strings.Trim(m.bench[len("^Benchmark"):], "()$"), "|", "-")+".cpu.pprof")
			args = append(args, "-o", os.DevNull)
		}
		progress("go test -bench %s %s", m.bench, m.pkg)
		cmd := exec.CommandContext(ctx, "go", append(args, m.pkg)...)
		cmd.Dir = o.root
		out, err := cmd.CombinedOutput()
		all.Write(out)
		if err != nil {
			r.fail(m.pkg, fmt.Errorf("%w: %s", err, lastLines(string(out))))
			continue
		}
		id := "micro/" + strings.TrimPrefix(m.pkg, "./")
		r.table(Table{ID: id, Title: "Go benchmarks of `" + strings.TrimPrefix(m.pkg, "./") + "`", Note: "One process, no network; " + microFile + " has them as benchstat reads them."})
		if err := parseBenchmarks(out, func(name, unit string, value float64) {
			if unit != "ns/op" || !strings.Contains(m.time, "x") {
				r.add(id, name, unit, "", value, nil)
			}
		}); err != nil {
			return err
		}
	}
	return errors.Join(os.WriteFile(filepath.Join(o.dir, microFile), all.Bytes(), 0o644), ctx.Err())
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// parseBenchmarks reads what go test prints: name, iterations, then values with their units.
func parseBenchmarks(out []byte, fn func(name, unit string, value float64)) error {
	s := bufio.NewScanner(bytes.NewReader(out))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndexByte(name, '-'); i > 0 { // the number of cores
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		for i := 2; i+1 < len(f); i += 2 {
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return fmt.Errorf("%s: %w", f[0], err)
			}
			fn(name, f[i+1], v)
		}
	}
	return s.Err()
}
