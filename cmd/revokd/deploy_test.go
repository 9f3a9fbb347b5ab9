package main

import (
	"errors"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

const deployDir = "../../deploy"

type object = map[string]any

// documents reads a file of YAML documents.
func documents(t *testing.T, path string) (list []object) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := yaml.NewDecoder(f); ; {
		var o object
		switch err := d.Decode(&o); {
		case errors.Is(err, io.EOF):
			if len(list) == 0 {
				t.Fatalf("%s is empty", path)
			}
			return list
		case err != nil:
			t.Fatalf("%s: %v", path, err)
		}
		list = append(list, o)
	}
}

// at follows a path of keys, and of numbers of elements given as int.
func at(t *testing.T, v any, keys ...any) any {
	t.Helper()
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			m, _ := v.(object)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				t.Fatalf("%v: too short", keys)
			}
			v = l[k]
		}
		if v == nil {
			t.Fatalf("%v: there is no %v", keys, k)
		}
	}
	return v
}

func texts(v any) (list []string) {
	l, _ := v.([]any)
	for _, e := range l {
		s, _ := e.(string)
		list = append(list, s)
	}
	return list
}

// agentFiles has the program parse a command line of an agent, and returns the files that it names.
func agentFiles(t *testing.T, where string, args []string) (files []string) {
	t.Helper()
	if len(args) < 2 || args[0] != "agent" {
		t.Fatalf("%s: no command line of an agent: %q", where, args)
	}
	cmd := (&cli{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}).agentCommand()
	if err := cmd.ParseFlags(args[1:]); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if rest := cmd.Flags().Args(); len(rest) > 0 {
		t.Errorf("%s: %q is no flag", where, rest)
	}
	for _, name := range pathFlags {
		if f := cmd.Flag(name); f.Changed {
			files = append(files, f.Value.String())
		}
	}
	return files
}

// TestKubernetes: the manifests start agents that exist, with files that setup makes, and select the pods that they mean.
func TestKubernetes(t *testing.T) {
	dir := filepath.Join(deployDir, "kubernetes")
	kustomization := documents(t, filepath.Join(dir, "kustomization.yaml"))[0]
	resources := texts(at(t, kustomization, "resources"))
	entries, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := filepath.Base(e); name != "kustomization.yaml" && !slices.Contains(resources, name) {
			t.Errorf("%s is no resource", name)
		}
	}
	kinds := map[string]object{}
	for _, name := range resources {
		for _, o := range documents(t, filepath.Join(dir, name)) {
			kinds[at(t, o, "kind").(string)+"/"+at(t, o, "metadata", "name").(string)] = o
		}
	}
	want := []string{"NetworkPolicy/revokd", "PodDisruptionBudget/revokd", "Service/revokd", "Service/revokd-api", "ServiceAccount/revokd", "StatefulSet/revokd"}
	if got := slices.Sorted(maps.Keys(kinds)); !slices.Equal(got, want) {
		t.Errorf("kinds: %q", got)
	}
	set := kinds["StatefulSet/revokd"]
	if at(t, set, "spec", "serviceName") != "revokd" || at(t, kinds["Service/revokd"], "spec", "publishNotReadyAddresses") != true {
		t.Error("nodes that are not ready yet do not find each other")
	}
	for kind, where := range map[string][]any{
		"Service/revokd": {"spec", "selector"}, "Service/revokd-api": {"spec", "selector"}, "PodDisruptionBudget/revokd": {"spec", "selector", "matchLabels"},
		"NetworkPolicy/revokd": {"spec", "podSelector", "matchLabels"}, "StatefulSet/revokd": {"spec", "selector", "matchLabels"},
	} {
		pods := at(t, set, "spec", "template", "metadata", "labels").(object)
		if selects := at(t, kinds[kind], where...).(object); !maps.Equal(selects, pods) || len(pods) == 0 {
			t.Errorf("%s selects %v, and the pods have %v", kind, selects, pods)
		}
	}
	container := at(t, set, "spec", "template", "spec", "containers", 0)
	grace := time.Duration(at(t, set, "spec", "template", "spec", "terminationGracePeriodSeconds").(int)) * time.Second

	// What setup makes, at the place that the comment of the kustomization says.
	made := t.TempDir()
	var nodes []string
	for _, n := range []string{"revokd-0", "revokd-1", "revokd-2"} {
		nodes = append(nodes, n+"="+n+".revokd.revokd.svc")
	}
	if _, err := makeSetup(filepath.Join(made, "cluster"), "prod", nodes, "", time.Now()); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, entry := range texts(at(t, kustomization, "secretGenerator", 0, "files")) {
		key, file, _ := strings.Cut(entry, "=")
		keys[key] = true
		if _, err := os.Stat(filepath.Join(made, filepath.FromSlash(file))); err != nil {
			t.Errorf("setup does not make what the secret takes: %v", err)
		}
	}
	replicas := at(t, set, "spec", "replicas").(int)
	if replicas != len(nodes) || !slices.Contains(texts(at(t, container, "args")), "--bootstrap-expect=3") {
		t.Errorf("%d replicas", replicas)
	}
	for _, node := range []string{"revokd-0", "revokd-1", "revokd-2"} {
		expand := strings.NewReplacer("$(POD_NAME)", node, "$(POD_NAMESPACE)", "revokd", "$(POD_IP)", "10.0.0.1")
		var args []string
		for _, a := range texts(at(t, container, "args")) {
			args = append(args, expand.Replace(a))
			if strings.Contains(args[len(args)-1], "$(") {
				t.Errorf("%s: a variable that the test does not know", a)
			}
			if text, ok := strings.CutPrefix(a, "--shutdown-delay="); ok {
				if d, err := time.ParseDuration(text); err != nil || d+30*time.Second > grace {
					t.Errorf("the pod is killed %s after SIGTERM, and %s passes before it begins to stop", grace, text)
				}
			}
		}
		for _, file := range agentFiles(t, "statefulset.yaml", args) {
			if key, ok := strings.CutPrefix(file, "/secrets/"); ok && !keys[key] {
				t.Errorf("%s: the secret has no %s", node, key)
			} else if !ok && file != "/data" {
				t.Errorf("%s: nothing is mounted at %s", node, file)
			}
		}
	}
	for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		want := "/healthz"
		if probe == "readinessProbe" {
			want = "/readyz"
		}
		if get := at(t, container, probe, "httpGet"); at(t, get, "path") != want || at(t, get, "scheme") != "HTTPS" {
			t.Errorf("%s: %v", probe, get)
		}
	}
}

