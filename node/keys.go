package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/internal/atomicfile"
	"github.com/revokd/revokd/internal/view"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/revocation"
)

// ErrKeys: a change of the fingerprint keys was refused, or is not in force everywhere yet; the text says why.
var ErrKeys = errors.New("the fingerprint keys were not changed")

// KeysError says why a change of the fingerprint keys was refused, or where it is not in force yet. It matches [ErrKeys].
type KeysError struct{ Why string }

func (e *KeysError) Error() string { return ErrKeys.Error() + ": " + e.Why }

// Is makes every KeysError match [ErrKeys].
func (e *KeysError) Is(target error) bool { return target == ErrKeys }

const (
	// keysEvery is how often a ring that could not be taken is tried again, and until when records of the older key may be live is told.
	keysEvery = time.Second
	// defaultKeysTimeout is how long a change waits for the other voters to take it.
	defaultKeysTimeout = 10 * time.Second
	maxRingFile        = 4096
)

// keys is how another ring of fingerprint keys comes in force. There is one order, whoever brings the ring: what goes is refused, the file is durable, what comes is
// accepted, peers are told. So there is never a record on this disk under a key that its file lacks, nor one that could still be found under a key that the file has lost.
type keys struct {
	// writes is held shared from when a write makes its records until they are in the table: when a ring is in force, all that was made before it is in the table.
	writes sync.RWMutex

	changing sync.Mutex      // one change at a time, from the file to the table
	attempt  revocation.Ring // the largest that may be in the file; never an older one is written again

	mu      sync.Mutex // guards what follows; nothing is called with it held
	offered revocation.Ring
	tried   revocation.Ring // of those that were offered, the last one that this node has taken, or could not
	failed  string          // why that is not in force; logged once
	moved   chan struct{}   // closed when a peer has told something, or another ring is in force
	wake    chan struct{}
}

func newKeys() keys {
	return keys{moved: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// LoadRing reads the file that a node keeps its keys in; without one there is only the first key. Errors match [revocation.ErrKey] if it cannot be used.
func LoadRing(path string, first revocation.Key) (revocation.Ring, error) {
	ring := revocation.NewRing(first)
	if path == "" {
		return ring, nil
	}
	b, err := readRingFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return ring, nil
	}
	if err == nil {
		ring, err = revocation.ParseRing(b)
	}
	if err == nil && ring.Name() != first.ID() {
		err = fmt.Errorf("%w: it is of the cluster whose first key is %s, not %s", revocation.ErrKey, ring.Name(), first.ID())
	}
	if err != nil {
		return ring, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}

// loadRing puts the ring of the file in force, if there is one.
func (n *Node) loadRing() error {
	ring, err := LoadRing(n.cfg.RingFile, n.cfg.Key)
	if err != nil {
		return err
	}
	n.keys.attempt = ring
	if ring == n.table.Ring() {
		return nil
	}
	return n.table.SetRing(ring, 0) // there are no records yet
}

func readRingFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxRingFile {
		err = fmt.Errorf("%s: too large: at most %d bytes", path, maxRingFile)
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// adopt puts a ring in force, unless one is that is not smaller. Errors match [revocation.ErrKey], or are those of the file: then it is to be tried again.
func (n *Node) adopt(ring revocation.Ring) error {
	k := &n.keys
	k.changing.Lock()
	defer k.changing.Unlock()
	return n.adoptLocked(ring)
}

func (n *Node) adoptLocked(ring revocation.Ring) error {
	k := &n.keys
	if k.attempt.Compare(ring) > 0 { // it may be in the file already
		ring = k.attempt
	}
	switch {
	case ring.Name() != n.cfg.Key.ID():
		return fmt.Errorf("%w: the ring of another cluster", revocation.ErrKey)
	case ring.Compare(n.table.Ring()) <= 0:
		return nil
	case n.journal != nil && n.cfg.RingFile == "":
		return fmt.Errorf("%w: the node has no file to keep its keys in", revocation.ErrKey)
	}
	// Writers wait: between the two steps the key that they make records under may not be there.
	k.writes.Lock()
	defer k.writes.Unlock()
	if err := n.table.Retire(ring, n.Now()); err != nil {
		return err
	}
	k.attempt = ring
	if n.cfg.RingFile != "" {
		b, _ := ring.MarshalBinary()
		if err := atomicfile.Write(n.cfg.RingFile, b); err != nil {
			return fmt.Errorf("the fingerprint keys cannot be kept: %w", err)
		}
	}
	if err := n.table.SetRing(ring, n.Now()); err != nil {
		return err
	}
	n.tellKeys()
	n.log.Info("fingerprint keys", "in_use", ring.Keys()[0].ID.String(), "keys", len(ring.Keys()))
	return nil
}

// tellKeys tells peers what is in force.
func (n *Node) tellKeys() {
	told := view.KeysOf(n.table)
	n.replica.step(replication.SetKeys{Keys: told.Append(nil), Several: !told.Ring.Single()})
	n.keys.signal()
}

// signal wakes whoever waits for a change.
func (k *keys) signal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.moved)
	k.moved = make(chan struct{})
}

func (k *keys) waits() <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.moved
}

