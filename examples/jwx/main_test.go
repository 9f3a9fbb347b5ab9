package main

import (
	"testing"

	"github.com/revokd/revokd/examples/internal/devnode"
)

func TestOrders(t *testing.T) { devnode.TestOrders(t, issuer, newServer) }
