package replication

import (
	"testing"
)

// What a node may have counts what there is of it, not what there has been.
func TestRegistryCounts(t *testing.T) {
	r := newRegistry()
	var kept []*origin
	for i := range 100 {
		kept = append(kept, r.add(Origin{ID: OriginID(10 + i), Node: string(rune('a' + i%3))}))
	}
	for i, o := range kept {
		if i%3 == 0 || i%2 == 0 {
			r.drop(o)
		}
	}
	want := make(map[string]int)
	for _, o := range r.byID {
		want[o.Node]++
	}
	if len(r.of) != len(want) {
		t.Errorf("%d nodes are counted, there are origins of %d", len(r.of), len(want))
	}
	for node, n := range want {
		if r.of[node] != n {
			t.Errorf("%s: counted %d, has %d", node, r.of[node], n)
		}
	}
	if o := r.add(Origin{ID: 5000, Node: "a"}); o.Index > uint32(len(kept)) || r.of["a"] != 1 {
		t.Errorf("index %d, %d of a", o.Index, r.of["a"])
	}
}
