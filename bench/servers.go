package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// server is a competitor's process, on loopback and in a directory of its own.
type server struct {
	name string
	addr string // host:port
	sock string // a Unix socket, if it has one
	dir  string
	cmd  *exec.Cmd
	log  *bytes.Buffer // only to be read when the process has ended
	done chan struct{}
}

// errMissing: the program is not installed. bench/deps installs those of Debian.
var errMissing = errors.New("not installed (bench/deps installs it)")

// launch starts a program and waits until it is ready. as is who runs it: nil for whoever runs this.
func launch(ctx context.Context, name, dir, addr string, as *syscall.Credential, ready func() error, args ...string) (*server, error) {
	if _, err := exec.LookPath(args[0]); err != nil {
		return nil, errMissing
	}
	s := &server{name: name, addr: addr, dir: dir, log: new(bytes.Buffer), done: make(chan struct{})}
	s.cmd = exec.Command(args[0], args[1:]...)
	s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = dir, s.log, s.log
	s.cmd.SysProcAttr = dieWithParent(as)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(s.done)
		_ = s.cmd.Wait() // whoever stops it does not care how it ended
	}()
	deadline := time.Now().Add(patience)
	for {
		err := ready()
		if err == nil {
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("%s ended: %s", name, lastLines(s.log.String()))
		case <-ctx.Done():
			s.stop()
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("%s is not ready: %w: %s", name, err, lastLines(s.log.String()))
		}
	}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// stop asks the process to end, and kills it if it does not. Its directory stays.
func (s *server) stop() {
	if s == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.done:
	case <-time.After(10 * time.Second):
		s.kill()
	}
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.done
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// The ports of servers that cannot choose their own lie below those that the kernel hands out (32768 and more on Linux), which others may get between our look and the
// server's start.
const firstPort, ports = 20_000, 12_000

var nextPort = rand.Uint32N(ports)

// freePort is one that is free now and that no other call returns.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := firstPort + int(atomic.AddUint32(&nextPort, 1)%ports)
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, err
}

func dials(network, addr string) func() error {
	return func() error {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

// startRedis starts Redis without persistence unless args say otherwise.
func startRedis(ctx context.Context, dir string, as *syscall.Credential, args ...string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	return startRedisAt(ctx, dir, port, as, args...)
}

func startRedisAt(ctx context.Context, dir string, port int, as *syscall.Credential, args ...string) (*server, error) {
	addr := "127.0.0.1:" + strconv.Itoa(port)
	sock := filepath.Join(dir, "redis.sock")
	ready := func() error { // it accepts connections while it still loads
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("PING\r\n")); err != nil {
			return err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, "+PONG") {
			err = errors.New(strings.TrimSpace(line))
		}
		return err
	}
	all := append([]string{"redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--unixsocket", sock, "--dir", dir, "--save", "", "--loglevel", "warning", "--maxclients", "4000"}, args...)
	s, err := launch(ctx, "redis", dir, addr, as, ready, all...)
	if err == nil {
		s.sock = sock
	}
	return s, err
}

func startMemcached(ctx context.Context, dir string) (*server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	// -u is only looked at by root, who may not run it. One slab class gets nearly all memory; 8 GiB is a limit and not taken.
	return launch(ctx, "memcached", dir, addr, nil, dials("tcp", addr), "memcached", "-l", "127.0.0.1", "-p", strconv.Itoa(port), "-m", "8192", "-u", "nobody", "-t", "4", "-o", "hashpower=20")
}

// postgresTool finds a program of PostgreSQL, which Debian keeps out of the path.
func postgresTool(name string) string {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); len(found) > 0 {
		return found[len(found)-1]
	}
	return name
}

