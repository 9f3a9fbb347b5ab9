package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Supervisor is who started the process and wants to hear how it is: systemd, with Type=notify. The zero Supervisor is nobody.
type Supervisor struct {
	socket   string        // of unixgram
	watchdog time.Duration // how often it wants to hear that the node is alive; 0: never
}

// SupervisorFromEnv returns the one that the environment names: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, see sd_notify(3).
func SupervisorFromEnv(getenv func(string) string, pid int) (Supervisor, error) {
	s := Supervisor{socket: getenv("NOTIFY_SOCKET")}
	if s.socket == "" {
		return s, nil
	}
	if s.socket[0] != '/' && s.socket[0] != '@' { // @ is the abstract namespace, to package net too
		return Supervisor{}, errors.New("NOTIFY_SOCKET: malformed: want an absolute path, or @ and a name")
	}
	usec := getenv("WATCHDOG_USEC")
	if other := getenv("WATCHDOG_PID"); usec == "" || other != "" && other != strconv.Itoa(pid) {
		return s, nil
	}
	n, err := strconv.ParseInt(usec, 10, 64)
	if err != nil || n < 1000 || n > int64(24*time.Hour/time.Microsecond) {
		return Supervisor{}, errors.New("WATCHDOG_USEC: out of range: 1 ms to a day, in microseconds")
	}
	s.watchdog = time.Duration(n) * time.Microsecond
	return s, nil
}

// tell sends assignments such as READY=1. Nobody waits for an answer.
func (s Supervisor) tell(lines ...string) error {
	if s.socket == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	_, err = c.Write([]byte(strings.Join(lines, "\n")))
	return errors.Join(err, c.Close())
}

// tell tells the supervisor and reports whether that worked.
func (a *agent) tell(lines ...string) bool {
	err := a.cfg.Supervisor.tell(lines...)
	if err != nil {
		a.cfg.Logger.Warn("the service manager was not told", "error", err)
	}
	return err == nil
}

// pulse is what a supervisor is told about, a part of a node.
type pulse interface {
	Ready() []string // what it waits for
	Replayed() bool
	Now() int64 // goes on as long as the node lives
}

// aliveEvery bounds for how long the clock of a node that is alive may seem to stand: it is looked at ten times a second.
const aliveEvery = 2 * time.Second

// supervise tells the supervisor that the node has started when it has read its journal: whether it is ready depends on other nodes, which a start must not wait for. From
// then on it says what the node waits for, and that it is alive: only while its clock goes on and its locks come free. It returns when ctx has ended.
func supervise(ctx context.Context, watchdog time.Duration, node pulse, tell func(...string) bool) {
	interval := time.Second
	if watchdog > 0 {
		interval = min(interval, watchdog/3)
	}
	t := time.NewTicker(interval)
	defer t.Stop()
	started, said, last, still := false, "", int64(0), time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var lines []string
		status := "ready"
		if waiting := node.Ready(); len(waiting) > 0 {
			status = strings.ReplaceAll(strings.Join(waiting, "; "), "\n", " ")
		}
		if status != said {
			lines = append(lines, "STATUS="+status)
		}
		replayed := node.Replayed()
		if !started && replayed {
			lines = append(lines, "READY=1")
		}
		if now := node.Now(); now != last {
			last, still = now, 0
		} else {
			still += interval
		}
		if watchdog > 0 && still < aliveEvery {
			lines = append(lines, "WATCHDOG=1")
		}
		if len(lines) == 0 {
			continue
		}
		if tell(lines...) {
			said, started = status, started || replayed
		}
	}
}
