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

// listen opens the address of the API. Beyond loopback it refuses: until TLS and credentials exist whoever reaches
// the port could revoke every token, and tokens would cross the network in the clear. In
// dev a taken port is replaced by a free one.
func listen(ctx context.Context, addr string, dev bool, resolve lookup) (net.Listener, error) {
	at, err := loopback(ctx, addr, resolve)
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

// loopback resolves an address and refuses it unless every address that the name stands for is a loopback address.
func loopback(ctx context.Context, addr string, resolve lookup) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, errors.New("malformed: want host:port, such as " + DefaultAPIAddr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, errors.New("malformed: the port is a number up to 65535; 0 takes a free one")
	}
	if host == "" {
		return netip.AddrPort{}, refused("all interfaces")
	}
	ips := []netip.Addr{}
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = append(ips, ip)
	} else if ips, err = resolve(ctx, "ip", host); err != nil {
		return netip.AddrPort{}, fmt.Errorf("the name does not resolve: %w", err)
	}
	if len(ips) == 0 {
		return netip.AddrPort{}, errors.New("the name does not resolve")
	}
	for _, ip := range ips {
		switch ip = ip.Unmap(); {
		case ip.IsUnspecified():
			return netip.AddrPort{}, refused("all interfaces")
		case !ip.IsLoopback():
			return netip.AddrPort{}, refused(ip.String())
		}
	}
	return netip.AddrPortFrom(ips[0].Unmap(), uint16(n)), nil
}

func refused(what string) error {
	return fmt.Errorf("not allowed: this means %s, and revokd has no TLS and no credentials yet: whoever reached it could revoke every token; "+
		"only loopback addresses (127.0.0.1, ::1, localhost) are accepted", what)
}
