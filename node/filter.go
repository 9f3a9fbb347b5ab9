package node

import (
	"context"
	"sync"
	"time"

	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/revocation"
)

const (
	// filterAge is how long a filter is given to whoever asks. Making one reads the whole table: at most a part of filterPause of the time goes
	// into it, whatever is asked for.
	filterAge   = 30 * time.Second
	filterPause = 10
	// filterBehind is how many records may have come since, besides one in filterShare.
	filterBehind = 1 << 16
	filterShare  = 16
)

// filters makes filters of the table, one at a time and for everybody who waits.
type filters struct {
	mu   sync.Mutex
	made *view.Filtered
	at   time.Duration // when it was begun
	took time.Duration
	// busy is closed when the filter that is being made is done.
	busy chan struct{}
}

// Filter returns a filter of all live records with what a client replica needs to follow on from there, one that was made within maxAge if that does not make
// too much work; 0 is half a minute. It is shared, and not to be changed. Errors match [ErrNotReady], or are those of ctx.
func (n *Node) Filter(ctx context.Context, maxAge time.Duration) (*view.Filtered, error) {
	if maxAge <= 0 || maxAge > filterAge {
		maxAge = filterAge
	}
	for {
		if !n.complete.Load() {
			return nil, ErrNotReady
		}
		origins, vector := n.replica.vector()
		now := n.cfg.Clock.Mono()
		f := &n.filters
		f.mu.Lock()
		if f.made != nil && (now-f.at < filterPause*f.took || now-f.at < maxAge && !behind(f.made, origins, vector)) {
			made := f.made
			f.mu.Unlock()
			return made, nil
		}
		if busy := f.busy; busy != nil {
			f.mu.Unlock()
			select {
			case <-busy: // its maker may have gone away
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		f.busy = make(chan struct{})
		f.mu.Unlock()
		made, err := view.Filter(ctx, n.table, uint64(n.cfg.Key.ID()), origins, vector, n.Now())
		f.mu.Lock()
		if err == nil {
			f.made, f.at, f.took = made, now, n.cfg.Clock.Mono()-now
		}
		close(f.busy)
		f.busy = nil
		f.mu.Unlock()
		return made, err
	}
}

// sweep forgets a filter that nobody would be given.
func (f *filters) sweep(now time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now-f.at >= filterAge {
		f.made = nil
	}
}

// behind reports whether many records have come since a filter was made.
func behind(f *view.Filtered, origins []replication.Origin, vector []replication.VectorEntry) bool {
	has := make(map[replication.OriginID]uint64, len(f.Origins))
	for _, o := range f.Origins {
		has[o.ID] = o.Number
	}
	ids := make(map[uint32]replication.OriginID, len(origins))
	for _, o := range origins {
		ids[o.Index] = o.ID
	}
	news := uint64(0)
	for _, v := range vector {
		news += v.Number - min(v.Number, has[ids[v.Index]])
	}
	return news > filterBehind+f.Filter.Meta().Count/filterShare
}

// vector returns what is held, and the origins in it.
func (r *replica) vector() ([]replication.Origin, []replication.VectorEntry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core == nil {
		return nil, nil
	}
	return r.core.Origins(), r.core.Vector()
}

// Lookup returns the records held under fingerprints, and how old the view of a majority of the voters, and of all of them, was before. The error
// matches [ErrNotReady].
func (n *Node) Lookup(list []revocation.Fingerprint) (records []revocation.Record, quorum, all time.Duration, err error) {
	if !n.complete.Load() {
		return nil, 0, 0, ErrNotReady
	}
	if f := n.fresh.Load(); f != nil {
		now := n.elapsed.Mono()
		quorum, all = f.Age(now, false), f.Age(now, true)
	}
	now := n.Now()
	for _, f := range list {
		if r, ok := n.table.Get(f, now); ok {
			records = append(records, r)
		}
	}
	return records, quorum, all, nil
}

// KeyID returns the name of the fingerprint key.
func (n *Node) KeyID() revocation.KeyID { return n.cfg.Key.ID() }
