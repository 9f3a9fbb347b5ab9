package e2e_test

import (
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// weather is what becomes of the packets to and from a host, both ways: not every kernel has netem.
type weather struct {
	delay, jitter time.Duration // a packet waits delay and up to jitter more: with jitter they overtake each other
	duplicate     float64       // so many come twice
	loss          float64
	rate          int // bytes a second; 0: any
}

// maxUnderWay is how many packets wait in one direction; what comes then is lost, as in a router.
const maxUnderWay = 2000

// storminess counts what weather did.
type storminess struct{ forwarded, delayed, duplicated, lost, overtaken atomic.Int64 }

// relayed puts a relay between a host and the bridge, until end is called.
func (l *lab) relayed(h *host, w weather) (did *storminess, end func()) {
	l.t.Helper()
	l.wholePackets()
	port := h.port()
	in, out := "in"+port, "out"+port // a cable from the relay to the bridge
	l.ip("-n", l.hub, "link", "add", in, "type", "veth", "peer", "name", out)
	for _, dev := range []string{in, out} {
		l.ip("-n", l.hub, "link", "set", dev, "up")
	}
	host, bridge := l.packets(port), l.packets(in)
	l.ip("-n", l.hub, "link", "set", port, "nomaster")
	l.ip("-n", l.hub, "link", "set", out, "master", "br0")
	did = &storminess{}
	var work sync.WaitGroup
	stop := make(chan struct{})
	work.Go(func() { w.forward(did, host, bridge, stop) })
	work.Go(func() { w.forward(did, bridge, host, stop) })
	return did, sync.OnceFunc(func() {
		close(stop)
		work.Wait()
		_ = unix.Close(host)
		_ = unix.Close(bridge)
		for _, args := range [][]string{{"link", "del", in}, {"link", "set", port, "master", "br0"}} {
			if out, err := exec.Command("ip", append([]string{"-n", l.hub}, args...)...).CombinedOutput(); err != nil {
				l.t.Errorf("ip: %v: %s", err, out)
			}
		}
	})
}

// flight is a packet under way.
type flight struct {
	due    time.Time
	number int
	frame  []byte
}

type flights []flight

func (f flights) Len() int           { return len(f) }
func (f flights) Less(i, j int) bool { return f[i].due.Before(f[j].due) }
func (f flights) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)        { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	last := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return last
}

// forward takes packets from one socket to the other until stop is closed. Reads wait for at most a few milliseconds: see packets.
func (w weather) forward(did *storminess, from, to int, stop <-chan struct{}) {
	var (
		waiting flights
		clear   time.Time // when the link has sent what it has taken
		number  int
		latest  int
		b       = make([]byte, 1<<16)
	)
	for {
		select {
		case <-stop:
			return
		default:
		}
		now := time.Now()
		for len(waiting) > 0 && !waiting[0].due.After(now) {
			f := heap.Pop(&waiting).(flight)
			if f.number < latest {
				did.overtaken.Add(1)
			}
			latest = max(latest, f.number)
			_, _ = unix.Write(to, f.frame) // a host that takes no more loses it
			did.forwarded.Add(1)
		}
		wait := 5 * time.Millisecond
		if len(waiting) > 0 {
			wait = min(wait, time.Until(waiting[0].due))
		}
		if poll := []unix.PollFd{{Fd: int32(from), Events: unix.POLLIN}}; !ready(poll, wait) {
			continue
		}
		n, err := unix.Read(from, b)
		if err != nil || n == 0 {
			continue
		}
		number++
		if len(waiting) >= maxUnderWay || rand.Float64() < w.loss {
			did.lost.Add(1)
			continue
		}
		copies := 1
		if rand.Float64() < w.duplicate {
			copies = 2
			did.duplicated.Add(1)
		}
		for range copies {
			due := time.Now()
			if w.rate > 0 {
				if clear.Before(due) {
					clear = due
				}
				clear = clear.Add(time.Duration(n) * time.Second / time.Duration(w.rate))
				due = clear
			}
			due = due.Add(w.delay)
			if w.jitter > 0 {
				due = due.Add(rand.N(w.jitter))
			}
			did.delayed.Add(1)
			heap.Push(&waiting, flight{due, number, append([]byte(nil), b[:n]...)})
		}
	}
}

