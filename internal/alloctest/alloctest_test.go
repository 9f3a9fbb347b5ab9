package alloctest

import "testing"

// failures notes that a test would have failed.
type failures struct {
	testing.TB
	n int
}

func (*failures) Helper()                 {}
func (f *failures) Errorf(string, ...any) { f.n++ }

var sink []byte

func TestAtMost(t *testing.T) {
	for _, test := range []struct {
		name  string
		bytes []int // of each call
		want  int
	}{
		{"within", []int{60 << 10}, 0},
		{"beyond", []int{70 << 10, 70 << 10, 70 << 10}, 1},
		{"once, as when something else allocates", []int{70 << 10, 60 << 10}, 0},
	} {
		f, calls := &failures{TB: t}, 0
		AtMost(f, 64<<10, func() {
			sink = make([]byte, test.bytes[min(calls, len(test.bytes)-1)])
			calls++
		})
		if f.n != test.want || calls != len(test.bytes) {
			t.Errorf("%s: %d failures, %d calls", test.name, f.n, calls)
		}
	}
}
