package journal

import (
	"context"
	"fmt"
)

// Meta is a metadata entry. The latest value of a key wins; a nil Value deletes it.
type Meta struct {
	Key   string // 1 to [MaxMetaKey] bytes; the first one is not zero
	Value []byte // at most [MaxMetaValue] bytes
}

// Batch is what becomes durable together: all of it or nothing. From Append until Committed (or the callback of
// AppendAsync) it belongs to the journal.
type Batch struct {
	Records []byte // a whole number of records
	Meta    []Meta
	User    any // for Assign and Committed

	size    int
	taken   bool
	done    func(error)
	control *control
}

// Taken reports whether a call of Append took the batch. Then Committed is called for it, perhaps after Append
// has returned the error of its context; else never.
func (b *Batch) Taken() bool { return b.taken }

// control is a batch of the journal's own.
type control struct {
	files []byte // the new value of keyFiles; nil: none
	apply func() // called with mu held when files is durable
	roll  bool   // begin a new segment
}

func (b *Batch) bytes() int {
	n := len(b.Records)
	for _, m := range b.Meta {
		n += entryHeader + len(m.Key) + len(m.Value)
	}
	return n
}

func (b *Batch) check(recordSize int) error {
	if len(b.Records)%recordSize != 0 {
		return fmt.Errorf("%w: Records has %d bytes, not a multiple of %d", ErrInvalid, len(b.Records), recordSize)
	}
	if n := b.bytes(); n > MaxBatch {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrInvalid, n, MaxBatch)
	}
	for _, m := range b.Meta {
		switch {
		case m.Key == "" || len(m.Key) > MaxMetaKey || isOwn(m.Key):
			return fmt.Errorf("%w: Meta.Key has %d bytes, limit 1 to %d, and does not begin with a zero byte", ErrInvalid, len(m.Key), MaxMetaKey)
		case len(m.Value) > MaxMetaValue:
			return fmt.Errorf("%w: Meta.Value has %d bytes, limit %d", ErrInvalid, len(m.Value), MaxMetaValue)
		}
	}
	return nil
}

// Append writes a batch and returns when it is durable. It does not wait for room in the queue: [ErrBusy] is the
// signal to slow down. [ErrBusy], [ErrInvalid] and [ErrClosed] mean that nothing was written, [ErrFull] and
// [ErrDisk] that the batch is not acknowledged: a later Replay may find it or not. If ctx ends first, Append
// returns its error and the batch is still written. Append may be called concurrently, also before Run.
func (j *Journal) Append(ctx context.Context, b *Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	done := make(chan error, 1)
	if err := j.AppendAsync(b, func(err error) { done <- err }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// AppendAsync queues a batch and returns. Unless it returns an error, done is called once, in commit order after
// Committed, with what Append would have returned; it must not block.
func (j *Journal) AppendAsync(b *Batch, done func(error)) error {
	if err := b.check(j.cfg.RecordSize); err != nil {
		return err
	}
	b.size, b.done = b.bytes(), done
	return j.enqueue(b)
}

// commitControl commits a batch of the journal's own; the queue's bounds are not for it. It takes no context: who
// prepared the files must know what became of them. Run, which must be running, ends only after the answer.
func (j *Journal) commitControl(c *control) error {
	done := make(chan error, 1)
	if err := j.enqueue(&Batch{control: c, size: len(c.files), done: func(err error) { done <- err }}); err != nil {
		return err
	}
	return <-done
}

func (j *Journal) enqueue(b *Batch) error {
	j.mu.Lock()
	switch {
	case j.closed:
		j.mu.Unlock()
		return ErrClosed
	case b.control == nil && (j.waiting >= j.cfg.QueueBatches || j.queued+b.size > j.cfg.QueueBytes):
		j.stats.busy++
		batches, bytes := j.waiting, j.queued
		j.mu.Unlock()
		return fmt.Errorf("%w: %d batches, %d bytes wait", ErrBusy, batches, bytes)
	}
	b.taken = true
	j.queue = append(j.queue, b)
	j.queued += b.size
	j.waiting++
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
	return nil
}

// take removes the batches for the next frame from the queue.
func (j *Journal) take() []*Batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, size := 0, 0
	for n < len(j.queue) && (n == 0 || size+j.queue[n].size <= maxGroupBytes) {
		size += j.queue[n].size
		n++
	}
	group := j.queue[:n:n]
	if n == len(j.queue) {
		j.queue = nil
	} else {
		j.queue = j.queue[n:]
	}
	return group
}

// finish tells everybody what became of a batch.
func (j *Journal) finish(b *Batch, err error) {
	j.mu.Lock()
	j.queued -= b.size
	j.waiting--
	j.mu.Unlock()
	if b.control == nil {
		j.cfg.Committed(b, err)
	}
	b.done(err)
}