func startPostgres(ctx context.Context, dir string) (*server, error) {
	initdb := postgresTool("initdb")
	if _, err := exec.LookPath(initdb); err != nil {
		return nil, errMissing
	}
	var as *syscall.Credential
	if os.Geteuid() == 0 { // it refuses to run as root
		var err error
		if as, err = credential("postgres", "nobody"); err != nil {
			return nil, err
		}
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "data")
	init := exec.CommandContext(ctx, initdb, "-D", data, "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C")
	init.SysProcAttr, init.Dir = dieWithParent(as), dir
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, lastLines(string(out)))
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	ready := func() error {
		return exec.Command(postgresTool("pg_isready"), "-q", "-h", dir, "-p", strconv.Itoa(port)).Run()
	}
	s, err := launch(ctx, "postgresql", dir, "127.0.0.1:"+strconv.Itoa(port), as, ready, postgresTool("postgres"), "-D", data, "-p", strconv.Itoa(port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=512MB", "-c", "fsync=on", "-c", "max_connections=200", "-c", "max_wal_size=4GB")
	if err == nil {
		s.sock = dir // pgx wants the directory
	}
	return s, err
}

// credential is that of the first of some users that there is.
func credential(names ...string) (*syscall.Credential, error) {
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("none of the users %v exists", names)
}

// startNATS starts a cluster of servers with JetStream.
func startNATS(ctx context.Context, dir string, n int, creds []*syscall.Credential) ([]*server, error) {
	ports, routes := make([]int, n), make([]int, n)
	var urls []string
	for i := range n {
		var err1, err2 error
		ports[i], err1 = freePort()
		routes[i], err2 = freePort()
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", routes[i]))
	}
	var all []*server
	for i := range n {
		own := filepath.Join(dir, fmt.Sprintf("nats%d", i+1))
		if err := os.Mkdir(own, 0o755); err != nil {
			return all, err
		}
		as := at(creds, i)
		if as != nil {
			if err := os.Chown(own, int(as.Uid), int(as.Gid)); err != nil {
				return all, err
			}
		}
		addr := "127.0.0.1:" + strconv.Itoa(ports[i])
		s, err := launch(ctx, "nats", own, addr, as, dials("tcp", addr), "nats-server", "-a", "127.0.0.1", "-p", strconv.Itoa(ports[i]), "-js", "-sd", own, "-n", fmt.Sprintf("n%d", i+1),
			"--cluster_name", "bench", "--cluster", fmt.Sprintf("nats://127.0.0.1:%d", routes[i]), "--routes", strings.Join(slices.Delete(slices.Clone(urls), i, i+1), ","))
		if err != nil {
			return all, err
		}
		all = append(all, s)
	}
	return all, nil
}

func at(creds []*syscall.Credential, i int) *syscall.Credential {
	if creds == nil {
		return nil
	}
	return creds[i]
}

func stopAll(list []*server) {
	for _, s := range list {
		s.stop()
	}
}

// fillRedis sets keys over its Unix socket, thousands in flight: with a client library this would take most of a run.
func fillRedis(s *server, from, to int, ttl time.Duration) error {
	return pipeline(s, from, to, func(b []byte, i int) []byte {
		seconds := strconv.Itoa(int(ttl.Seconds()))
		return fmt.Appendf(b, "*5\r\n$3\r\nSET\r\n$36\r\n%s\r\n$1\r\n1\r\n$2\r\nEX\r\n$%d\r\n%s\r\n", key(i), len(seconds), seconds)
	}, len("+OK\r\n"))
}

// fillMemcached does the same over TCP.
func fillMemcached(s *server, from, to int, ttl time.Duration) error {
	return pipeline(s, from, to, func(b []byte, i int) []byte {
		return fmt.Appendf(b, "set %s 0 %d 1\r\n1\r\n", key(i), int(ttl.Seconds()))
	}, len("STORED\r\n"))
}

// pipeline sends commands whose answers have a known length.
func pipeline(s *server, from, to int, command func([]byte, int) []byte, answer int) error {
	network, addr := "tcp", s.addr
	if s.sock != "" {
		network, addr = "unix", s.sock
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	const chunk = 5000
	in, out := make([]byte, chunk*answer), make([]byte, 0, chunk*128)
	for ; from < to; from += chunk {
		n := min(chunk, to-from)
		sent := make(chan error, 1)
		go func() {
			out = out[:0]
			for i := range n {
				out = command(out, from+i)
			}
			_, err := c.Write(out)
			sent <- err
		}()
		if _, err := io.ReadFull(c, in[:n*answer]); err != nil {
			return err
		}
		if in[0] == '-' {
			return errors.New(lastLines(string(in[:n*answer])))
		}
		if err := <-sent; err != nil {
			return err
		}
	}
	return nil
}

// serve starts a competitor's server in a directory of its own and fills it. One that is not there, or fails, is named, and the others go on.
func serve(ctx context.Context, r *Result, dir, name string, start func(ctx context.Context, dir string) (*server, error), fill func(s *server) ([]*subject, error)) (s *server, list []*subject) {
	own := filepath.Join(dir, name)
	err := os.Mkdir(own, 0o755)
	if err == nil {
		s, err = start(ctx, own)
	}
	if errors.Is(err, errMissing) {
		r.absent(name, err)
		return nil, nil
	}
	if err == nil {
		list, err = fill(s)
	}
	if err != nil {
		r.fail(name, err)
		list = nil
	}
	return s, list
}

// serveAll does so with those that answer whether a key is there, and holds n of them.
func serveAll(ctx context.Context, r *Result, dir string, n int) (servers []*server, list []*subject) {
	for _, c := range []struct {
		name  string
		start func(ctx context.Context, dir string) (*server, error)
		fill  func(s *server) ([]*subject, error)
	}{
		{"redis", func(ctx context.Context, dir string) (*server, error) { return startRedis(ctx, dir, nil) }, func(s *server) ([]*subject, error) {
			if err := fillRedis(s, 0, n, lifetime); err != nil {
				return nil, err
			}
			return redisSubjects(ctx, s)
		}},
		{"memcached", startMemcached, func(s *server) ([]*subject, error) {
			return []*subject{memcachedSubject(s)}, fillMemcached(s, 0, n, lifetime)
		}},
		{"postgresql", startPostgres, func(s *server) ([]*subject, error) {
			pool, err := postgresPool(ctx, s, 64)
			if err != nil {
				return nil, err
			}
			return []*subject{postgresSubject(ctx, pool)}, fillPostgres(ctx, pool, n)
		}},
	} {
		if c.name == "postgresql" && n > 1_000_000 {
			r.note("PostgreSQL was not measured with %s records: loading them takes longer than all the rest.", size(n))
			continue
		}
		s, more := serve(ctx, r, dir, c.name, c.start, c.fill)
		if s != nil {
			servers = append(servers, s)
		}
		list = append(list, more...)
	}
	return servers, list
}
