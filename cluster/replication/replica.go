package replication

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Intervals that nobody needs to change.
const (
	pullTimeout   = 250 * time.Millisecond // before another peer is asked
	pullFew       = 4096                   // more than that is not asked for soon: it is on its way, and would come twice
	refusedRetry  = time.Second            // after the store has refused a record
	originsEvery  = time.Minute            // how often origins that nothing refers to are looked for
	dropAfter     = 2 * 60 * 60            // seconds behind the latest deadline of an origin's records
	probeTimeout  = 10 * time.Second
	maxProbes     = 8
	maxUnnamed    = 1 << 14
	reissueRetry  = 2 * time.Second
	maxOut        = 384 << 10       // bytes of small frames that wait for a peer
	maxDefined    = 256 << 10       // bytes of origins defined ahead of a vector, in one message
	maxUndefined  = 256             // origins that the answer to a scan defines
	recordsInRun  = 1024            // in one frame
	lookBudget    = 20_000          // records looked at for unnamed ones in one step
	scanBudget    = 100_000         // records looked at for one message of a scan
	scanTimeout   = 5 * time.Second // for a scan to begin
	maxJournaled  = 4096            // records in one write
	maxVoters     = 256
	maxRaises     = 4096 // of the durable vector that wait for the disk
	maxUnknown    = 1024
	maxControls   = 256      // in a message
	scanWindow    = 32_768   // scanned records on their way to a peer
	scanFrame     = 512      // and in a frame
	fillTarget    = 64 << 10 // about how large a message gets
	bootstrapPart = 8
)

// Replica is one replica: see the package comment.
type Replica struct {
	cfg   Config
	store Store
	now   Now
	out   Outputs

	reg     registry
	own     [lanes]*origin      // of this run, by lane; nil before the first record
	failed  map[OriginID]uint32 // indices of origins of this run whose first write failed, and may be on disk all the same
	log     hotLog
	version uint64 // counts vector movements
	changed []uint64
	moved   []uint32
	moves   [1024]uint32 // origins of the last movements, by version

	peers map[PeerID]*peer
	order []*peer // by PeerID, so that a run can be repeated

	behind  []*origin
	token   uint64
	raises  []raise // not durable yet
	unnamed []unnamed
	lost    bool // unnamed overflowed: look for them in the store
	lookAt  Key  // where that has come to
	looking bool
	// renaming: what it holds under names that somebody else uses has no other ones yet, and its vector does not speak of it. It is no voter until then.
	renaming bool

	scan    *scan
	copied  bool // a scan has ended: one in parts brings only what all their servers hold, and what is lacking now may be what one of them has hidden
	serving int

	keys        []byte
	keysVersion uint64 // counts their changes; 0: there are none to tell
	severalKeys bool

	voters  Voters
	votes   bool // this replica is a voter
	views   map[string]time.Duration
	leveled bool
	audit   *audit
	audits  map[string]time.Duration // last one that found no difference, by peer
	served  *sums
	spare   *sums  // of audits that were served
	scratch []byte // records with their dots, within one step
	run     [MaxRun]Key
	auditAt time.Duration

	cloned    bool // noticed in this step
	originsAt time.Duration
	meters    map[string]*meter // by node
	counting  *counting
	countedAt time.Duration
	stats     Stats
}

// raise is a part of the durable vector that waits for the disk.
type raise struct {
	token  uint64
	vector []VectorEntry
}

type unnamed struct {
	record Record
	due    time.Duration
	clone  bool // its name is used by somebody else
}

// peer is the other side of a session.
type peer struct {
	id          PeerID
	name        string
	proved      bool // name comes from the session, not from the peer
	client      bool
	hello       bool        // its hello has arrived
	incarnation Incarnation // of its data directory
	helped      bool        // ours has been sent
	said        bool        // so has our vector
	heard       bool        // its vector has arrived

	refs    []uint32            // of the peer, to indices here; 0: not for us
	unknown map[uint64]OriginID // of a client: refs of origins that are not known here
	applied []uint64            // its vector, by index
	durable []uint64
	cursor  []uint64 // by index: what has been sent
	asked   []bool   // by index: it was asked for records that are not its own
	told    []uint64 // floor + 1 of a Below that was sent
	below   []uint64 // floor + 1 of a Below that came: its log has nothing at or below
	defined []told   // by index
	defs    map[uint64]bool
	pushed  uint64   // to a client: the version up to which origins that moved are in todo
	todo    []uint32 // origins of which there may be more for it

	names    []byte // what origins are, for what follows in the next message: the vector too
	out      []byte // small frames that wait
	pulls    []pull
	woken    bool
	answers  []uint64 // probes that are answered behind the next vector
	controls int      // in out
	due      bool     // the rest of a vector, or one that does not wait for its time
	vectorAt time.Duration
	version  uint64 // of the vector that it was sent

	// Under which voters it acknowledges and answers, and what it was told of ours.
	hash, toldHash   uint64
	votes, toldVotes bool

	toldKeys  uint64 // version of ours that it was sent
	knowsKeys bool   // it understands them

	probes []probe
	viewed time.Duration // as of then everything that it held is here
	// What it held under the voters of a hash, until all of it is durable here; then caught is the hash. A hash of 0 is none.
	level     []uint64
	levelHash uint64
	caught    uint64
	probeID   uint64
	answered  uint64 // the last probe
	probeAt   time.Duration
	overflows bool          // it has named more origins of a node than may be known here
	auditAt   time.Duration // when it was last asked for one
	sample    sample

	scan      *serving // what we send it
	part      *part    // what it sends us
	scanSent  uint64
	scanTaken uint64
	gotScan   uint64
	saidScan  uint64
	busyUntil time.Duration
	scanAt    time.Duration // when it was last asked for a part

	rtt    time.Duration
	offset int64 // of its wall clock, milliseconds
	// Its guarded time, Unix milliseconds, and when it said so.
	guarded   int64
	guardedAt time.Duration
	timed     bool
	records   uint64 // that it holds
	counted   bool   // it has said so
	lag       Lag
}

