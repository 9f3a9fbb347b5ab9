package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// Keys of the journal's metadata.
const (
	metaShape  = "shape/"  // + id: the definition
	metaOrigin = "origin/" // + index: epoch, 8 bytes
	metaTime   = "time"    // guarded time, Unix milliseconds, 8 bytes: see clock.GuardConfig.HighWater
	metaPolicy = "policy"  // the policy in force, JSON: see revocation.Policy.Succeed
)

func (n *Node) openJournal() error {
	j, err := journal.Open(journal.Config{
		Dir: n.cfg.Dir, FS: n.cfg.FS, Logger: n.cfg.Logger.Named("journal"), RecordSize: entrySize, KeyID: uint64(n.cfg.Key.ID()),
		Deadline: n.deadline, Assign: n.assign, Committed: n.committed,
	})
	if err != nil {
		return err
	}
	n.journal = j
	n.onDisk = onDisk{shapes: make(map[revocation.ShapeID]bool), origins: make(map[uint32]bool)}
	n.commits = (*disk)(n)
	return nil
}

// deadline tells the journal until which second a record must be kept. What it cannot read it keeps.
func (n *Node) deadline(b []byte) int64 {
	r, _, err := parseEntry(b)
	if err != nil {
		return 1<<63 - 1
	}
	return int64(r.ExpiresAt) + int64(n.cfg.Slack/time.Second)
}

// disk commits through the journal.
type disk Node

