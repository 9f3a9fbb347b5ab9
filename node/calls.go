package node

import (
	"container/list"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/revokd/revokd/revocation"
)

// callTTL is how long the answer to a call with an idempotency key is kept.
const callTTL = 10 * time.Minute

// maxCalls bounds the results that are kept for idempotency keys: beyond it calls with a key are refused.
// Forgetting one early would let a retry move a cutoff.
const maxCalls = 1 << 18

// maxKey is the length of an idempotency key in bytes.
const maxKey = 64

// calls remembers the answers to calls with an idempotency key. Keys and requests are kept as keyed hashes only.
type calls struct {
	secret [32]byte
	limit  int

	mu    sync.Mutex
	byKey map[[32]byte]*call
	order *list.List // of *call, by expires
	held  int        // results
}

// call is one logical call. Its results are valid once done is closed.
type call struct {
	key      [32]byte
	requests [32]byte
	size     int
	expires  time.Duration // on the monotonic clock
	done     chan struct{}
	results  written
	err      error
	place    *list.Element // in order
}

func newCalls() *calls {
	c := &calls{byKey: make(map[[32]byte]*call), order: list.New(), limit: maxCalls}
	rand.Read(c.secret[:])
	return c
}

func (c *calls) hash(b []byte) (sum [32]byte) {
	h := hmac.New(sha256.New, c.secret[:])
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// do calls fn once for a key; other callers with the key wait for its answer. A call that failed as a whole is
// forgotten, so that a retry writes again. now is monotonic.
func (c *calls) do(ctx context.Context, now time.Duration, key string, requests []revocation.Request, fn func() (written, error)) (written, error) {
	if key == "" {
		return fn()
	}
	if len(key) > maxKey {
		return written{}, &revocation.FieldError{Field: "idempotency_key", Kind: "too_large", ValueKind: "string", Limit: "at most 64 bytes"}
	}
	b, err := json.Marshal(requests)
	if err != nil {
		return written{}, fmt.Errorf("encode requests: %w", err)
	}
	id, sum := c.hash([]byte(key)), c.hash(b)
	for {
		mine, held, err := c.claim(id, sum, len(requests), now)
		if err != nil {
			return written{}, err
		}
		if mine != nil {
			return c.carryOut(mine, fn)
		}
		select {
		case <-held.done:
		case <-ctx.Done():
			return written{}, ctx.Err()
		}
		if held.err == nil {
			return held.results, nil
		}
		// The first call failed, perhaps because its caller went away: this one takes over.
	}
}

// claim returns a new call to carry out, or the one that holds the key.
func (c *calls) claim(id, sum [32]byte, size int, now time.Duration) (mine, held *call, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	if held = c.byKey[id]; held != nil {
		if held.requests != sum {
			return nil, nil, ErrIdempotencyConflict
		}
		return nil, held, nil
	}
	if c.held+size > c.limit {
		return nil, nil, fmt.Errorf("%w: answers for idempotency keys are kept for ten minutes, at most %d", ErrBusy, c.limit)
	}
	mine = &call{key: id, requests: sum, size: size, expires: now + callTTL, done: make(chan struct{})}
	c.byKey[id] = mine
	mine.place = c.order.PushBack(mine)
	c.held += size
	return mine, nil, nil
}

// errInterrupted is what others see of a call whose function did not return.
var errInterrupted = errors.New("the call was interrupted")

func (c *calls) carryOut(mine *call, fn func() (written, error)) (written, error) {
	mine.err = errInterrupted
	defer func() {
		if mine.err != nil {
			c.mu.Lock()
			c.forget(mine)
			c.mu.Unlock()
		}
		close(mine.done)
	}()
	mine.results, mine.err = fn()
	return mine.results, mine.err
}

// forgetKey removes the call that holds a key, so that it can be carried out anew.
func (c *calls) forgetKey(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if held := c.byKey[c.hash([]byte(key))]; key != "" && held != nil {
		c.forget(held)
	}
}

// forget removes a call; mu is held.
func (c *calls) forget(x *call) {
	if c.byKey[x.key] == x {
		delete(c.byKey, x.key)
		c.order.Remove(x.place)
		c.held -= x.size
	}
}

func (c *calls) sweep(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
}

func (c *calls) expire(now time.Duration) {
	for e := c.order.Front(); e != nil && e.Value.(*call).expires < now; e = c.order.Front() {
		c.forget(e.Value.(*call))
	}
}
