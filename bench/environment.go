package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
)

// Environment is the machine and what was measured on it.
type Environment struct {
	Command  string            `json:"command"`
	Commit   string            `json:"commit"`
	CPU      string            `json:"cpu"`
	Cores    int               `json:"cores"`
	MemoryGB int               `json:"memory_gb"`
	Kernel   string            `json:"kernel"`
	Go       string            `json:"go"`
	Servers  map[string]string `json:"servers"` // versions of those that are there
	Modules  map[string]string `json:"modules"`
}

func environment(command string) Environment {
	e := Environment{Command: command, Cores: runtime.NumCPU(), Go: runtime.Version(), Kernel: firstLine("uname", "-sr"), Servers: map[string]string{}, Modules: map[string]string{}}
	e.Commit = firstLine("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*")
	e.CPU = field("/proc/cpuinfo", "model name")
	var kb int
	if _, err := fmt.Sscanf(field("/proc/meminfo", "MemTotal"), "%d", &kb); err == nil {
		e.MemoryGB = (kb + 1<<19) >> 20
	}
	for name, args := range map[string][]string{
		"redis": {"redis-server", "--version"}, "memcached": {"memcached", "--version"}, "nats": {"nats-server", "--version"}, "postgresql": {postgresTool("postgres"), "--version"},
	} {
		if text := firstLine(args[0], args[1:]...); text != "" {
			e.Servers[name] = version.FindString(text)
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/redis/go-redis/v9", "github.com/redis/rueidis", "github.com/bradfitz/gomemcache", "github.com/krakendio/bloomfilter/v2", "github.com/maypok86/otter/v2",
				"github.com/jackc/pgx/v5", "github.com/nats-io/nats.go", "github.com/golang-jwt/jwt/v5":
				e.Modules[m.Path] = m.Version
			}
		}
	}
	return e
}

var version = regexp.MustCompile(`[0-9]+\.[0-9.]+`)

// firstLine runs a program; empty if it is not there.
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// field returns what stands behind a name in a file of lines "name: value".
func field(file, name string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// load is the load average of 1, 5 and 15 minutes: what runs beside.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:3], " ")
}

var unfit = regexp.MustCompile(`[^a-z0-9]+`)

// slug names the machine in the name of a directory.
func (e Environment) slug() string {
	return strings.Trim(unfit.ReplaceAllString(strings.ToLower(fmt.Sprintf("%d-core-%s", e.Cores, e.CPU)), "-"), "-")
}
