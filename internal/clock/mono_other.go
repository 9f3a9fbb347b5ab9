//go:build !linux

package clock

import "time"

type system struct{}

func (system) Now() time.Time { return time.Now() }

func (system) Mono() time.Duration { return time.Since(started) }

var started = time.Now()