// ready waits for a socket. Below a millisecond poll would not wait at all.
func ready(fds []unix.PollFd, wait time.Duration) bool {
	t := unix.NsecToTimespec(max(0, wait.Nanoseconds()))
	n, err := unix.Ppoll(fds, &t, nil)
	return err == nil && n > 0
}

// port is the hub's end of the host's cable.
func (h *host) port() string { return fmt.Sprint("p", h.addr.As4()[3]) }

// packets opens a socket that reads and writes whole frames of an interface of the hub.
func (l *lab) packets(dev string) (socket int) {
	l.t.Helper()
	err := in(filepath.Join(namespaces, l.hub), func() error {
		ifc, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8) // in the order of the network
		if socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(socket, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1), // else it would hear itself
			unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.Bind(socket, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: ifc.Index}),
		)
	})
	if err != nil {
		l.t.Fatalf("%s: %v", dev, err)
	}
	return socket
}

// wholePackets makes the hosts send packets as they would be on a wire: of at most the MTU, with their checksums. A relay cannot do what the
// kernel leaves to a network card.
func (l *lab) wholePackets() {
	l.t.Helper()
	for _, h := range l.hosts {
		err := in(h.path(), func() error {
			socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(socket)
			for _, command := range []uint32{unix.ETHTOOL_STXCSUM, unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_SGRO} {
				value := struct{ command, data uint32 }{command, 0}
				req := struct {
					name [unix.IFNAMSIZ]byte
					data unsafe.Pointer
					_    [16]byte
				}{data: unsafe.Pointer(&value)}
				copy(req.name[:], "eth0")
				if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(socket), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
					return fmt.Errorf("ethtool %d: %w", command, errno)
				}
			}
			return nil
		})
		if err != nil {
			l.t.Fatalf("%s: %v", h.ns, err)
		}
	}
}

// The relay does to packets what it is asked for, and nothing when it is gone.
func TestWeather(t *testing.T) {
	l := newLab(t)
	a, b := l.add(), l.add()
	ln, err := b.listen("tcp", b.at(9))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 1<<16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	c, err := a.dial(t.Context(), "tcp", b.at(9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	echo := func(n int) time.Duration {
		t.Helper()
		began := time.Now()
		sent, got := make([]byte, n), make([]byte, n)
		for i := range sent {
			sent[i] = byte(rand.Uint32())
		}
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			done <- err
		}()
		for at := 0; at < n; {
			k, err := c.Read(got[at:])
			if err != nil {
				t.Fatal(err)
			}
			at += k
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if string(sent) != string(got) {
			t.Fatal("other bytes came back")
		}
		return time.Since(began)
	}
	echo(100_000)
	for _, w := range []weather{
		{delay: 50 * time.Millisecond},
		{delay: time.Millisecond, jitter: 20 * time.Millisecond},
		{duplicate: 0.3},
		{loss: 0.1},
		{rate: 500_000},
	} {
		did, end := l.relayed(b, w)
		took := echo(100_000)
		end()
		t.Logf("%+v: 100 000 bytes there and back in %s; %d packets, %d overtaken, %d twice, %d lost",
			w, took.Round(time.Millisecond), did.forwarded.Load(), did.overtaken.Load(), did.duplicated.Load(), did.lost.Load())
		if took < 2*w.delay || w.jitter > 0 && did.overtaken.Load() == 0 || w.duplicate > 0 && did.duplicated.Load() == 0 || w.loss > 0 && did.lost.Load() == 0 ||
			w.rate > 0 && took < 150*time.Millisecond || did.forwarded.Load() == 0 {
			t.Errorf("%+v did nothing", w)
		}
		echo(100_000)
	}
}
