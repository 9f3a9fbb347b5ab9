package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var metricName = regexp.MustCompile(`\brevokd_[a-z0-9_]+`)

// documented returns the metrics of docs/api.md: all that are in the first column of a table. The tests of internal/api hold that table against the program.
func documented(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if column, _, ok := strings.Cut(strings.TrimPrefix(line, "|"), "|"); ok && strings.HasPrefix(line, "|") {
			for _, name := range metricName.FindAllString(column, -1) {
				names[name] = true
			}
		}
	}
	if len(names) < 40 {
		t.Fatalf("only %d metrics found in docs/api.md", len(names))
	}
	return names
}

func unknownMetrics(exprs []string, known map[string]bool) (unknown []string, found int) {
	for _, e := range exprs {
		for _, name := range metricName.FindAllString(e, -1) {
			found++
			base := name
			for _, part := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, part)
			}
			if !known[name] && !known[base] {
				unknown = append(unknown, name+" in "+e)
			}
		}
	}
	return unknown, found
}

// alerts returns the rules by name.
func alerts(t *testing.T) map[string]object {
	t.Helper()
	rules := map[string]object{}
	file := documents(t, filepath.Join(deployDir, "prometheus", "alerts.yml"))[0]
	groups, _ := file["groups"].([]any)
	for i := range groups {
		list, _ := at(t, groups, i, "rules").([]any)
		for j := range list {
			rules[at(t, list, j, "alert").(string)] = at(t, list, j).(object)
		}
	}
	return rules
}

// tested returns the alerts that the cases of promtool see fire, and those that they see not fire.
func tested(t *testing.T) (fires, quiet map[string]bool) {
	t.Helper()
	fires, quiet = map[string]bool{}, map[string]bool{}
	cases, _ := documents(t, filepath.Join(deployDir, "prometheus", "alerts_test.yml"))[0]["tests"].([]any)
	for i := range cases {
		list, _ := at(t, cases, i, "alert_rule_test").([]any)
		for j := range list {
			c := at(t, list, j).(object)
			name := at(t, c, "alertname").(string)
			if expected, _ := c["exp_alerts"].([]any); len(expected) > 0 {
				fires[name] = true
			} else {
				quiet[name] = true
			}
		}
	}
	return fires, quiet
}

// TestMonitoring: alerts and dashboard ask for metrics that exist, the handbook says what each alert means, and each is tested.
func TestMonitoring(t *testing.T) {
	known := documented(t)
	handbook, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	var exprs []string
	fires, quiet := tested(t)
	for name, rule := range alerts(t) {
		if !fires[name] || !quiet[name] {
			t.Errorf("%s: a case of alerts_test.yml has it fire: %t, and another one not: %t", name, fires[name], quiet[name])
		}
		exprs = append(exprs, at(t, rule, "expr").(string))
		if !strings.Contains(string(handbook), "| `"+name+"` |") {
			t.Errorf("docs/operations.md does not say what %s means", name)
		}
	}
	text, err := os.ReadFile(filepath.Join(deployDir, "grafana", "revokd.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
		}
	}
	unknown, found := unknownMetrics(exprs, known)
	for _, u := range unknown {
		t.Error("there is no " + u)
	}
	if found < 60 {
		t.Errorf("only %d metrics found: the test reads nothing", found)
	}
	if u, _ := unknownMetrics([]string{"rate(revokd_api_request_seconds_bucket[5m]) + revokd_reday"}, known); len(u) != 1 {
		t.Errorf("%q", u)
	}
}

// TestPromtool has Prometheus' own tool check the rules, and run their tests.
func TestPromtool(t *testing.T) {
	tool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skipf("the rules are checked by promtool (Debian: prometheus): %v", err)
	}
	dir := filepath.Join(deployDir, "prometheus")
	for _, args := range [][]string{
		{"check", "rules", filepath.Join(dir, "alerts.yml")},
		{"test", "rules", filepath.Join(dir, "alerts_test.yml")},
		{"check", "config", "--syntax-only", filepath.Join(dir, "prometheus.yml")},
	} {
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