type pull struct {
	index    uint32
	next, to uint64
}

// New returns a replica with the origins and vector that an earlier run left on disk. Errors are those of the configuration.
func New(cfg Config, store Store, origins []Origin, vector []VectorEntry) (*Replica, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Replica{
		cfg: cfg, store: store, reg: newRegistry(), peers: make(map[PeerID]*peer), views: make(map[string]time.Duration),
		failed: make(map[OriginID]uint32), audits: make(map[string]time.Duration), meters: make(map[string]*meter), log: hotLog{limit: cfg.LogBytes}, looking: !cfg.Client,
	}
	for _, o := range origins {
		if o.Index == 0 || o.Index >= 1<<24 || o.ID == 0 || r.reg.byID[o.ID] != nil || r.reg.get(o.Index) != nil {
			return nil, errors.New("replication: an origin stands twice or has no index")
		}
		if r.reg.add(o) == nil {
			return nil, fmt.Errorf("replication: more than %d origins", MaxOrigins)
		}
	}
	for i := 1; i < len(r.reg.list); i++ {
		if r.reg.list[i] == nil {
			r.reg.free = append(r.reg.free, uint32(i))
		}
	}
	for _, o := range r.reg.list {
		if o != nil && o.Node == cfg.Name && o.Sealed == 0 && !o.doubtful() && !cfg.Client {
			o.Sealed = 1 // an earlier run: nothing will follow
		}
	}
	if !cfg.Client {
		r.recount()
		r.renaming = slices.ContainsFunc(origins, func(o Origin) bool { return o.Fenced })
	}
	for _, v := range vector {
		if o := r.reg.get(v.Index); o != nil {
			o.applied, o.durable, o.floor = v.Number, v.Number, v.Number
			if o.Node == cfg.Name && !cfg.Client {
				o.Sealed = max(o.Sealed, v.Number)
			}
			r.move(o)
		}
	}
	return r, nil
}

// NewOrigin registers an origin of this run for a lane, in place of the one before, which is sealed. The host makes it durable no later
// than the first record with a number of it. The one before is dropped if none of its records was written. Its index does not come again: a write that failed may be
// on disk all the same, and the next start would take its records for others'.
func (r *Replica) NewOrigin(id OriginID) (index uint32, err error) {
	if _, failed := r.failed[id]; failed || r.reg.byID[id] != nil || id < lanes {
		return 0, errors.New("replication: the origin exists")
	}
	before := r.own[id.Lane()]
	if before != nil && before.applied == 0 {
		r.reg.drop(before)
		if !r.without("reuse-index") {
			r.reg.free = r.reg.free[:len(r.reg.free)-1]
		}
		if len(r.failed) < MaxOrigins { // a clone with as many failures behind it would have to have the name of a later one
			r.failed[before.ID] = before.Index
		}
		before = nil
	}
	o := r.reg.add(Origin{ID: id, Node: r.cfg.Name})
	if o == nil {
		return 0, fmt.Errorf("replication: more than %d origins", MaxOrigins)
	}
	o.own = true
	if before != nil {
		before.own, before.Sealed = false, before.applied
	}
	r.own[id.Lane()] = o
	return o.Index, nil
}

// Seen tells the latest deadline of an origin's records that were on disk: after it, and a while, the origin is forgotten. It is for between
// New and the first step.
func (r *Replica) Seen(index uint32, second uint32) {
	if o := r.reg.get(index); o != nil {
		o.latest = max(o.latest, second)
	}
}

// Step takes an event and returns what it asks for; the result is valid until the next step. now.Mono must not go back.
func (r *Replica) Step(now Now, e Event) *Outputs {
	r.out.reset()
	r.now = now
	switch e := e.(type) {
	case Connected:
		r.connect(e)
	case Disconnected:
		r.disconnect(e.Peer)
	case Received:
		if p := r.peers[e.Peer]; p != nil {
			if err := r.receive(p, e.Message); err != nil {
				r.out.Close = append(r.out.Close, Closing{p.id, err})
				r.disconnect(p.id)
			}
		}
	case Written:
		r.written(e)
	case Journaled:
		r.journaled(e.Token)
	case SetVoters:
		r.setVoters(e.Voters, e.Self)
	case SetKeys:
		r.setKeys(e)
	case SendControl:
		if p := r.peers[e.Peer]; p != nil && p.waiting()+len(e.Message) < maxOut && len(e.Message) <= maxControl && p.controls < maxControls {
			p.controls++
			w := writer{b: p.out}
			w.frame(frameControl)
			w.b = append(w.b, e.Message...)
			w.end()
			p.out = w.b
			r.wake(p)
		}
	case Tick:
	}
	if r.cloned {
		r.cloned = false
		r.closeAll(ErrClone)
	}
	r.work()
	r.flush()
	return &r.out
}

func (r *Replica) setKeys(e SetKeys) {
	r.keys, r.severalKeys = e.Keys, e.Several
	r.keysVersion++
	for _, p := range slices.Clone(r.order) {
		switch {
		case p.hello && r.severalKeys && !p.knowsKeys:
			r.out.Close = append(r.out.Close, Closing{p.id, errOneKey})
			r.disconnect(p.id)
		case p.hello:
			r.wake(p)
		}
	}
}

// errOneKey ends sessions with versions that would hold records under other keys and never find them.
var errOneKey = fmt.Errorf("%w: its version knows of one fingerprint key, and there are several", ErrIncompatible)

