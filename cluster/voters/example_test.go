package voters_test

import (
	"fmt"

	"github.com/revokd/revokd/cluster/voters"
)

// Two nodes, a network that is a slice, and a disk that is a map. The first forms a list alone; the second is added once it has caught up.
func Example() {
	a := voters.Voter{Name: "a", Incarnation: voters.Incarnation{1}}
	b := voters.Voter{Name: "b", Incarnation: voters.Incarnation{2}}
	disk := map[string][]byte{}
	machines := map[string]*voters.Machine{}
	for _, v := range []voters.Voter{a, b} {
		m, err := voters.New(v, disk[v.Name], 1)
		if err != nil {
			fmt.Println(err)
			return
		}
		machines[v.Name] = m
	}

	type packet struct {
		to string
		voters.Received
	}
	var network []packet
	step := func(node string, e voters.Event) {
		for _, o := range machines[node].Step(e) {
			switch o := o.(type) {
			case voters.Persist:
				disk[node] = o.State // and synced, before anything below
			case voters.Adopted:
				fmt.Println(node, "adopts", o.Config)
			case voters.Send:
				network = append(network, packet{o.To, voters.Received{From: node, Data: o.Data}})
			case voters.Result:
				fmt.Println(node, "answers", o.ID, o.Err)
			}
		}
	}
	deliver := func() {
		for len(network) > 0 {
			p := network[0]
			network = network[1:]
			step(p.to, p.Received)
		}
	}

	step("a", voters.Bootstrap{Expect: 1})
	step("a", voters.Tick{Now: 0})
	step("a", voters.PeerSeen{Name: "b", Incarnation: b.Incarnation})
	deliver()

	step("a", voters.Propose{ID: 1, Op: voters.Add, Name: "b", Until: 10_000})
	fmt.Println("a waits for", machines["a"].Status().Waits)
	step("b", voters.CaughtUp{Name: "b", Incarnation: b.Incarnation, Hash: machines["b"].Hash(), With: []voters.Voter{a}})
	for now := int64(100); now < 1000; now += 100 {
		step("a", voters.Tick{Now: now})
		deliver()
	}

	// An acknowledgement of b counts under the hash that both have adopted.
	m := machines["a"]
	acked := map[string]bool{"a": true, "b": m.Counts("b", b.Incarnation, machines["b"].Hash())}
	fmt.Println("quorum:", m.Config().Quorum(func(v voters.Voter) bool { return acked[v.Name] }))
	// Output:
	// a adopts 1: a
	// b adopts 1: a
	// a waits for [b: the node to catch up with 1 voters, it has with 0]
	// a adopts 2: a, b
	// a answers 1 <nil>
	// b adopts 2: a, b
	// quorum: true
}
