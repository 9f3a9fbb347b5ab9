package cluster_test

import (
	"context"
	"fmt"
	"time"

	"github.com/revokd/revokd/cluster"
)

func Example() {
	key := []byte("32 random bytes, the same for all")[:32]
	start := func(name string, seeds ...string) (*cluster.Members, func()) {
		m, err := cluster.New(cluster.Config{
			Name: name, Bind: "127.0.0.1:0", Seeds: seeds, Keys: [][]byte{key},
			Meta: func() cluster.Meta { return cluster.Meta{State: cluster.Ready, APIAddr: name + ".example:7950"} },
		})
		if err != nil {
			panic(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		<-m.Started()
		return m, func() { stop(); <-done }
	}
	a, stopA := start("a")
	defer stopA()
	b, stopB := start("b", a.Local().Addr.String())
	defer stopB()

	for len(a.Members()) < 2 || len(b.Members()) < 2 {
		time.Sleep(10 * time.Millisecond) // between polls
	}
	for _, member := range a.Members() {
		fmt.Println(member.Name, member.Status, member.Meta.State, member.Meta.APIAddr)
	}
	// Output:
	// a alive ready a.example:7950
	// b alive ready b.example:7950
}