// without reports whether a rule is left out, in tests.
func (r *Replica) without(name string) bool {
	return faulty && r.cfg.Mutant != nil && r.cfg.Mutant(name)
}

func (r *Replica) wake(p *peer) {
	if !p.woken {
		p.woken = true
		r.out.Wake = append(r.out.Wake, p.id)
	}
}

func (r *Replica) connect(e Connected) {
	if r.peers[e.Peer] != nil {
		return
	}
	p := &peer{id: e.Peer, name: e.Name, proved: e.Name != "", client: e.Client, defs: make(map[uint64]bool), vectorAt: -time.Hour, probeAt: -time.Hour}
	r.peers[p.id] = p
	i, _ := slices.BinarySearchFunc(r.order, p.id, func(p *peer, id PeerID) int { return cmp.Compare(p.id, id) })
	r.order = slices.Insert(r.order, i, p)
	r.wake(p)
}

func (r *Replica) disconnect(id PeerID) {
	p := r.peers[id]
	if p == nil {
		return
	}
	delete(r.peers, id)
	r.order = slices.DeleteFunc(r.order, func(q *peer) bool { return q == p })
	if p.scan != nil {
		r.serving--
	}
	if p.part != nil {
		r.release(p.part)
	}
	if r.audit != nil && r.audit.peer == p {
		r.audit = nil
	}
	if r.served != nil && r.served.peer == p {
		r.endServed()
	}
	for _, o := range r.reg.list {
		if o != nil && o.asked == id {
			o.asked = 0
		}
	}
	r.out.Views = true
}

// move notes that an origin's vector has changed.
func (r *Replica) move(o *origin) {
	r.version++
	r.changed = grow(r.changed, o.Index)
	r.changed[o.Index] = r.version
	r.moves[r.version%uint64(len(r.moves))] = o.Index
}

// movedSince returns the indices of the origins that have moved since a version, in order, in a slice that is used again.
func (r *Replica) movedSince(version uint64) []uint32 {
	list := r.moved[:0]
	if r.version-version < uint64(len(r.moves)) {
		for v := version + 1; v <= r.version; v++ {
			if index := r.moves[v%uint64(len(r.moves))]; at(r.changed, index) == v && r.reg.get(index) != nil {
				list = append(list, index)
			}
		}
		slices.Sort(list)
	} else {
		for i, o := range r.reg.list {
			if o != nil && at(r.changed, o.Index) > version {
				list = append(list, uint32(i))
			}
		}
	}
	r.moved = list
	return list
}

// written takes in what this node has written.
func (r *Replica) written(e Written) {
	o := r.reg.get(e.Index)
	if o != nil && o.Fenced {
		for i := range e.Records { // they were on their way when the clone was noticed
			r.addUnnamed(&e.Records[i])
		}
		return
	}
	if o == nil || o.Node != r.cfg.Name || e.First != o.applied+1 {
		panic("replication: Written does not continue an origin of this node") // a bug of the host
	}
	for i := range e.Records {
		r.log.append(o, e.First+uint64(i), e.Records[i][:])
		o.latest = max(o.latest, r.cfg.Deadline(&e.Records[i]))
	}
	o.applied += uint64(len(e.Records))
	o.durable = o.applied
	r.meter(o.Node).held += len(e.Records)
	r.move(o)
	r.out.Acks = true
	for i := range e.Unnamed {
		r.addUnnamed(&e.Unnamed[i])
	}
	for _, p := range r.order {
		r.wake(p)
		if p.sample.number == 0 && !p.client {
			p.sample = sample{o.Index, o.applied, r.now.Mono}
		}
	}
}

func (r *Replica) addUnnamed(rec *Record) {
	if len(r.unnamed) >= maxUnnamed {
		r.lost = true
		return
	}
	jitter := time.Duration(r.cfg.Random() % uint64(3*r.cfg.ReissueAfter))
	r.unnamed = append(r.unnamed, unnamed{*rec, r.now.Mono + r.cfg.ReissueAfter + jitter, r.renaming})
}

// journaled raises the durable vector.
func (r *Replica) journaled(token uint64) {
	n := 0
	for n < len(r.raises) && r.raises[n].token <= token { // in the order of tokens
		r.raiseDurable(r.raises[n].vector)
		n++
	}
	r.raises = append(r.raises[:0], r.raises[n:]...)
}

func (r *Replica) raiseDurable(vector []VectorEntry) {
	for _, v := range vector {
		if o := r.reg.get(v.Index); o != nil && v.Number > o.durable {
			o.durable = v.Number
			r.move(o)
			r.out.Acks = true
		}
	}
}

// keep hands records to the journal, at the end of the step; the durable vector rises to vector when they, and all before, are durable, and the
// vector with them: what was said to be durable must still be claimed after a crash, or a view that names this replica would lack it.
func (r *Replica) keep(records []Record, dots []Dot, vector ...VectorEntry) {
	switch {
	case r.cfg.Client:
		r.out.Changed = append(r.out.Changed, records...)
		r.raiseDurable(vector)
		return
	case len(records)+len(vector) == 0:
		return
	case len(records) == 0 && len(r.raises) == 0 && r.without("vector-not-journaled"), r.without("durable-early"):
		r.raiseDurable(vector)
		if len(records) == 0 {
			return
		}
	}
	n := len(r.out.Journal)
	if n == 0 || len(r.out.Journal[n-1].Records)+len(records) > maxJournaled {
		r.token++
		r.out.Journal = append(r.out.Journal, JournalWrite{Token: r.token})
		n++
	}
	w := &r.out.Journal[n-1]
	if w.Records == nil {
		w.Records, w.Dots = records, dots
	} else {
		w.Records, w.Dots = append(w.Records, records...), append(w.Dots, dots...)
	}
	for _, v := range vector {
		if i := slices.IndexFunc(w.Vector, func(e VectorEntry) bool { return e.Index == v.Index }); i >= 0 && len(vector) == 1 {
			w.Vector[i].Number = max(w.Vector[i].Number, v.Number)
		} else {
			w.Vector = append(w.Vector, v)
		}
	}
}

