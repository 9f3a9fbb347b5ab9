package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
)

// lookup resolves a name, as [net.Resolver.LookupNetIP] does.
type lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// listen opens the address of the API. Beyond loopback it refuses without TLS: whoever reached the port could revoke every
// token, and tokens would cross the network in the clear. beyond says that there is TLS, or that the user wants it all the same. A dev node stays on
// loopback, and replaces a taken port by a free one.
func listen(ctx context.Context, addr string, dev, beyond bool, resolve lookup) (net.Listener, error) {
	check := loopback
	if beyond && !dev {
		check = anywhere
	}
	at, err := check(ctx, addr, resolve)
	if err != nil {
		return nil, fmt.Errorf("--api-addr %s: %w", addr, err)
	}
	// The address, not the name, so that nothing can change between the test and the use.
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", at.String())
	if dev && errors.Is(err, syscall.EADDRINUSE) {
		ln, err = lc.Listen(ctx, "tcp", netip.AddrPortFrom(at.Addr(), 0).String())
	}
	if err != nil {
		return nil, fmt.Errorf("--api-addr %s: %w", addr, err)
	}
	return ln, nil
}

// addresses returns what an address stands for, at least one: no host is all interfaces.
func addresses(ctx context.Context, addr string, resolve lookup) (ips []netip.Addr, port uint16, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, 0, errors.New("malformed: want host:port, such as " + DefaultAPIAddr)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, 0, errors.New("malformed: the port is a number up to 65535; 0 takes a free one")
	}
	if host == "" {
		return []netip.Addr{netip.IPv6Unspecified()}, uint16(n), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = append(ips, ip)
	} else if ips, err = resolve(ctx, "ip", host); err != nil {
		return nil, 0, fmt.Errorf("the name does not resolve: %w", err)
	}
	if len(ips) == 0 {
		return nil, 0, errors.New("the name does not resolve")
	}
	return ips, uint16(n), nil
}

// anywhere resolves an address; of several that a name stands for it takes the first.
func anywhere(ctx context.Context, addr string, resolve lookup) (netip.AddrPort, error) {
	ips, port, err := addresses(ctx, addr, resolve)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(ips[0].Unmap(), port), nil
}

// loopback resolves an address and refuses it unless every address that the name stands for is a loopback address.
func loopback(ctx context.Context, addr string, resolve lookup) (netip.AddrPort, error) {
	ips, port, err := addresses(ctx, addr, resolve)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for _, ip := range ips {
		switch ip = ip.Unmap(); {
		case ip.IsUnspecified():
			return netip.AddrPort{}, refused("all interfaces")
		case !ip.IsLoopback():
			return netip.AddrPort{}, refused(ip.String())
		}
	}
	return netip.AddrPortFrom(ips[0].Unmap(), port), nil
}

// errBeyond: an address that others than this machine may reach.
var errBeyond = errors.New("not allowed")

func refused(what string) error {
	return fmt.Errorf("%w: this means %s, and without TLS, or with --dev, whoever reached it could revoke every token: "+
		"give --tls-cert, --tls-key and --tls-ca (revokd ca makes the files), or a loopback address (127.0.0.1, ::1, localhost); --insecure does it without", errBeyond, what)
}
