package replication

import "slices"

// Origin describes an origin as the host keeps it on disk.
type Origin struct {
	Index uint32
	ID    OriginID
	Node  string
	// Sealed is the last number that was ever given, 0 while more may come.
	Sealed uint64
	// Expires is the latest deadline of its records, Unix seconds; known, and not 0, once it is sealed and everything of it is held.
	Expires uint32
	// Partial: records of it were lost on this disk, or with an earlier one. Of an earlier run of this node, too, no more is held than the vector says, and what is held above that, and
	// nobody else has, needs another name.
	Partial bool
	// Fenced: an origin of this node under which somebody else has given numbers. Its dots name nothing here.
	Fenced bool
}

// doubtful: what was written under it may be elsewhere, or nowhere.
func (o *Origin) doubtful() bool { return o.Partial || o.Fenced }

// told is what a peer has been told of an origin. An id has one node.
type told struct {
	id      OriginID
	sealed  uint64
	expires uint32
}

type origin struct {
	Origin
	own     bool // of this run of this node
	applied uint64
	durable uint64
	floor   uint64 // the log has everything above it, up to applied
	chunks  []*chunk
	latest  uint32 // latest deadline seen
	audited uint64 // applied + 1 as it was when an audit last began

	behind    bool // is in Replica.behind
	since     Now  // when somebody was first known to have more, or applied last rose
	asked     PeerID
	askedAt   Now
	askedTo   uint64
	refusedAt Now
	refused   bool
	owner     PeerID // of the last session in which its node said that it gives its numbers
	doubt     doubt
}

func (o *origin) told() told { return told{o.ID, o.Sealed, o.expires()} }

// expires is what peers are told: 0 as long as not everything of it is held. Somebody may have said an earlier second than that of a record which is here, and who takes it for gone
// takes none of them.
func (o *origin) expires() uint32 {
	if o.Sealed == 0 || o.applied < o.Sealed || o.Expires == 0 {
		return 0
	}
	return max(o.Expires, o.latest)
}

// registry holds origins by index. Index 0 stays empty.
type registry struct {
	list []*origin
	byID map[OriginID]*origin
	of   map[string]int // how many a node has
	free []uint32
}

func newRegistry() registry {
	return registry{list: make([]*origin, 1), byID: make(map[OriginID]*origin), of: make(map[string]int)}
}

func (r *registry) get(index uint32) *origin {
	if int(index) >= len(r.list) {
		return nil
	}
	return r.list[index]
}

// add registers an origin under an index, or under a free one if index is 0. It returns nil when there are too many.
func (r *registry) add(o Origin) *origin {
	if len(r.byID) >= MaxOrigins {
		return nil
	}
	if o.Index == 0 {
		if n := len(r.free); n > 0 {
			o.Index, r.free = r.free[n-1], r.free[:n-1]
		} else {
			o.Index = uint32(len(r.list))
		}
	}
	for int(o.Index) >= len(r.list) {
		r.list = append(r.list, nil)
	}
	made := &origin{Origin: o}
	r.list[o.Index], r.byID[o.ID] = made, made
	r.of[o.Node]++
	return made
}

func (r *registry) drop(o *origin) {
	r.list[o.Index] = nil
	delete(r.byID, o.ID)
	if r.of[o.Node]--; r.of[o.Node] == 0 {
		delete(r.of, o.Node)
	}
	r.free = append(r.free, o.Index)
}

// grow returns s long enough for index.
func grow[T any](s []T, index uint32) []T {
	if int(index) < len(s) {
		return s
	}
	return growTo(s, int(index)+1)
}

// growTo doubles: origins become known one by one, and append would copy a long slice five times.
func growTo[T any](s []T, n int) []T {
	if n > cap(s) {
		s = slices.Grow(s, max(n, 2*len(s))-len(s))
	}
	return append(s, make([]T, n-len(s))...)
}

// at is s[index], zero beyond the end.
func at[T any](s []T, index uint32) (v T) {
	if int(index) < len(s) {
		v = s[index]
	}
	return v
}