// offer is told a peer's ring.
func (k *keys) offer(ring revocation.Ring) {
	k.mu.Lock()
	if k.offered == (revocation.Ring{}) || ring.Compare(k.offered) > 0 {
		k.offered = ring
	}
	k.mu.Unlock()
	k.signal()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// looked reports whether the node has tried to take what peers have offered.
func (k *keys) looked() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tried == k.offered
}

// keysLoop takes what peers offer, until ctx ends.
func (n *Node) keysLoop(ctx context.Context) error {
	k := &n.keys
	t := time.NewTicker(keysEvery)
	defer t.Stop()
	told := view.KeysOf(n.table)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.wake:
		case <-t.C:
			if now := view.KeysOf(n.table); now != told {
				told = now
				n.tellKeys()
			}
		}
		k.mu.Lock()
		offered := k.offered
		k.mu.Unlock()
		ring := offered
		if ring == (revocation.Ring{}) { // nobody has told one: there may be one that the disk has refused
			ring = n.table.Ring()
		}
		failed := ""
		if err := n.adopt(ring); err != nil {
			failed = err.Error()
		}
		k.mu.Lock()
		again := k.failed == failed
		k.failed, k.tried = failed, offered
		k.mu.Unlock()
		if !n.complete.Load() {
			n.replica.look() // it waits for this
		}
		if failed != "" && !again {
			n.log.Warn("the fingerprint keys of the cluster are not in force on this node: it refuses records of a key that it lacks, and its view grows old", "error", failed)
		}
	}
}

// receivedKeys takes what a peer knows the keys by; mu of the replica is held.
func (r *replica) receivedKeys(m replication.Keys) {
	s := r.sessions[m.Peer]
	if s == nil || s.peer.Client {
		return
	}
	told, err := view.ParseKeys(m.Keys)
	if err != nil || told.Ring.Name() != r.n.cfg.Key.ID() { // of a later version: what records it has that this one cannot read, the table refuses
		return
	}
	s.keys = &told
	r.n.keys.offer(told.Ring)
}

// toldKeys returns what the nodes that have a session with this one have told; nil: nothing yet.
func (r *replica) toldKeys() map[string]*view.Keys {
	r.mu.Lock()
	defer r.mu.Unlock()
	told := make(map[string]*view.Keys, len(r.byName))
	for name, s := range r.byName {
		told[name] = s.keys
	}
	return told
}

// KeyChange is a change of the fingerprint keys: one of its fields.
type KeyChange struct {
	Add  revocation.Key   // looked up under from now on
	Use  revocation.KeyID // records are made under it from now on
	Drop revocation.KeyID // the one that is not in use; all its records must have expired
}

