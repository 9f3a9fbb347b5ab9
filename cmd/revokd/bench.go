package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Bounds of a load: it is a look at a node, not a weapon.
const (
	maxBenchTime    = time.Minute
	maxBenchWorkers = 64
	benchIssuer     = "https://bench.revokd.invalid"
	benchLifetime   = time.Minute // of what it revokes
	maxSamples      = 1 << 20     // of a worker; the calls beyond are made and not in the quantiles
)

// benchResult is what one kind of call did.
type benchResult struct {
	Calls     int     `json:"calls"`
	Errors    int     `json:"errors"`
	PerSecond float64 `json:"per_second"`
	P50       int64   `json:"p50_us"`
	P99       int64   `json:"p99_us"`
	Max       int64   `json:"max_us"`
}

func (c *cli) benchCommand() *cobra.Command {
	length := duration{d: 5 * time.Second, set: true}
	var workers int
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Put a small load on a node and measure its answers",
		Long: `Check and revoke made-up token ids one at a time for a few seconds, first checks and then revocations, and print how many were answered
and how fast, the network included. Each revocation is forgotten after a minute and the slack; they name the issuer
` + benchIssuer + `, so that no real token is concerned. It ends early at the first error that another call would meet too.`,
		Example: `  revokd bench
  revokd bench --time 10s --workers 32 --output json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case length.d <= 0 || length.d > maxBenchTime:
				return usagef("--time: out of range: above 0 and at most %s", maxBenchTime)
			case workers < 1 || workers > maxBenchWorkers:
				return usagef("--workers: out of range: 1 to %d", maxBenchWorkers)
			}
			svc, err := c.service()
			if err != nil {
				return err
			}
			var out struct {
				Workers int         `json:"workers"`
				Check   benchResult `json:"check"`
				Revoke  benchResult `json:"revoke"`
			}
			out.Workers = workers
			if out.Check, err = c.load(cmd.Context(), length.d, workers, func(ctx context.Context, id string) error { return benchCheck(ctx, c, svc, id) }); err != nil {
				return err
			}
			if out.Revoke, err = c.load(cmd.Context(), length.d, workers, func(ctx context.Context, id string) error { return benchRevoke(ctx, c, svc, id) }); err != nil {
				return err
			}
			if c.output == "json" {
				return c.printJSON(out)
			}
			return c.write([]byte(benchText("check", out.Check) + benchText("revoke", out.Revoke)))
		},
	}
	cmd.Flags().Var(&length, "time", "how long for each kind of call, at most 1m")
	cmd.Flags().IntVar(&workers, "workers", 8, "calls at once, at most 64")
	c.clientFlags(cmd)
	return cmd
}

func benchText(name string, r benchResult) string {
	return fmt.Sprintf("%-7s %d calls, %d errors, %.0f/s, p50 %d us, p99 %d us, max %d us\n", name, r.Calls, r.Errors, r.PerSecond, r.P50, r.P99, r.Max)
}

func benchCheck(ctx context.Context, c *cli, svc revokdv1connect.RevocationServiceClient, id string) error {
	now := time.Now().Unix()
	payload := fmt.Appendf(nil, `{"iss":%q,"jti":%q,"iat":%d,"exp":%d}`, benchIssuer, id, now, now+60)
	_, err := call(ctx, c, svc.Check, &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: payload}})
	return err
}

func benchRevoke(ctx context.Context, c *cli, svc revokdv1connect.RevocationServiceClient, id string) error {
	_, err := call(ctx, c, svc.Revoke, &revokdv1.RevokeRequest{
		Target:    &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": benchIssuer, "jti": id}}},
		ExpiresAt: timestamppb.New(time.Now().Add(benchLifetime)), Comment: "revokd bench",
	})
	return err
}

// load makes calls from workers until the time is over. The first error ends it, unless calls before it succeeded: then it
// counts, and a hundred in a row end it.
func (c *cli) load(ctx context.Context, length time.Duration, workers int, fn func(ctx context.Context, id string) error) (r benchResult, err error) {
	var run [8]byte
	if _, err := io.ReadFull(rand.Reader, run[:]); err != nil {
		return r, err
	}
	var mu sync.Mutex // guards r, err and samples
	var samples []time.Duration
	var wg sync.WaitGroup
	began := time.Now()
	for worker := range workers {
		wg.Go(func() {
			var mine []time.Duration
			calls, failed, inRow := 0, 0, 0
			var last error
			for i := 0; ctx.Err() == nil && time.Since(began) < length && inRow < 100 && (last == nil || calls > 0); i++ {
				start := time.Now()
				if e := fn(ctx, fmt.Sprintf("%s-%d-%d", hex.EncodeToString(run[:]), worker, i)); e != nil {
					last = e
					failed++
					inRow++
					continue
				}
				calls++
				inRow = 0
				if len(mine) < maxSamples {
					mine = append(mine, time.Since(start))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			r.Calls += calls
			r.Errors += failed
			samples = append(samples, mine...)
			if calls == 0 || inRow == 100 {
				err = last
			}
		})
	}
	wg.Wait()
	switch {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case err != nil:
		return r, err
	}
	slices.Sort(samples)
	if n := len(samples); n > 0 {
		r.P50, r.P99, r.Max = samples[n/2].Microseconds(), samples[n*99/100].Microseconds(), samples[n-1].Microseconds()
	}
	r.PerSecond = float64(r.Calls) / time.Since(began).Seconds()
	return r, nil
}
