package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// histogram holds nanoseconds up to a minute, within 0.1 %.
func histogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(time.Minute), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(1, int64(d)), h.HighestTrackableValue())) // cannot be out of range
}

// A question is asked by its number; numbers that follow each other are different keys. It reports whether the answer was right.
type question func(i int) bool

// clockCost is the median of what reading the clock twice takes: it is taken off single calls, for all alike.
var clockCost = sync.OnceValue(func() int64 {
	h := histogram()
	for range 100_000 {
		began := time.Now()
		record(h, time.Since(began))
	}
	return h.ValueAtQuantile(50)
})

// single measures one call after the other, each with the clock. touch reads what is asked for, as the service has just done that has parsed the token; may
// be nil.
func single(d time.Duration, ask question, touch func(i int), first int, h *hdrhistogram.Histogram) (next int, err error) {
	cost := time.Duration(clockCost())
	i := first
	for end := time.Now().Add(d); ; {
		for range 16 {
			if touch != nil {
				touch(i)
			}
			began := time.Now()
			ok := ask(i)
			took := time.Since(began)
			if !ok {
				return i, fmt.Errorf("a wrong answer to question %d", i)
			}
			record(h, took-cost)
			i++
		}
		if time.Now().After(end) {
			return i, nil
		}
	}
}

// backToBack returns how many calls a second goroutines make that do nothing else.
func backToBack(d time.Duration, goroutines int, ask func(worker int) question, first int) (perSecond float64, err error) {
	var total atomic.Int64
	var wrong atomic.Bool
	var wg sync.WaitGroup
	began := time.Now()
	for w := range goroutines {
		wg.Go(func() {
			q := ask(w)
			i := first + w*7919
			n := 0
			for time.Since(began) < d {
				for range 32 {
					if !q(i) {
						wrong.Store(true)
						return
					}
					i++
				}
				n += 32
			}
			total.Add(int64(n))
		})
	}
	wg.Wait()
	if wrong.Load() {
		return 0, fmt.Errorf("a wrong answer")
	}
	return float64(total.Load()) / time.Since(began).Seconds(), nil
}

// openLoop is what an open loop has measured.
type openLoop struct {
	latency *hdrhistogram.Histogram // from when a call was due
	reached float64                 // calls a second
	failed  int64
	err     error // one of them
}

// runOpen makes calls when they are due, whether earlier ones have been answered or not, as far as so many workers allow; a call that
// begins late counts from when it was due, so that a stall is seen by all the calls that it delays.
func runOpen(rate float64, d time.Duration, workers int, call func(worker, i int, due time.Time) error) openLoop {
	count := int64(rate * d.Seconds())
	var next atomic.Int64
	var mu sync.Mutex // guards o
	o := openLoop{latency: histogram()}
	var wg sync.WaitGroup
	began := time.Now().Add(time.Millisecond)
	for w := range workers {
		wg.Go(func() {
			h := histogram()
			var failed int64
			var last error
			for {
				i := next.Add(1) - 1
				if i >= count {
					break
				}
				due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
				if wait := time.Until(due); wait > 0 {
					time.Sleep(wait)
				}
				if err := call(w, int(i), due); err != nil {
					failed++
					last = err
					continue
				}
				record(h, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			o.latency.Merge(h)
			o.failed += failed
			if last != nil {
				o.err = last
			}
		})
	}
	wg.Wait()
	o.reached = float64(o.latency.TotalCount()) / time.Since(began).Seconds()
	return o
}

// closedLoop lets workers make calls as fast as they are answered: it finds the rate that is possible, and the latency at that rate
// and with so many at once.
func closedLoop(d time.Duration, workers int, call func(worker, i int) error) openLoop {
	var mu sync.Mutex // guards o
	o := openLoop{latency: histogram()}
	var wg sync.WaitGroup
	began := time.Now()
	for w := range workers {
		wg.Go(func() {
			h := histogram()
			var failed int64
			var last error
			for i := 0; time.Since(began) < d && failed < 100; i++ {
				at := time.Now()
				if err := call(w, i); err != nil {
					failed++
					last = err
					continue
				}
				record(h, time.Since(at))
			}
			mu.Lock()
			defer mu.Unlock()
			o.latency.Merge(h)
			o.failed += failed
			if last != nil {
				o.err = last
			}
		})
	}
	wg.Wait()
	o.reached = float64(o.latency.TotalCount()) / time.Since(began).Seconds()
	return o
}

// quantiles adds those of a repetition.
func (r *Result) quantiles(table, subject, unit string, h *hdrhistogram.Histogram, params map[string]float64) {
	for _, q := range []float64{50, 90, 99, 99.9} {
		r.add(table, subject, "p"+strconv.FormatFloat(q, 'f', -1, 64), unit, in(unit, h.ValueAtQuantile(q)), params)
	}
}

// in gives nanoseconds in a unit.
func in(unit string, ns int64) float64 {
	switch unit {
	case "us":
		return float64(ns) / 1e3
	case "ms":
		return float64(ns) / 1e6
	case "s":
		return float64(ns) / 1e9
	}
	return float64(ns)
}

// curve adds a distribution.
func (r *Result) curve(table, subject, unit string, h *hdrhistogram.Histogram) {
	if h.TotalCount() == 0 {
		return
	}
	c := Curve{Table: table, Subject: subject, Unit: unit}
	for _, q := range []float64{0.1, 1, 2, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 99.3, 99.6, 99.8, 99.9, 99.95, 99.99} {
		c.Values = append(c.Values, in(unit, h.ValueAtQuantile(q)))
		c.Shares = append(c.Shares, q/100)
	}
	r.Curves = append(r.Curves, c)
}

// allocations of a call, on the average.
func allocations(ask question) float64 {
	const calls = 2000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range calls {
		ask(i)
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / calls)
}

// residentSet of a process in bytes; 0 if it is not there.
func residentSet(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(b)
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// cpuTime that processes have used; on a busy machine it says more than the time on the wall.
func cpuTime(pids ...int) (used time.Duration) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		for _, text := range fields[11:13] { // ticks in user and in system mode, a hundredth of a second each
			ticks, err := strconv.Atoi(string(text))
			if err == nil {
				used += time.Duration(ticks) * 10 * time.Millisecond
			}
		}
	}
	return used
}

func size(n int) string {
	switch {
	case n >= 1_000_000 && n%1_000_000 == 0:
		return fmt.Sprintf("%d M", n/1_000_000)
	case n >= 1000 && n%1000 == 0:
		return fmt.Sprintf("%d k", n/1000)
	}
	return strconv.Itoa(n)
}