// ChangeKeys changes the fingerprint keys and returns when all voters have the change, for at most limit; 0 is ten seconds. This node must be a voter, all voters must be connected to it, and they and
// all other nodes that are must have the keys that are in force here; to drop one, nobody may have live records of it, nodes that are down included. So of two contradicting changes one succeeds at most.
// Errors match [ErrKeys], [ErrNotReady] or [revocation.ErrInvalid].
func (n *Node) ChangeKeys(ctx context.Context, c KeyChange, limit time.Duration) error {
	if !n.complete.Load() {
		return ErrNotReady
	}
	if limit == 0 {
		limit = defaultKeysTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	next, err := n.changeKeys(ctx, c)
	if err != nil {
		return err
	}
	// In force here; who else has it.
	for {
		moved := n.keys.waits()
		waits := n.withoutRing(next)
		switch {
		case n.table.Ring() != next:
			return &KeysError{"another change came first"}
		case len(waits) == 0:
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return &KeysError{"in force on this node, and not yet on " + strings.Join(waits, ", ")}
		}
	}
}

func (n *Node) changeKeys(ctx context.Context, c KeyChange) (revocation.Ring, error) {
	for {
		moved := n.keys.waits()
		next, waits, err := n.tryKeys(c)
		if err != nil || len(waits) == 0 {
			return next, err
		}
		select { // what a peer has just been sent it may not have told yet
		case <-moved:
		case <-ctx.Done():
			return next, &KeysError{"not connected to this node, or without the keys that it has: " + strings.Join(waits, ", ")}
		}
	}
}

// tryKeys makes a change, unless other nodes have to be heard before.
func (n *Node) tryKeys(c KeyChange) (next revocation.Ring, waits []string, err error) {
	k := &n.keys
	k.changing.Lock()
	defer k.changing.Unlock()
	base := n.table.Ring()
	switch {
	case k.attempt != base:
		return next, nil, &KeysError{"an earlier change is not on the disk of this node yet"}
	case c.Add != revocation.Key{}:
		next, err = base.Add(c.Add)
	case c.Use != 0:
		next, err = base.Use(c.Use)
	default:
		next, err = base.Drop(c.Drop)
	}
	if err != nil {
		return next, nil, err
	}
	if waits, err = n.keysWait(base, c.Drop != 0); err != nil || len(waits) > 0 {
		return next, waits, err
	}
	if err := n.adoptLocked(next); err != nil {
		n.log.Warn("the fingerprint keys were not changed", "error", err)
		return next, nil, &KeysError{"this node could not take the change: see its log"}
	}
	return next, nil, nil
}

// voterNames returns the other voters; ok is false if this node is none.
func (n *Node) voterNames() (others []string, ok bool) {
	r := n.replica
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range r.voters.Names {
		if name != n.cfg.Name {
			others = append(others, name)
		}
	}
	return others, r.votes
}

// withoutRing returns the voters that have not told that a ring is in force there.
func (n *Node) withoutRing(ring revocation.Ring) (names []string) {
	told := n.replica.toldKeys()
	others, _ := n.voterNames()
	for _, name := range others {
		if t := told[name]; t == nil || t.Ring != ring {
			names = append(names, name)
		}
	}
	return names
}

// keysWait returns the nodes that have to be heard before the keys may be changed, and an error if they must not be now.
func (n *Node) keysWait(base revocation.Ring, drop bool) (waits []string, err error) {
	others, votes := n.voterNames()
	if !votes {
		return nil, &KeysError{"this node is no voter: ask one"}
	}
	told := n.replica.toldKeys()
	needed := slices.Clone(others)
	for name := range told {
		needed = append(needed, name)
	}
	if drop && n.members != nil && n.members.gossip != nil {
		for _, m := range n.members.gossip.Members() {
			if m.Name != n.cfg.Name && m.Status != cluster.Left {
				needed = append(needed, m.Name)
			}
		}
	}
	slices.Sort(needed)
	live := map[string]uint32{n.cfg.Name: view.KeysOf(n.table).LiveUntil}
	for _, name := range slices.Compact(needed) {
		if t := told[name]; t == nil || t.Ring != base {
			waits = append(waits, name)
		} else {
			live[name] = t.LiveUntil
		}
	}
	if drop {
		// Clocks differ: what has ended here by a second may be live elsewhere.
		now := n.Now()/1000 - int64(n.cfg.Slack/time.Second)
		for name, until := range live {
			if until != 0 && int64(until) >= now {
				return nil, &KeysError{fmt.Sprintf("%s may have live records of it for %s", name, time.Duration(int64(until)-now+1)*time.Second)}
			}
		}
	}
	return waits, nil
}

// KeyStatus describes a fingerprint key of a node.
type KeyStatus struct {
	revocation.RingKey
	// Records is how many live ones were made under it when they were last counted: see [Node.Recount].
	Records int
	// LiveUntil is until when there may be any, the slack included; zero: there have been none.
	LiveUntil time.Time
}

// Keys describes the fingerprint keys in force on this node, the primary one first.
func (n *Node) Keys() []KeyStatus {
	var list []KeyStatus
	census := n.census.last.Load()
	for _, k := range n.table.Ring().Keys() {
		s := KeyStatus{RingKey: k}
		if until := n.table.LiveUntil(k.Number); until != 0 {
			s.LiveUntil = time.Unix(int64(until), 0)
		}
		if census != nil {
			if i := slices.IndexFunc(census.Keys, func(c revocation.KeyCount) bool { return c.Number == k.Number }); i >= 0 {
				s.Records = census.Keys[i].Records
			}
		}
		list = append(list, s)
	}
	return list
}

// Ring returns the fingerprint keys in force: whoever may copy the records needs them.
func (n *Node) Ring() revocation.Ring { return n.table.Ring() }

// Keys of records in the journal's metadata: metaKey, number, "/", id. It is there with the first batch that has records of the key; of the first key there is none,
// because the journal has its id.
const metaKey = "key/"

func keyName(k revocation.RingKey) string {
	return metaKey + strconv.FormatUint(uint64(k.Number), 10) + "/" + k.ID.String()
}

// parseKeyName reads keyName.
func parseKeyName(name string) (number uint8, id revocation.KeyID, err error) {
	first, second, ok := strings.Cut(strings.TrimPrefix(name, metaKey), "/")
	n, err := strconv.ParseUint(first, 10, 8)
	v, err2 := strconv.ParseUint(second, 16, 64)
	if !ok || err != nil || err2 != nil {
		return 0, 0, fmt.Errorf("%w: the journal's list of keys is malformed", revocation.ErrKey)
	}
	return uint8(n), revocation.KeyID(v), nil
}

// bringKeys adds the keys of the records of a batch, unless the disk has their ids. What is in force is in the file. A key without records is not brought: of two additions at once
// one is lost, and its key is in no ring any more.
func (n *Node) bringKeys(b *journal.Batch) {
	for _, k := range n.table.Ring().Keys() {
		if name := keyName(k); k.Number > 0 && !n.onDisk.keys[name] && hasKey(b.Records, k.Number) {
			b.Meta = append(b.Meta, journal.Meta{Key: name, Value: []byte{1}})
		}
	}
}

// hasKey reports whether there is a record of a key among entries.
func hasKey(entries []byte, number uint8) bool {
	for ; len(entries) >= entrySize; entries = entries[entrySize:] {
		if entries[revocation.RecordSize-1] == number { // see revocation.Record.KeyNumber
			return true
		}
	}
	return false
}

// keptKeys notes what a durable batch has brought; dropKeys forgets what no ring has any more.
func (n *Node) keptKeys(b *journal.Batch) {
	for _, m := range b.Meta {
		if strings.HasPrefix(m.Key, metaKey) {
			if len(m.Value) > 0 {
				n.onDisk.keys[m.Key] = true
			} else {
				delete(n.onDisk.keys, m.Key)
			}
		}
	}
}

func (n *Node) dropKeys(b *journal.Batch) {
	ring := n.table.Ring()
	for name := range n.onDisk.keys {
		if number, id, err := parseKeyName(name); err == nil && !ring.Has(number, id) {
			b.Meta = append(b.Meta, journal.Meta{Key: name})
		}
	}
}

// checkKeys compares the journal's list of keys with the ring.
func (n *Node) checkKeys() error {
	ring := n.table.Ring()
	for _, name := range n.journal.Keys(metaKey) {
		if err := checkKeyName(name, ring); err != nil {
			return fmt.Errorf("%w: put back %s, or copy that of another node", err, n.cfg.RingFile)
		}
		n.onDisk.keys[name] = true
	}
	return nil
}

// checkKeyName returns an error if a journal with that key of metadata can have records of a fingerprint key that the ring lacks. Of one that has gone there are none.
func checkKeyName(name string, ring revocation.Ring) error {
	if !strings.HasPrefix(name, metaKey) {
		return nil
	}
	number, id, err := parseKeyName(name)
	if err == nil && !ring.Has(number, id) && !ring.Had(number) {
		err = fmt.Errorf("%w: there are records of key %s", revocation.ErrKey, id)
	}
	return err
}
