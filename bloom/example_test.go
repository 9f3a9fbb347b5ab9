package bloom_test

import (
	"bytes"
	"fmt"

	"github.com/revokd/revokd/bloom"
)

func ExampleFilter() {
	f, err := bloom.New(1000, 0.001)
	if err != nil {
		panic(err)
	}
	f.SetLabel(0xc0ffee, 1795521600000)
	f.Add(0x0123456789abcdef, 0xfedcba9876543210)

	var sent bytes.Buffer
	if _, err := f.WriteTo(&sent); err != nil {
		panic(err)
	}
	got, err := bloom.ReadFrom(&sent, 1<<20)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%d key, made under %x\n", got.Meta().Count, got.Meta().KeyID)
	fmt.Println(got.Has(0x0123456789abcdef, 0xfedcba9876543210), "is maybe")
	fmt.Println(got.Has(0x0123456789abcdef, 0), "is certainly not")
	// Output:
	// 1 key, made under c0ffee
	// true is maybe
	// false is certainly not
}
