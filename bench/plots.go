package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// series is one line of a plot.
type series struct {
	name   string
	points plotter.XYs
}

// scalings are figures drawn over a size.
var scalings = []struct {
	scenario, file, title, table, metric, param string
}{
	{"lookup", "lookup-p50-by-records.svg", "Lookup, nothing found: p50 by records", "lookup/*/0", "p50", "records"},
	{"lookup", "lookup-p99-by-records.svg", "Lookup, nothing found: p99 by records", "lookup/*/0", "p99", "records"},
	{"lookup", "lookup-cores-by-records.svg", "Lookups a second on all cores by records", "lookup/*/0", "all cores", "records"},
	{"remote", "remote-by-callers.svg", "Remote check: keys a second by callers", "remote/*", "keys", "callers"},
	{"memory", "memory-by-records.svg", "Resident bytes for a record by records", "memory/*", "resident", "records"},
	{"everywhere", "everywhere-p99-by-nodes.svg", "1000/s, from due to the last node: p99 by nodes", "everywhere/*/1000", "p99", "nodes"},
	{"everywhere", "everywhere-p99-by-rate.svg", "5 nodes, from due to the last node: p99 by rate", "everywhere/5/*", "p99", "rate"},
	{"writes", "writes-by-writers.svg", "Fsynced revocations a second by writers", "writes/*", "revocations", "writers"},
	{"growth", "simulated-by-nodes.svg", "Simulated: p50 and p99 until everywhere, by nodes", "simulated", "*", "nodes"},
}

// writePlots returns the files that it has made, by scenario.
func writePlots(dir string, all []*Result) (map[string][]string, error) {
	files := map[string][]string{}
	old, err := filepath.Glob(filepath.Join(dir, "*.svg"))
	if err != nil {
		return nil, err
	}
	for _, f := range old { // of results that are not there any more
		if err := os.Remove(f); err != nil {
			return nil, err
		}
	}
	for _, r := range all {
		for _, t := range r.Tables {
			var lines []series
			unit := ""
			for _, c := range r.Curves {
				if c.Table != t.ID {
					continue
				}
				s := series{name: c.Subject}
				for i, v := range c.Values {
					s.points = append(s.points, plotter.XY{X: math.Max(v, 1e-3), Y: c.Shares[i] * 100})
				}
				lines, unit = append(lines, s), c.Unit
			}
			if len(lines) == 0 {
				continue
			}
			name := "cdf-" + strings.NewReplacer("/", "-", ".", "_").Replace(t.ID) + ".svg"
			if err := drawPlot(filepath.Join(dir, name), t.Title, "latency, "+unit, "% of calls up to it", false, lines); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			files[r.Scenario] = append(files[r.Scenario], name)
		}
		for _, s := range scalings {
			if s.scenario != r.Scenario {
				continue
			}
			var lines []series
			unit := ""
			for _, f := range r.Figures {
				if ok, _ := filepath.Match(s.table, f.Table); !ok || s.metric != "*" && f.Metric != s.metric || f.Params[s.param] == 0 || f.Median() <= 0 {
					continue
				}
				name := f.Subject
				if s.metric == "*" {
					name = f.Metric
				}
				i := slices.IndexFunc(lines, func(l series) bool { return l.name == name })
				if i < 0 {
					lines, i = append(lines, series{name: name}), len(lines)
				}
				lines[i].points = append(lines[i].points, plotter.XY{X: f.Params[s.param], Y: f.Median()})
				unit = f.Unit
			}
			lines = slices.DeleteFunc(lines, func(l series) bool { return len(l.points) < 2 })
			if len(lines) == 0 {
				continue
			}
			if err := drawPlot(filepath.Join(dir, s.file), s.title, s.param, unit, true, lines); err != nil {
				return nil, fmt.Errorf("%s: %w", s.file, err)
			}
			files[r.Scenario] = append(files[r.Scenario], s.file)
		}
	}
	return files, nil
}

// drawPlot writes an SVG with logarithmic axes; yLog: both, else x alone.
func drawPlot(path, title, xName, yName string, yLog bool, lines []series) error {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	plotter.DefaultFont = plot.DefaultFont
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, xName, yName
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	if yLog {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	} else {
		p.Y.Min, p.Y.Max = 0, 100
	}
	p.Add(plotter.NewGrid())
	for i, s := range lines {
		slices.SortFunc(s.points, func(a, b plotter.XY) int { return int(math.Copysign(1, a.X-b.X)) })
		line, err := plotter.NewLine(s.points)
		if err != nil {
			return err
		}
		line.Color, line.Dashes, line.Width = plotutil.Color(i), plotutil.Dashes(i/len(plotutil.DefaultColors)), vg.Points(1.5)
		p.Add(line)
		if yLog {
			dots, err := plotter.NewScatter(s.points)
			if err != nil {
				return err
			}
			dots.Color, dots.Shape = plotutil.Color(i), plotutil.Shape(0)
			p.Add(dots)
		}
		p.Legend.Add(s.name, line)
	}
	const width, height, legend = 620, 400, 330
	p.Legend.Top, p.Legend.Left, p.Legend.XOffs, p.Legend.Padding = true, true, vg.Points(width-40), vg.Points(2) // beside the plot
	canvas := vgsvg.New(vg.Points(width+legend), vg.Points(height))
	p.Draw(plotArea(canvas, width, height))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return err
	}
	// Whoever looks at it need not have the font.
	return os.WriteFile(path, bytes.ReplaceAll(b.Bytes(), []byte("Liberation Sans"), []byte("sans-serif")), 0o644)
}

// plotArea is the left part of a canvas on a white ground: the legend stands to its right.
func plotArea(c *vgsvg.Canvas, width, height float64) draw.Canvas {
	whole := draw.New(c)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	return draw.Crop(whole, 0, vg.Points(width)-whole.Max.X, 0, 0)
}