func (d *disk) commit(ctx context.Context, w *writing) error {
	b := &journal.Batch{Records: make([]byte, 0, len(w.entries)*entrySize), User: w}
	for _, e := range w.entries {
		var err error
		if b.Records, err = appendEntry(b.Records, e); err != nil {
			(*Node)(d).merged(w, err)
			return err
		}
	}
	err := d.journal.Append(ctx, b)
	if err != nil && !b.Taken() {
		(*Node)(d).merged(w, err)
	}
	switch {
	case errors.Is(err, journal.ErrBusy):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	case errors.Is(err, journal.ErrClosed):
		return fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return err
}

// onDisk is what the journal's metadata holds, or is about to hold. It belongs to the goroutine that commits.
type onDisk struct {
	shapes  map[revocation.ShapeID]bool
	origins map[uint32]bool // false: no record has a number of it, so that it may go
	policy  []byte
}

// housekeeping is a batch that states the time and the policy, and forgets shapes and origins without records.
type housekeeping struct{ policy []byte }

// assign is called in commit order before a batch is encoded: numbers are given here, so that they follow each
// other on disk, and a batch brings the definitions that the disk does not have.
func (n *Node) assign(b *journal.Batch) {
	switch w := b.User.(type) {
	case *writing:
		if n.origin.epoch == 0 || n.origin.next+uint64(len(w.entries)) > maxNumber {
			n.newOrigin(b)
		}
		n.number(w)
		for i, e := range w.entries {
			binary.BigEndian.PutUint64(b.Records[i*entrySize+revocation.RecordSize:], e.dot)
			n.bring(b, e.shape)
		}
	case *housekeeping:
		live := make(map[revocation.ShapeID]bool)
		for _, s := range n.table.Shapes() {
			live[s.ID()] = true
		}
		for id := range n.onDisk.shapes {
			if !live[id] {
				b.Meta = append(b.Meta, journal.Meta{Key: shapeKey(id)})
				// A writer behind this batch brings the definition again, even if this batch should fail.
				delete(n.onDisk.shapes, id)
			}
		}
		for index, used := range n.onDisk.origins {
			if !used {
				b.Meta = append(b.Meta, journal.Meta{Key: originKey(index)})
				delete(n.onDisk.origins, index)
			}
		}
		b.Meta = append(b.Meta, journal.Meta{Key: metaTime, Value: binary.BigEndian.AppendUint64(nil, uint64(n.Now()))})
		if policy, err := json.Marshal(n.Policy()); err == nil && !bytes.Equal(policy, n.onDisk.policy) {
			b.Meta = append(b.Meta, journal.Meta{Key: metaPolicy, Value: policy})
			w.policy = policy
		}
	}
}

// bring adds the definition of a shape to a batch unless an earlier one has made it durable.
func (n *Node) bring(b *journal.Batch, s revocation.Shape) {
	id := s.ID()
	if n.onDisk.shapes[id] || slices.ContainsFunc(b.Meta, func(m journal.Meta) bool { return m.Key == shapeKey(id) }) {
		return
	}
	def, err := s.AppendBinary(nil)
	if err != nil {
		return // cannot be: the table has validated it
	}
	b.Meta = append(b.Meta, journal.Meta{Key: shapeKey(id), Value: def})
}

func shapeKey(id revocation.ShapeID) string { return metaShape + strconv.FormatUint(uint64(id), 16) }

func originKey(index uint32) string { return metaOrigin + strconv.FormatUint(uint64(index), 10) }

// newOrigin takes an epoch that was never used, and writes it with the first batch that it numbers.
func (n *Node) newOrigin(b *journal.Batch) {
	index := n.origin.index
	for known := true; known; _, known = n.onDisk.origins[index] {
		index = max(1, (index+1)%(1<<(64-dotBits)))
	}
	var epoch [8]byte
	for n.origin = (origin{index: index}); n.origin.epoch == 0; n.origin.epoch = binary.BigEndian.Uint64(epoch[:]) {
		rand.Read(epoch[:])
	}
	b.Meta = append(b.Meta, journal.Meta{Key: originKey(index), Value: epoch[:]})
}

// committed is called in commit order after a batch is durable or has failed.
func (n *Node) committed(b *journal.Batch, err error) {
	switch w := b.User.(type) {
	case *writing:
		if err != nil {
			n.origin.epoch = 0 // a number may be on disk or not: it is never given again
		} else {
			for _, e := range w.entries {
				n.onDisk.shapes[e.shape.ID()] = true
			}
			n.onDisk.origins[n.origin.index] = true
		}
		n.merged(w, err)
	case *housekeeping:
		if err == nil && w.policy != nil {
			n.onDisk.policy = w.policy
		}
	}
}

// start reads the journal into the table.
func (n *Node) start(ctx context.Context) error {
	if n.journal == nil {
		return nil
	}
	began := n.cfg.Clock.Mono()
	n.mu.Lock()
	n.reported = began // a short start says nothing on its way
	n.mu.Unlock()
	meta := sync.OnceValue(n.readMeta) // complete before the first record, and also if there is none
	stats, err := n.journal.Replay(ctx, func(records []byte) error {
		if err := meta(); err != nil {
			return err
		}
		now := n.Now()
		for ; len(records) > 0; records = records[entrySize:] {
			r, dot, err := parseEntry(records[:entrySize])
			if err != nil {
				return fmt.Errorf("a record in the journal: %w", err)
			}
			n.onDisk.origins[uint32(dot>>dotBits)] = true
			if _, err := n.table.Merge(r, dot, now, false); err != nil {
				return fmt.Errorf("read the journal into memory: %w", err)
			}
		}
		return nil
	}, n.progress)
	if err == nil {
		err = meta()
	}
	if err != nil {
		return err
	}
	n.log.Info("journal read", "records", stats.Records, "bytes", stats.Bytes, "cut", stats.Cut, "took", (n.cfg.Clock.Mono() - began).Round(time.Millisecond).String())
	return nil
}

// readMeta takes the definitions of shapes and the last known time from the journal.
func (n *Node) readMeta() error {
	if b, ok := n.journal.Get(metaTime); ok && len(b) == 8 {
		n.setGuard(time.UnixMilli(int64(binary.BigEndian.Uint64(b))))
	}
	if b, ok := n.journal.Get(metaPolicy); ok {
		var earlier revocation.Policy
		if err := json.Unmarshal(b, &earlier); err != nil {
			return fmt.Errorf("the policy in the journal: %w", err)
		}
		if err := earlier.Validate(); err != nil {
			return fmt.Errorf("the policy in the journal: %w", err)
		}
		n.onDisk.policy = b
		p := *n.table.Policy()
		p.Succeed(&earlier, max(n.Now(), n.cfg.Clock.Now().UnixMilli()))
		n.table.SetPolicy(&p)
	}
	for _, key := range n.journal.Keys(metaShape) {
		b, _ := n.journal.Get(key)
		s, err := revocation.ParseShape(b)
		if err == nil {
			_, err = n.table.Define(s, 0, n.Now(), false)
		}
		if err != nil {
			return fmt.Errorf("a shape in the journal: %w", err)
		}
		n.onDisk.shapes[s.ID()] = true
	}
	for _, key := range n.journal.Keys(metaOrigin) {
		index, err := strconv.ParseUint(strings.TrimPrefix(key, metaOrigin), 10, 32)
		if err != nil {
			return fmt.Errorf("an origin in the journal: %w", err)
		}
		n.onDisk.origins[uint32(index)] = false
		n.origin.index = max(n.origin.index, uint32(index))
	}
	return nil
}

// runJournal starts what keeps the journal until ctx ends, and returns when the policy in force is on disk: records
// are kept as long as it says, so the next start must know it.
func (n *Node) runJournal(ctx context.Context, g *errgroup.Group) error {
	if n.journal == nil {
		return nil
	}
	policy, err := json.Marshal(n.Policy())
	if err != nil {
		return fmt.Errorf("encode the policy: %w", err)
	}
	changed := !bytes.Equal(policy, n.onDisk.policy)
	g.Go(func() error { return n.journal.Run(ctx) })
	if changed {
		if err := n.keepHouse(ctx); err != nil {
			return fmt.Errorf("keep the policy: %w", err)
		}
	}
	g.Go(func() error {
		// A failure shows in the state of the journal.
		return n.every(ctx, markEvery, func() { _ = n.keepHouse(ctx) })
	})
	g.Go(func() error {
		return n.every(ctx, expireEvery, func() {
			if err := n.journal.Expire(ctx, n.Now()/1000); err != nil && ctx.Err() == nil {
				n.log.Warn("expired records stay on disk", "error", err)
			}
		})
	})
	return nil
}

func (n *Node) keepHouse(ctx context.Context) error {
	return n.journal.Append(ctx, &journal.Batch{User: new(housekeeping)})
}

// reportEvery is how often the log tells how far the start is.
const reportEvery = 2 * time.Second

func (n *Node) progress(p journal.Progress) {
	n.mu.Lock()
	n.replay = p
	now := n.cfg.Clock.Mono()
	report := now-n.reported >= reportEvery
	if report {
		n.reported = now
	}
	n.mu.Unlock()
	if report {
		n.log.Info("reading the journal", "progress", p.String())
	}
}

// diskError says why writes are refused, nil if they are not.
func (n *Node) diskError() error {
	if n.journal == nil {
		return nil
	}
	return n.journal.Err()
}