// flush notes what the journal has been given in this step.
func (r *Replica) flush() {
	for i := range r.out.Journal {
		w := &r.out.Journal[i]
		if len(r.raises) < maxRaises {
			r.raises = append(r.raises, raise{w.Token, slices.Clone(w.Vector)})
			continue
		}
		// The disk has not taken anything for long: the last ones wait for each other.
		last := &r.raises[len(r.raises)-1]
		last.token = w.Token
		for _, v := range w.Vector {
			if i := slices.IndexFunc(last.vector, func(e VectorEntry) bool { return e.Index == v.Index }); i >= 0 {
				last.vector[i].Number = max(last.vector[i].Number, v.Number)
			} else {
				last.vector = append(last.vector, v)
			}
		}
	}
}

// receive takes a message apart.
func (r *Replica) receive(p *peer, message []byte) error {
	if len(message) > maxMessage {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrProtocol, len(message), maxMessage)
	}
	in := reader{b: message}
	for {
		t, f, ok := in.next()
		if !ok {
			return in.err
		}
		if !p.hello && t != frameHello {
			return fmt.Errorf("%w: no hello", ErrProtocol)
		}
		if err := r.frame(p, t, &f); err != nil {
			return err
		}
		if f.err != nil {
			return fmt.Errorf("%w, frame %d", f.err, t)
		}
	}
}

