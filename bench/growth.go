package main

import (
	"context"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// fit is y = a + b x, or y = a x^b.
type fit struct {
	power bool
	a, b  float64
	r2    float64 // of the values, not of their logarithms: one measure for both
}

func (f fit) at(x float64) float64 {
	if f.power {
		return f.a * math.Pow(x, f.b)
	}
	return f.a + f.b*x
}

func (f fit) String() string {
	if f.power {
		return fmt.Sprintf("%.3g · x^%.2f", f.a, f.b)
	}
	return fmt.Sprintf("%.3g + %.3g · x", f.a, f.b)
}

// leastSquares fits a line through points.
func leastSquares(x, y []float64) (a, b float64) {
	var sx, sy, sxx, sxy float64
	n := float64(len(x))
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	b = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	return (sy - b*sx) / n, b
}

// fitCurve chooses between a line and a power law by what is left over, relative to the values: a size counts as much as any other.
func fitCurve(x, y []float64) fit {
	left := func(f fit) (sum float64) {
		for i := range x {
			d := math.Log(math.Max(f.at(x[i]), 1e-12) / y[i])
			sum += d * d
		}
		return sum
	}
	r2 := func(f fit) float64 {
		var mean, total, rest float64
		for _, v := range y {
			mean += v / float64(len(y))
		}
		for i := range x {
			total += (y[i] - mean) * (y[i] - mean)
			rest += (y[i] - f.at(x[i])) * (y[i] - f.at(x[i]))
		}
		if total == 0 {
			return 1
		}
		return 1 - rest/total
	}
	var line, power fit
	line.a, line.b = leastSquares(x, y)
	lx, ly := make([]float64, len(x)), make([]float64, len(x))
	for i := range x {
		lx[i], ly[i] = math.Log(x[i]), math.Log(math.Max(y[i], 1e-12))
	}
	a, b := leastSquares(lx, ly)
	power = fit{power: true, a: math.Exp(a), b: b}
	line.r2, power.r2 = r2(line), r2(power)
	if left(power) <= left(line) {
		return power
	}
	return line
}

// growths are the figures that are looked at as functions of a size.
var growths = []struct {
	title, table, subject, metric, param string // table: a pattern, * is the size
	beyond                               float64
}{
	{"single check, p50", "lookup/*/0", tableCheck, "p50", "records", 100e6},
	{"single check, p99", "lookup/*/0", tableCheck, "p99", "records", 100e6},
	{"one key, hashed, p50", "lookup/*/0", "revokd ttlstore, one key, hashed", "p50", "records", 100e6},
	{"checks/s, all cores", "lookup/*/0", tableCheck, "all cores", "records", 100e6},
	{"Redis EXISTS, TCP, p50", "lookup/*/0", "Redis EXISTS, go-redis, TCP", "p50", "records", 100e6},
	{"map + RWMutex, p50", "lookup/*/0", "map + RWMutex", "p50", "records", 100e6},
	{"resident bytes for a record, agent", "memory/*", "revokd agent (the whole process)", "resident", "records", 100e6},
	{"start, warm", "restart/start", "revokd, warm", "*", "records", 100e6},
	{"start, cold", "restart/start", "revokd, cold", "*", "records", 100e6},
	{"a new node takes everything", "restart/missed/*", "a new node: everything", "time", "records", 100e6},
	{"everywhere at 1000/s, p50", "everywhere/*/1000", revokdSpread, "p50", "nodes", 50},
	{"everywhere at 1000/s, p99", "everywhere/*/1000", revokdSpread, "p99", "nodes", 50},
	{"everywhere at 10 000/s, p99", "everywhere/*/10000", revokdSpread, "p99", "nodes", 50},
	{"Redis, nothing on disk, at 1000/s, p99", "everywhere/*/1000", "Redis replication, keyspace events, nothing on disk", "p99", "nodes", 50},
	{"fsynced writes/s over gRPC", "writes/*", agentRevoke, "revocations", "writers", 10_000},
	{"fsynced writes/s in process", "writes/*", "revokd node.Write, in process", "revocations", "writers", 10_000},
	{"Redis fsynced writes/s, rueidis", "writes/*", "Redis SET EX, rueidis", "revocations", "writers", 10_000},
}

func runGrowth(ctx context.Context, r *Result, o options) error {
	others, err := readResults(o.dir)
	if err != nil {
		return err
	}
	id := "growth"
	r.table(Table{ID: id, Title: "As a function of size", Note: "The curve, of the medians, that leaves least over; what it says far beyond the measured sizes is a prediction, not a figure. Fit of two or three points: a hint at most. One machine carries all nodes: the curves over nodes are those of a machine that is shared by more and more."})
	for _, g := range growths {
		var x, y []float64
		unit := ""
		for _, f := range figures(others) {
			if ok, _ := filepath.Match(g.table, f.Table); !ok || f.Subject != g.subject || g.metric != "*" && f.Metric != g.metric || f.Params[g.param] == 0 {
				continue
			}
			x, y, unit = append(x, f.Params[g.param]), append(y, f.Median()), f.Unit
		}
		if len(x) < 2 {
			continue
		}
		f := fitCurve(x, y)
		subject := fmt.Sprintf("%s: %s", g.title, f)
		params := map[string]float64{"a": f.a, "b": f.b, "power": 0}
		if f.power {
			params["power"] = 1
		}
		r.add(id, subject, "points", "", float64(len(x)), params)
		r.add(id, subject, "R²", "", f.r2, params)
		r.add(id, subject, "at "+g.param, "", g.beyond, params)
		r.add(id, subject, "predicted", unit, f.at(g.beyond), params)
	}
	return simulate(ctx, r, o)
}

var spreadLine = regexp.MustCompile(`(\d+) nodes, (\d+) of (\d+) links dead, \d+ copies: p50 (\S+), p99 (\S+), most (\S+); took (\S+)`)

// simulate copies records through simulated clusters: what the protocol needs when no machine is shared.
func simulate(ctx context.Context, r *Result, o options) error {
	nodes := []int{9, 20, 50, 1000}
	if o.quick {
		nodes = []int{9, 20}
	}
	id := "simulated"
	r.table(Table{ID: id, Title: "Simulated: 500 records through a cluster, one link in ten dead (`simrun -spread`)", Note: "Virtual time: the network's, and no processor's. Each run is made twice and must leave the same trace."})
	for _, n := range nodes {
		progress("simulating %d nodes", n)
		cmd := exec.CommandContext(ctx, "go", "run", "./cluster/replication/internal/simrun", "-spread", strconv.Itoa(n))
		cmd.Dir = o.root
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("simulating %d nodes: %w: %s", n, err, lastLines(string(out)))
		}
		found := spreadLine.FindAllStringSubmatch(string(out), -1)
		if len(found) != 2 {
			return fmt.Errorf("simulating %d nodes: unexpected output %s", n, lastLines(string(out)))
		}
		for i, name := range []string{"p50", "p99", "most"} {
			d, err := time.ParseDuration(found[0][4+i])
			if err != nil {
				return err
			}
			r.add(id, fmt.Sprintf("%d nodes", n), name, "ms", in("ms", int64(d)), map[string]float64{"nodes": float64(n)})
		}
		for _, run := range found {
			d, err := time.ParseDuration(run[7])
			if err != nil {
				return err
			}
			r.add(id, fmt.Sprintf("%d nodes", n), "took", "s", d.Seconds(), nil)
		}
	}
	return nil
}

func figures(all []*Result) (list []*Figure) {
	for _, r := range all {
		for i := range r.Figures {
			list = append(list, &r.Figures[i])
		}
	}
	return list
}

// find returns a figure, or nil.
func find(all []*Result, table, subject, metric string) *Figure {
	for _, f := range figures(all) {
		if f.Table == table && f.Subject == subject && (metric == f.Metric || strings.HasSuffix(metric, "*") && strings.HasPrefix(f.Metric, strings.TrimSuffix(metric, "*"))) {
			return f
		}
	}
	return nil
}
