package api

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxBuckets bounds how many keys are told apart.
const maxBuckets = 4096

// failuresPerMinute is how many tokens that are not ours an address may show.
const failuresPerMinute = 10

// rates holds a token bucket for each of many keys. A bucket that is full is as good as none and goes when room is needed; if none is, keys that are
// new share one. It may be used concurrently; the zero rates is ready.
type rates[K comparable] struct {
	mu      sync.Mutex
	buckets map[K]*rate.Limiter
	others  *rate.Limiter
}

// take takes n from the bucket of a key, or nothing: then wait is how long until there will be n, if there ever will. The limits of a bucket are those
// of its last use.
func (r *rates[K]) take(key K, perSecond rate.Limit, burst, n int, now time.Time) (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.bucket(key, perSecond, burst, now)
	if b.Limit() != perSecond || b.Burst() != burst {
		b.SetLimitAt(now, perSecond)
		b.SetBurstAt(now, burst)
	}
	if b.AllowN(now, n) {
		return 0, true
	}
	return time.Duration((float64(n) - b.TokensAt(now)) / float64(perSecond) * float64(time.Second)), false
}

func (r *rates[K]) bucket(key K, perSecond rate.Limit, burst int, now time.Time) *rate.Limiter {
	if b := r.buckets[key]; b != nil {
		return b
	}
	if len(r.buckets) >= maxBuckets {
		for k, b := range r.buckets {
			if b.TokensAt(now) >= float64(b.Burst()) {
				delete(r.buckets, k)
			}
		}
	}
	b := rate.NewLimiter(perSecond, burst)
	switch {
	case len(r.buckets) < maxBuckets:
		if r.buckets == nil {
			r.buckets = map[K]*rate.Limiter{}
		}
		r.buckets[key] = b
	case r.others == nil:
		r.others = b
	default:
		return r.others
	}
	return b
}