func (r *Replica) frame(p *peer, t frameType, f *reader) error {
	if p.client && t < frameUnknown {
		switch t {
		case frameHello, frameOrigin, frameVector, framePull, frameScan, frameProbe, frameWindow:
		default:
			return fmt.Errorf("%w: frame %d from a client", ErrProtocol, t)
		}
	}
	switch t {
	case frameHello:
		return r.receiveHello(p, f)
	case frameOrigin:
		return r.receiveOrigin(p, f)
	case frameVector:
		return r.receiveVector(p, f)
	case frameRecords:
		return r.receiveRecords(p, f)
	case frameDefine:
		if len(f.b) > maxDefinition {
			return fmt.Errorf("%w: a definition of %d bytes, limit %d", ErrProtocol, len(f.b), maxDefinition)
		}
		if r.metered() && !r.meter(p.name).definitions.take(1, definitionBurst, definitionRate, r.now.Mono) {
			return fmt.Errorf("%w: more than %d definitions at once, or %d a second", ErrQuota, definitionBurst, definitionRate)
		}
		if err := r.store.Define(f.take(len(f.b)), r.now); err != nil {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
	case framePull:
		r.receivePull(p, f)
	case frameBelow:
		r.receiveBelow(p, f)
	case frameScan:
		r.receiveScan(p, f)
	case frameScanBegin:
		r.receiveScanBegin(p, f)
	case frameScanned, frameEarly:
		return r.receiveScanned(p, f, t == frameEarly)
	case frameScanEnd:
		r.receiveScanEnd(p, f)
	case frameWindow:
		p.scanTaken = max(p.scanTaken, f.uint())
		r.wake(p)
	case frameVoters:
		r.receiveVoters(p, f)
	case frameProbe:
		r.receiveProbe(p, f)
	case frameAnswer:
		r.receiveAnswer(p, f)
	case frameControl:
		if len(r.out.Control) == maxControls {
			return fmt.Errorf("%w: more than %d control messages at once", ErrProtocol, maxControls)
		}
		if len(f.b) > maxControl {
			return fmt.Errorf("%w: a control message of %d bytes, limit %d", ErrProtocol, len(f.b), maxControl)
		}
		r.out.Control = append(r.out.Control, Control{p.id, p.name, slices.Clone(f.take(len(f.b)))})
	case frameKeys:
		if b := f.take(int(f.limited(maxKeys))); f.err == nil {
			r.out.Keys = append(r.out.Keys, Keys{p.id, p.name, slices.Clone(b)})
		}
	case frameAudit:
		r.receiveAudit(p, f)
	case frameSums:
		r.receiveSums(p, f)
	case frameLeaf:
		return r.receiveLeaf(p, f)
	case frameAuditEnd:
		r.receiveAuditEnd(p, f)
	default: // of a later version
		f.take(len(f.b))
	}
	return nil
}

func (r *Replica) receiveHello(p *peer, f *reader) error {
	h := f.hello()
	switch {
	case f.err != nil:
		return f.err
	case p.hello:
		return fmt.Errorf("%w: a second hello", ErrProtocol)
	case h.version == 0:
		return fmt.Errorf("%w: protocol version 0", ErrIncompatible)
	case h.keyID != r.cfg.KeyID && !r.without("other-key"):
		return fmt.Errorf("%w: it has fingerprint key %016x, not %016x", ErrIncompatible, h.keyID, r.cfg.KeyID)
	case p.proved && p.name != h.name:
		return fmt.Errorf("%w: it is not who it says", ErrIncompatible)
	case h.name == r.cfg.Name && !h.client && !r.cfg.Client:
		return fmt.Errorf("%w: it has this node's name", ErrIncompatible)
	case p.client && !h.client:
		return fmt.Errorf("%w: a client that says it is a node", ErrIncompatible)
	case r.severalKeys && !h.keys && !r.without("one-key-peers"):
		return errOneKey
	}
	p.knowsKeys = h.keys
	p.hello, p.name, p.client, p.incarnation = true, h.name, h.client, h.incarnation
	r.wake(p)
	return nil
}

func (r *Replica) receiveOrigin(p *peer, f *reader) error {
	ref := f.limited(1<<24 - 1)
	in := Origin{ID: OriginID(f.fixed()), Sealed: f.limited(MaxNumber), Expires: uint32(f.limited(1<<32 - 1))}
	node := f.take(int(f.limited(maxName)))
	live := len(f.b) > 0 && f.flag() && p.name == string(node) && in.Sealed == 0 // an older version does not say it
	if f.err != nil || ref == 0 || in.ID < lanes || len(node) == 0 {
		return fmt.Errorf("%w: origin", ErrProtocol)
	}
	// The peer's refs are its indices: as few as its origins have ever been.
	if ref > 4*MaxOrigins {
		return fmt.Errorf("%w: origin out of range", ErrProtocol)
	}
	p.refs = grow(p.refs, uint32(ref))
	o := r.reg.byID[in.ID]
	if p.client { // it has learned of origins from nodes, and tells nothing new
		switch p.refs[ref] = 0; {
		case o != nil:
			p.refs[ref] = o.Index
		case len(p.unknown) < maxUnknown:
			if p.unknown == nil {
				p.unknown = make(map[uint64]OriginID)
			}
			p.unknown[ref] = in.ID // it may come here later
		}
		return nil
	}
	if o == nil {
		if in.Sealed > 0 && in.Expires > 0 && r.expired(in.Expires) {
			p.refs[ref] = 0 // all of it has expired
			return nil
		}
		in.Node = string(node)
		// Of this node, and not on its disk: that was lost, and what comes of it now comes in any order, so the last number is no vector at a start.
		in.Partial = in.Node == r.cfg.Name && !r.cfg.Client && !r.without("lost-origin-whole")
		if index, failed := r.failed[in.ID]; failed {
			if in.Node != r.cfg.Name {
				return fmt.Errorf("%w: an origin of two nodes", ErrProtocol)
			}
			// A clone of this node has written under it. On disk an origin stands once, and what stands there under its numbers is other content.
			in.Index, in.Fenced = index, true
		}
		if in.Node == r.cfg.Name && r.leveled {
			r.stats.Impostors++ // this node would know it, unless its disk was lost
		}
		if r.reg.of[in.Node] >= nodeOrigins && r.metered() {
			p.refs[ref], p.overflows = 0, true
			r.meter(in.Node).refused++
			return nil
		}
		if o = r.reg.add(in); o == nil {
			return fmt.Errorf("%w: more than %d origins", ErrRefused, MaxOrigins)
		}
		delete(r.failed, in.ID)
		r.out.Origins = append(r.out.Origins, o.Origin)
	} else if o.Node != string(node) {
		return fmt.Errorf("%w: an origin of two nodes", ErrProtocol)
	}
	p.refs[ref] = o.Index
	if live {
		o.owner, o.doubt = p.id, doubt{}
		if o.Sealed > 0 && !o.Fenced { // somebody else has said so
			o.Sealed, o.Expires = 0, 0
			r.out.Origins = append(r.out.Origins, o.Origin)
		}
		return nil
	}
	if p.name == o.Node {
		o.owner = 0
	}
	if (in.Sealed > o.Sealed || in.Expires > o.Expires) && !o.own && r.owner(o) == nil {
		o.Sealed, o.Expires = max(o.Sealed, in.Sealed), max(o.Expires, in.Expires)
		r.out.Origins = append(r.out.Origins, o.Origin)
	}
	return nil
}

// expired reports whether an origin whose records expire at a second can be forgotten.
func (r *Replica) expired(second uint32) bool { return r.now.Guarded/1000 > int64(second)+dropAfter }

func (p *peer) origin(r *Replica, ref uint64) *origin {
	if ref >= uint64(len(p.refs)) {
		return nil
	}
	if p.refs[ref] == 0 && p.unknown[ref] != 0 {
		if o := r.reg.byID[p.unknown[ref]]; o != nil {
			p.refs[ref] = o.Index
			delete(p.unknown, ref)
		}
	}
	return r.reg.get(p.refs[ref])
}

func (r *Replica) receiveVector(p *peer, f *reader) error {
	for range f.count(3) {
		ref, applied, durable := f.uint(), f.limited(MaxNumber), f.limited(MaxNumber)
		o := p.origin(r, ref)
		if o == nil || f.err != nil {
			continue
		}
		p.applied, p.durable = grow(p.applied, o.Index), grow(p.durable, o.Index)
		if applied > p.applied[o.Index] {
			p.applied[o.Index] = applied
			if !p.client {
				r.heard(o, applied)
			} else if applied < o.applied && !slices.Contains(p.todo, o.Index) {
				p.todo = append(p.todo, o.Index) // it may have been below the log
			}
		}
		if durable > p.durable[o.Index] {
			p.durable[o.Index] = durable
			r.out.Acks = r.out.Acks || !p.client // what covers a write may be anybody's
		}
		if o.own && !p.client {
			p.cursor = grow(p.cursor, o.Index)
			p.cursor[o.Index] = max(p.cursor[o.Index], applied)
			r.measure(p, o)
			if applied > o.applied {
				return r.fence(p)
			}
		}
	}
	p.heard = true
	r.wake(p) // the window may have opened
	return nil
}

// fence: a clone of this node gives the same numbers. Whatever this run has written must get other ones.
// Since whoever says so may lie, one peer cannot make it happen all the time.
func (r *Replica) fence(p *peer) error {
	if !r.meter(p.name).fences.take(1, fenceBurst, 1/fenceEvery.Seconds(), r.now.Mono) && !r.without("fence-always") {
		r.stats.Impostors++
		return fmt.Errorf("%w: of this node, again", ErrImpostor)
	}
	r.out.Fence = true
	if r.without("ignore-fence") {
		return nil
	}
	// Which of its numbers mean what they mean elsewhere nobody knows: nothing is claimed until it has been copied like anybody's, and peers forget
	// what was claimed with the sessions. The clone has all origins of this run, and records may be on their way under each.
	for lane, o := range r.own {
		if o != nil {
			o.Fenced, o.own, o.Sealed, o.applied, o.durable = true, false, max(1, o.applied), 0, 0
			r.log.forget(o)
			r.own[lane] = nil
			r.out.Origins = append(r.out.Origins, o.Origin)
		}
	}
	r.looking, r.lookAt, r.renaming = true, Key{}, !r.without("fenced-votes")
	r.cloned = true
	return nil
}

// closeAll ends all sessions.
func (r *Replica) closeAll(err error) {
	for len(r.order) > 0 {
		p := r.order[0]
		r.out.Close = append(r.out.Close, Closing{p.id, err})
		r.disconnect(p.id)
	}
}

// heard notes that a peer holds an origin up to a number.
func (r *Replica) heard(o *origin, number uint64) {
	if number <= o.applied || o.behind {
		return
	}
	o.behind, o.since = true, r.now
	r.behind = append(r.behind, o)
}

// receiveRecords takes a run of an origin's log.
func (r *Replica) receiveRecords(p *peer, f *reader) error {
	o := p.origin(r, f.uint())
	first := f.limited(MaxNumber)
	b := f.take(len(f.b))
	n := uint64(len(b) / RecordSize)
	if f.err != nil || len(b)%RecordSize != 0 || n == 0 || first == 0 || first+n-1 > MaxNumber {
		return fmt.Errorf("%w: records", ErrProtocol)
	}
	if o == nil {
		return nil // all of it has expired
	}
	last := first + n - 1
	p.applied = grow(p.applied, o.Index)
	if last > p.applied[o.Index] {
		p.applied[o.Index] = last // what it sends it holds
	}
	if last <= o.applied {
		r.stats.Duplicates += n
		if r.cfg.Client {
			r.move(o) // its node does not know that it has them
		}
		return nil
	}
	if first <= o.applied {
		b = b[(o.applied+1-first)*RecordSize:]
		r.stats.Duplicates += o.applied + 1 - first
		first = o.applied + 1
	}
	if o.own { // a clone of this node has written
		return r.fence(p)
	}
	if p.name != o.Node && !r.cfg.Client && !r.without("unasked") {
		if !at(p.asked, o.Index) {
			r.stats.Unasked += n
			return nil // only an origin's node sends without being asked
		}
		if claim, _ := r.claim(p, o); last > claim { // see there
			if claim <= o.applied {
				return nil
			}
			b = b[:max(0, int(claim+1)-int(first))*RecordSize]
			if last = claim; len(b) == 0 {
				return nil
			}
		}
	}
	m := r.meter(o.Node)
	if err := r.pace(m, o.Node, len(b)/RecordSize); err != nil {
		r.refuse(o, err)
		return nil
	}
	gap := first > o.applied+1
	var records []Record
	var dots []Dot
	run := b
	direct := p.name == o.Node
	taken := first - 1
	var broken error // ends the session
	for number := first; len(b) > 0; b, number = b[RecordSize:], number+1 {
		rec := (*Record)(b)
		if r.without("skip-record") && number%20 == 19 {
			taken = number
			continue
		}
		if (number-first)%MaxRun == 0 {
			r.ahead(b, RecordSize)
		}
		var did Merged
		err := r.room(m, o.Node, direct)
		if err == nil {
			did, err = r.store.Merge(rec, MakeDot(o.Index, number), r.now, direct)
		}
		if err != nil {
			if errors.Is(err, ErrDefinition) {
				broken = err
			} else {
				r.refuse(o, err)
			}
			break
		}
		if did.Changed {
			m.held++
		}
		if r.journals(did) {
			if records == nil {
				n := len(b) / RecordSize
				records, dots = make([]Record, 0, n), make([]Dot, 0, n)
			}
			records, dots = append(records, *rec), append(dots, MakeDot(o.Index, number))
		}
		if did.Unnamed {
			r.addUnnamed(rec)
		}
		o.latest = max(o.latest, r.cfg.Deadline(rec))
		taken = number
	}
	r.stats.Received += taken + 1 - first
	if gap && !r.without("raise-early") {
		r.heard(o, last)
		r.keep(records, dots)
		return broken
	}
	if taken >= first {
		if !gap {
			r.log.append(o, first, run[:(taken+1-first)*RecordSize])
		}
		o.applied = taken
		o.since, o.refused = r.now, o.refused && taken < last
		switch {
		case o.applied >= o.askedTo:
			o.asked = 0
		case o.asked == p.id:
			o.askedAt = r.now
		}
		r.move(o)
		r.wakeClients()
		r.keep(records, dots, VectorEntry{o.Index, o.applied})
	}
	return broken
}

// journals reports whether a record that was merged must be on disk before the vector claims it there.
func (r *Replica) journals(m Merged) bool {
	return m.Changed || m.Loose && !r.cfg.Client && !r.without("loose-not-kept")
}

// ahead tells the store of the next records, each of which begins size bytes behind the one before it.
func (r *Replica) ahead(b []byte, size int) {
	n := min(len(b)/size, MaxRun)
	if n < 4 {
		return // not worth it
	}
	for i := range n {
		r.run[i] = (*Record)(b[i*size:]).Key()
	}
	r.store.Ahead(r.run[:n])
}

// refuse notes that the store takes no more of an origin for now: its vector stays, and views that need it grow old.
func (r *Replica) refuse(o *origin, err error) {
	o.refused, o.refusedAt = true, r.now
	r.stats.Refused++
	r.stats.LastRefused = err
	r.heard(o, o.applied+1)
}

func (r *Replica) wakeClients() {
	for _, p := range r.order {
		if p.client {
			r.wake(p)
		}
	}
}

func (r *Replica) receivePull(p *peer, f *reader) {
	o := p.origin(r, f.uint())
	from := f.limited(MaxNumber)
	if o == nil || f.err != nil || from == 0 || p.waiting() >= maxOut {
		return // it is asked for again
	}
	if from <= o.floor {
		r.define(p, o)
		p.say(func(w *writer) { w.below(o) })
		r.wake(p)
		return
	}
	if from > o.applied || len(p.pulls) >= 1024 {
		return
	}
	p.pulls = slices.DeleteFunc(p.pulls, func(q pull) bool { return q.index == o.Index })
	p.pulls = append(p.pulls, pull{o.Index, from, o.applied})
	r.wake(p)
}

func (w *writer) below(o *origin) {
	w.frame(frameBelow)
	w.fixed(uint64(o.ID))
	w.uint(o.floor)
	w.end()
}

// waiting is how many bytes are queued.
func (p *peer) waiting() int { return len(p.names) + len(p.out) }

// say queues a small frame; what does not fit is asked for again by whoever needs it.
func (p *peer) say(fn func(*writer)) {
	if p.waiting() < maxOut {
		w := writer{b: p.out}
		fn(&w)
		p.out = w.b
	}
}

func (r *Replica) receiveBelow(p *peer, f *reader) {
	o := r.reg.byID[OriginID(f.fixed())]
	floor := f.limited(MaxNumber)
	if o == nil || f.err != nil {
		return
	}
	p.below = grow(p.below, o.Index)
	p.below[o.Index] = max(p.below[o.Index], floor+1)
	if o.asked == p.id {
		o.asked = 0
	}
	p.applied = grow(p.applied, o.Index)
	p.applied[o.Index] = max(p.applied[o.Index], floor)
	r.heard(o, floor)
}

// work does what is due.
func (r *Replica) work() {
	r.chase()
	r.runScan()
	r.nameUnnamed()
	r.count()
	if r.now.Mono >= r.originsAt {
		r.originsAt = r.now.Mono + originsEvery
		r.dropOrigins()
	}
	for _, p := range r.order {
		if !p.hello {
			continue
		}
		r.probe(p, r.cfg.ProbeEvery)
		if p.version < r.version && r.now.Mono >= p.vectorAt+r.vectorEvery(p) {
			r.wake(p)
		}
		r.lookUp(p)
		r.lookLevel(p)
	}
	r.runAudit()
}

// vectorEvery: a client learns of the vector by the records themselves, and with the answers to its probes.
func (r *Replica) vectorEvery(p *peer) time.Duration {
	if p.client {
		return r.cfg.ProbeEvery
	}
	return r.cfg.VectorEvery
}

// chase asks for what peers hold and this replica does not.
func (r *Replica) chase() {
	if len(r.behind) == 0 || r.without("no-pull") {
		return
	}
	kept := r.behind[:0]
	for _, o := range r.behind {
		if o.behind = r.chaseOne(o); o.behind {
			kept = append(kept, o)
		}
	}
	clear(r.behind[len(kept):])
	r.behind = kept
}

// chaseOne reports whether somebody still has more of o.
func (r *Replica) chaseOne(o *origin) bool {
	if r.reg.get(o.Index) != o {
		return false
	}
	var best *peer
	more, direct, n := false, false, uint64(0)
	behind := uint64(0)
	for _, p := range r.order {
		if !p.hello || p.client || at(p.applied, o.Index) <= o.applied {
			continue
		}
		claim, waits := r.claim(p, o)
		more = more || waits
		if claim <= o.applied {
			continue
		}
		more = true
		behind = max(behind, claim-o.applied)
		if at(p.below, o.Index) > o.applied+1 {
			continue // only a scan helps there
		}
		if p.name == o.Node && !r.cfg.Client {
			direct = true
		}
		// One of those that can serve, by chance, but not the one that did not answer, if there is another.
		n++
		if best == nil || best.id == o.asked || p.id != o.asked && r.cfg.Random()%n == 0 {
			best = p
		}
	}
	wait := r.cfg.PullAfter
	switch {
	case behind > pullFew && direct:
		wait = pullTimeout
	case behind <= pullFew && !direct:
		wait = 0
	}
	switch {
	case !more || o.own:
		return false
	case o.refused && r.now.Mono < o.refusedAt.Mono+refusedRetry:
	case best == nil:
		if r.scan == nil && behind > 0 {
			r.startScan()
		}
	case o.asked != 0 && r.now.Mono < o.askedAt.Mono+pullTimeout:
	case r.now.Mono < o.since.Mono+wait: // its node is about to send it
	case r.cfg.Client && !o.refused && r.now.Mono < o.since.Mono+pullTimeout: // so is the node of a client
	case best.waiting() >= maxOut:
	default:
		claim, _ := r.claim(best, o)
		o.asked, o.askedAt, o.askedTo = best.id, r.now, claim
		best.asked = grow(best.asked, o.Index)
		best.asked[o.Index] = true
		o.refused = false
		r.stats.Pulls++
		r.define(best, o)
		best.say(func(w *writer) {
			w.frame(framePull)
			w.uint(uint64(o.Index))
			w.uint(o.applied + 1)
			w.end()
		})
		r.wake(best)
	}
	return true
}

// nameUnnamed asks the host to write content that came of a join under a dot of its own, unless somebody has done it.
func (r *Replica) nameUnnamed() {
	if r.cfg.Client {
		r.unnamed = r.unnamed[:0]
		return
	}
	if r.looking && len(r.unnamed) < maxUnnamed/2 {
		next, more := r.store.Scan(r.lookAt, lookBudget, r.now, r.nameless, func(rec *Record, _ Dot) bool {
			r.addUnnamed(rec)
			return len(r.unnamed) < maxUnnamed/2
		})
		r.lookAt, r.looking = next, more
		if !more {
			r.lookAt = Key{}
		}
	}
	if r.renaming && !r.looking && !r.lost && !slices.ContainsFunc(r.unnamed, func(u unnamed) bool { return u.clone }) {
		r.renaming = false
		for _, p := range r.order {
			r.wake(p) // it votes again
		}
	}
	if len(r.unnamed) == 0 {
		if r.lost {
			r.lost, r.looking = false, true
		}
		return
	}
	kept := r.unnamed[:0]
	for _, u := range r.unnamed {
		if r.now.Mono < u.due {
			kept = append(kept, u)
			continue
		}
		held, dot, ok := r.store.Held(&u.record, r.now)
		if !ok || !r.nameless(dot) {
			continue
		}
		r.out.Reissue = append(r.out.Reissue, held)
		r.stats.Reissued++
		kept = append(kept, unnamed{held, r.now.Mono + reissueRetry, u.clone}) // until it has one
	}
	r.unnamed = kept
}

// nameless: content that came of a join, or whose name a clone has given to other content, or one that nobody will ask for since what is before it is lost.
func (r *Replica) nameless(d Dot) bool {
	o := r.reg.get(d.Index())
	return d.Index() == 0 || o != nil && (o.Fenced || o.Partial && r.leveled && !o.own && d.Number() > o.applied)
}

// dropOrigins forgets origins whose records have all expired. Peers that still name them say when that was, and are not believed to have more.
func (r *Replica) dropOrigins() {
	for _, o := range r.reg.list {
		if o != nil && o.Node == r.cfg.Name && !o.own && o.Sealed == 0 && r.leveled && !o.behind && o.applied > 0 && !r.cfg.Client {
			o.Sealed = o.applied // of a run whose disk was lost: nobody else can say that nothing follows
			r.move(o)            // peers are told with the vector
			r.out.Origins = append(r.out.Origins, o.Origin)
		}
		if o == nil || o.own || r.owner(o) != nil {
			continue
		}
		whole := o.Sealed > 0 && o.applied >= o.Sealed
		if !whole && (o.Node != r.cfg.Name || !o.doubtful() || !r.leveled || o.behind) { // what this node has lost nobody else will bring
			continue
		}
		if o.Expires == 0 && o.latest == 0 {
			// Records that a scan brought are not all known here: the latest possible deadline is the safe one.
			o.latest = uint32(max(1, r.now.Guarded/1000))
		}
		if o.Expires == 0 && whole {
			o.Expires = o.latest
			r.out.Origins = append(r.out.Origins, o.Origin)
		}
		if r.expired(o.Expires) && r.expired(o.latest) {
			r.log.forget(o)
			r.unclaim(o.Index)
			for _, p := range r.order {
				for ref, index := range p.refs {
					if index == o.Index {
						p.refs[ref] = 0
					}
				}
				for _, s := range []*[]uint64{&p.applied, &p.durable, &p.cursor, &p.told, &p.below} {
					if int(o.Index) < len(*s) {
						(*s)[o.Index] = 0
					}
				}
				if int(o.Index) < len(p.asked) {
					p.asked[o.Index] = false
				}
				if int(o.Index) < len(p.defined) {
					p.defined[o.Index] = told{}
				}
				p.pulls = slices.DeleteFunc(p.pulls, func(q pull) bool { return q.index == o.Index })
			}
			for i := range r.raises { // another origin may have the index when they come
				v := &r.raises[i].vector
				*v = slices.DeleteFunc(*v, func(e VectorEntry) bool { return e.Index == o.Index })
			}
			r.reg.drop(o)
			if int(o.Index) < len(r.changed) {
				r.changed[o.Index] = 0
			}
			r.out.Dropped = append(r.out.Dropped, o.Index)
		}
	}
}

// unclaim takes an index, which may come again, out of everything that waits.
func (r *Replica) unclaim(index uint32) {
	is := func(v VectorEntry) bool { return v.Index == index }
	for i := range r.raises {
		r.raises[i].vector = slices.DeleteFunc(r.raises[i].vector, is)
	}
	if r.scan != nil {
		for _, s := range r.scan.parts {
			s.vector = slices.DeleteFunc(s.vector, is)
		}
	}
	zero := func(s []uint64) {
		if int(index) < len(s) {
			s[index] = 0
		}
	}
	for _, p := range r.order {
		zero(p.level)
		for i := range p.probes {
			zero(p.probes[i].need)
		}
		if p.scan != nil {
			zero(p.scan.has)
		}
		p.todo = slices.DeleteFunc(p.todo, func(i uint32) bool { return i == index })
	}
	if r.audit != nil {
		zero(r.audit.cut)
	}
	if r.served != nil {
		zero(r.served.cut)
	}
}

// Deadline returns when the next Tick is due, if nothing else happens before.
func (r *Replica) Deadline() time.Duration {
	next := r.now.Mono + r.cfg.ProbeEvery
	if len(r.behind) > 0 || r.scan != nil || r.looking {
		next = min(next, r.now.Mono+5*time.Millisecond)
	}
	if len(r.unnamed) > 0 {
		next = min(next, r.now.Mono+r.cfg.ReissueAfter)
	}
	if r.counting != nil || r.audit != nil || r.served != nil && !r.served.done {
		next = min(next, r.now.Mono+auditPause)
	}
	for _, p := range r.order {
		if p.hello && p.version < r.version && !p.woken {
			next = min(next, p.vectorAt+r.vectorEvery(p))
		}
		if p.hello {
			next = min(next, p.probeAt+r.cfg.ProbeEvery)
		}
	}
	return max(next, r.now.Mono+100*time.Microsecond)
}
