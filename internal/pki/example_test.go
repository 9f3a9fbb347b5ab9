package pki_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
)

// An authority, the certificates of two nodes, and a connection in which each knows who the other is.
func Example() {
	dir, err := os.MkdirTemp("", "pki")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ca, err := pki.Create(filepath.Join(dir, "ca"), "prod", 0, false, time.Now())
	if err != nil {
		panic(err)
	}
	load := func(name string) *pki.Source {
		files, err := ca.Issue(dir, pki.Request{Role: pki.RoleNode, Name: name}, false, time.Now())
		if err != nil {
			panic(err)
		}
		s, err := pki.Load(pki.Config{CA: files.Root, Cert: files.Cert, Key: files.Key, Clock: clock.System()})
		if err != nil {
			panic(err)
		}
		return s
	}
	n1, n2 := load("n1"), load("n2")

	ln, err := tls.Listen("tcp", "127.0.0.1:0", n1.ServerConfig())
	if err != nil {
		panic(err)
	}
	defer ln.Close()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := ln.Accept()
		if err != nil {
			panic(err)
		}
		defer c.Close()
		server := c.(*tls.Conn)
		if err := server.Handshake(); err != nil {
			panic(err)
		}
		fmt.Println(pki.PeerIdentity(server.ConnectionState()))
	}()
	// By address: the name n1 is in the certificate's identity.
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		panic(err)
	}
	client := tls.Client(raw, n2.ClientConfig("n1"))
	defer client.Close()
	if err := client.Handshake(); err != nil {
		panic(err)
	}
	<-served
	fmt.Println(pki.PeerIdentity(client.ConnectionState()))
	// Output:
	// revokd://prod/node/n2 <nil>
	// revokd://prod/node/n1 <nil>
}
