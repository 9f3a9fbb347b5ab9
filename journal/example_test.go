package journal_test

import (
	"context"
	"fmt"
	"os"

	"github.com/revokd/revokd/journal"
)

func Example() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	for range 2 { // the second time it is read
		j, err := journal.Open(journal.Config{Dir: dir, RecordSize: 4})
		if err != nil {
			panic(err)
		}
		stats, err := j.Replay(context.Background(), func(records []byte) error {
			fmt.Printf("%q\n", records)
			return nil
		}, nil)
		if err != nil {
			panic(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- j.Run(ctx) }()
		if stats.Records == 0 {
			if err := j.Append(ctx, &journal.Batch{Records: []byte("oneatwob")}); err != nil {
				panic(err) // nothing is acknowledged
			}
		}
		cancel()
		if err := <-done; err != nil {
			panic(err)
		}
		if err := j.Close(); err != nil {
			panic(err)
		}
	}
	// Output: "oneatwob"
}