// TestComposeFile: so does docker-compose.yml.
func TestComposeFile(t *testing.T) {
	text, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	defaults := regexp.MustCompile(`\$\{[A-Z_]+:?-([^}]*)\}`)
	var file object
	if err := yaml.Unmarshal(defaults.ReplaceAll(text, []byte("$1")), &file); err != nil {
		t.Fatal(err)
	}
	for _, node := range []string{"n1", "n2", "n3"} {
		for _, f := range agentFiles(t, node, texts(at(t, file, "services", node, "command"))) {
			if !strings.HasPrefix(f, "/secrets/all/nodes/"+node+"/") && f != "/data" {
				t.Errorf("%s: %s is of somebody else", node, f)
			}
		}
	}
}

// TestSystemd: and so does the unit.
func TestSystemd(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(deployDir, "systemd", "revokd.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			unit[key] = value
		}
	}
	args := strings.Fields(unit["ExecStart"])
	if len(args) == 0 || path.Base(args[0]) != "revokd" {
		t.Fatalf("ExecStart=%s", unit["ExecStart"])
	}
	agentFiles(t, "revokd.service", args[1:])
	if unit["Type"] != "notify" || unit["WatchdogSec"] == "" || !strings.Contains(unit["ExecReload"], "-HUP") {
		t.Errorf("Type=%s WatchdogSec=%s ExecReload=%s", unit["Type"], unit["WatchdogSec"], unit["ExecReload"])
	}
}

// TestReleaseStamps: the linker is told variables that exist; it says nothing about others.
func TestReleaseStamps(t *testing.T) {
	source, err := os.ReadFile("version.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"../../.goreleaser.yaml", "../../Makefile", "../../Dockerfile"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		stamps := regexp.MustCompile(`-X main\.(\w+)=`).FindAllSubmatch(text, -1)
		if len(stamps) == 0 {
			t.Errorf("%s stamps nothing", file)
		}
		for _, m := range stamps {
			if !regexp.MustCompile(`(?m)^\t` + string(m[1]) + ` += ""`).Match(source) {
				t.Errorf("%s: there is no main.%s", file, m[1])
			}
		}
	}
	documents(t, "../../.goreleaser.yaml")
}
