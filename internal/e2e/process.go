// Package e2e starts the real program for tests: an agent as a process of its own, on a port that it chose.
//
// It knows what an agent prints and when it is ready; it promises that [Start] returns an agent that answers, or the
// reason why not with what the agent wrote. A Process may be used concurrently; its zero value is not usable. Only tests
// and the benchmarks of bench/ import it.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"time"
)

// Config of [Start].
type Config struct {
	Args []string             // the program and its arguments
	Env  []string             // the whole environment
	Dir  string               // working directory
	Sys  *syscall.SysProcAttr // nil: the default
	HTTP *http.Client         // asks whether it is ready; nil: http.DefaultClient
	// Unready: Start does not wait until the agent is ready.
	Unready bool
}

// Process is a running agent.
type Process struct {
	URL string // of its API

	cmd            *exec.Cmd
	client         *http.Client
	stdout, stderr buffer
	ended          chan struct{} // closed when the process has ended and its output has been read
}

// buffer keeps output.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	grew func() // called after each write; may be nil
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.b.Write(p)
	if b.grew != nil {
		b.grew()
	}
	return n, err
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var listening = regexp.MustCompile(`(?m)^  API +(https?://\S+)$`)

// Start starts an agent and waits until it is ready, or ctx ends. Args may begin with what puts the agent into another network namespace.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	p := &Process{client: cfg.HTTP, ended: make(chan struct{})}
	if p.client == nil {
		p.client = http.DefaultClient
	}
	p.cmd = exec.Command(cfg.Args[0], cfg.Args[1:]...)
	p.cmd.Env, p.cmd.Dir, p.cmd.SysProcAttr = cfg.Env, cfg.Dir, cfg.Sys
	grew := make(chan struct{}, 1)
	p.stdout.grew = func() {
		select {
		case grew <- struct{}{}:
		default:
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // ExitCode tells
	}()
	err := p.await(ctx, grew, cfg.Unready)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("%w; stdout:\n%s\nstderr:\n%s", err, p.Stdout(), p.Stderr())
	}
	return p, nil
}

func (p *Process) await(ctx context.Context, grew <-chan struct{}, unready bool) error {
	for p.URL == "" {
		select {
		case <-grew:
			if m := listening.FindStringSubmatch(p.stdout.String()); m != nil {
				p.URL = m[1]
			}
		case <-p.ended:
			return fmt.Errorf("the agent ended with exit code %d", p.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("the agent does not say where it listens: %w", ctx.Err())
		}
	}
	if unready {
		return nil
	}
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !p.Ready(ctx) {
		select {
		case <-poll.C:
		case <-p.ended:
			return fmt.Errorf("the agent ended with exit code %d", p.ExitCode())
		case <-ctx.Done():
			return fmt.Errorf("the agent is not ready: %w", ctx.Err())
		}
	}
	return nil
}

// Ready reports whether the agent says that it is ready.
func (p *Process) Ready(ctx context.Context) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/readyz", nil)
	if err != nil {
		return false
	}
	req.Close = true
	res, err := p.client.Do(req)
	if err != nil {
		return false
	}
	return res.Body.Close() == nil && res.StatusCode == http.StatusOK
}

// Pid returns the number of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends the process as kill -9 does and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// Wait waits for the end of the process and returns its exit code, or -1 for a signal.
func (p *Process) Wait(ctx context.Context) (code int, err error) {
	select {
	case <-p.ended:
		return p.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("the agent does not end: %w", ctx.Err())
	}
}

// ExitCode returns the exit code of a process that has ended.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Stdout returns what the process has written to its standard output.
func (p *Process) Stdout() string { return p.stdout.String() }

// Stderr returns what the process has logged.
func (p *Process) Stderr() string { return p.stderr.String() }
