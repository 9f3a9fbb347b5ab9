package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// RecordSize is the length of a record in bytes.
const RecordSize = 40

// Record is the content of a record as it is sent: its first 16 bytes are the key.
type Record [RecordSize]byte

// Key returns the record's key.
func (r *Record) Key() Key {
	return Key{binary.BigEndian.Uint64(r[:8]), binary.BigEndian.Uint64(r[8:16])}
}

// Key orders records.
type Key struct{ Hi, Lo uint64 }

func (k Key) less(o Key) bool { return k.Hi < o.Hi || k.Hi == o.Hi && k.Lo < o.Lo }

// next is the key behind k; ok is false behind the last one.
func (k Key) next() (n Key, ok bool) {
	n = Key{k.Hi, k.Lo + 1}
	if n.Lo == 0 {
		n.Hi++
	}
	return n, n != Key{}
}

var lastKey = Key{^uint64(0), ^uint64(0)}

// OriginID names one run of one node in one lane: 63 random bits and the lane.
type OriginID uint64

// Lane of an origin.
type Lane uint8

// Urgent records overtake bulk ones at every frame.
const (
	Urgent Lane = 0
	Bulk   Lane = 1
	lanes       = 2
)

// MakeOrigin makes an id of a random number.
func MakeOrigin(random uint64, lane Lane) OriginID {
	id := OriginID(random&^1 | uint64(lane))
	if id < lanes {
		id += lanes // 0 is no origin
	}
	return id
}

// Lane returns the lane of the origin.
func (id OriginID) Lane() Lane { return Lane(id & 1) }

// A Dot is the name of one exact content: the index of its origin here, 24 bits, and its number, 40 bits. Index 0 is no
// origin: content that came of a join and has no name yet. Indices are local; on the wire each side defines its own.
type Dot uint64

const (
	numberBits = 40
	// MaxNumber is the largest number of an origin.
	MaxNumber = 1<<numberBits - 1
	// MaxOrigins bounds the origins that a replica knows.
	MaxOrigins = 1 << 13
)

// MakeDot packs a dot.
func MakeDot(index uint32, number uint64) Dot { return Dot(index)<<numberBits | Dot(number) }

// Index returns the index of the origin.
func (d Dot) Index() uint32 { return uint32(d >> numberBits) }

// Number returns the number of the record.
func (d Dot) Number() uint64 { return uint64(d) & MaxNumber }

// Incarnation names a data directory.
type Incarnation [16]byte

// Now is the time of a step.
type Now struct {
	Mono    time.Duration // by it everything is timed
	Wall    int64         // Unix milliseconds; only told to peers
	Guarded int64         // Unix milliseconds; by it records expire
}

// Merged is what a merge did.
type Merged struct {
	Changed bool // the held content changed: the record must be journaled
	Unnamed bool // what is held now came of a join and has no dot
	// Loose: nothing changed, but what covers the record came of a join and had no dot, so no disk has it but in parts, of which some may expire before the record
	// does: the record must be journaled too.
	Loose bool
}

// MaxRun is how many records a store is told of ahead.
const MaxRun = 32

// Store holds the records of a replica. Its methods are called from within Step and Fill and must not call back.
type Store interface {
	// Merge joins a record into what is held under its key. direct: it came from the node of its origin. An error means that it was
	// refused: nothing changed, and the vector must not claim it.
	Merge(r *Record, d Dot, now Now, direct bool) (Merged, error)
	// Ahead tells the keys of up to [MaxRun] records that are about to be merged, so that what is slow about it can begin for all of them. It may do nothing.
	Ahead(keys []Key)
	// Held returns what is held under the key of r.
	Held(r *Record, now Now) (Record, Dot, bool)
	// Scan calls fn in key order for live records from a key on for whose dots keep says yes, until fn returns false or it has looked at
	// about budget of them, and returns the key to go on from; more is false at the end. fn keeps no pointer.
	Scan(from Key, budget int, now Now, keep func(Dot) bool, fn func(*Record, Dot) bool) (next Key, more bool)
	// Each is Scan without order: for sums.
	Each(from Key, budget int, now Now, fn func(*Record, Dot)) (next Key, more bool)
	// Size is how many records it holds, expired ones that were not freed yet included. It is cheap.
	Size() int
	// Early returns which of the records must not come behind the others of a scan, which would mean something else without them; nil: none of those that are held.
	Early(now Now) func(*Record) bool
	// Definition returns what must be known before a record with that definition id is merged; nil: nothing.
	Definition(id uint64) []byte
	// Define makes a definition known.
	Define(definition []byte, now Now) error
}

// Errors that end a session; the host gets them in [Outputs.Close].
var (
	// ErrProtocol: the peer sent what no version of the protocol allows.
	ErrProtocol = errors.New("replication: malformed message")
	// ErrIncompatible: the peer cannot be talked to: another key, another cluster, another format.
	ErrIncompatible = errors.New("replication: incompatible peer")
	// ErrDefinition: a store returns it from Merge when the definition that a record needs is not known. The session ends: the next one brings it.
	ErrDefinition = errors.New("replication: the definition of a record is missing")
	// ErrClone: a peer holds records of this run that this node has not written: all sessions begin anew.
	ErrClone = errors.New("replication: another node writes under this one's name")
	// ErrImpostor: a peer says that it holds records that their node has not written.
	ErrImpostor = errors.New("replication: a peer claims records that their node has not written")
	// ErrRefused: the peer sent a record that the store refused.
	ErrRefused = errors.New("replication: a record was refused")
)

// Voters is the configuration under which acknowledgements and views count.
type Voters struct {
	Number uint64
	Hash   uint64
	Names  []string // sorted
}

// Majority is how many voters are one; 0 without voters.
func (v Voters) Majority() int {
	if len(v.Names) == 0 {
		return 0
	}
	return len(v.Names)/2 + 1
}

// Config configures a [Replica]. Zero fields mean the defaults.
type Config struct {
	Name        string // of this node; for a client anything
	Incarnation Incarnation
	Boot        uint64 // the number of this run: random, new at each start
	KeyID       uint64
	Client      bool // only reads: it takes everything from whom it is connected to, and serves nobody

	// Digest is a keyed PRF over a record, for audits. Required unless Client.
	Digest func(*Record) uint64
	// Deadline is the Unix second until which a record is kept.
	Deadline func(*Record) uint32
	// DefinitionID returns the id of the definition that a record needs.
	DefinitionID func(*Record) uint64
	// Random returns random bits, for jitter.
	Random func() uint64

	// NodeRecords is how many live records one node may have written that are held here, and NodeRate how many it may write in a second, over ten. They
	// should be the same on all nodes. Defaults: 2^24 and 250 000.
	NodeRecords int
	NodeRate    int

	LogBytes     int                    // records kept for peers; default 40 MiB
	Window       int                    // bulk records on their way to a peer; default 16384
	VectorEvery  time.Duration          // least time between vectors to a peer; default 2 ms
	ProbeEvery   time.Duration          // default 1 s
	AuditEvery   time.Duration          // default 60 s; negative: never
	PullAfter    time.Duration          // how long to wait for the origin's node before another peer is asked; default 20 ms
	ReissueAfter time.Duration          // least jitter before unnamed content is written again; default 10 ms
	Scans        int                    // scans served at once; default 4
	ScanPiece    int                    // records in one message of a scan; default 4096
	Mutant       func(name string) bool // names rules to leave out, in tests: an error unless built with the tag faults
}

func (c *Config) validate() error {
	switch {
	case c.Name == "" || len(c.Name) > maxName:
		return fmt.Errorf("replication: Name has %d bytes, limit 1 to %d", len(c.Name), maxName)
	case c.Deadline == nil || c.DefinitionID == nil || c.Random == nil || c.Digest == nil && !c.Client:
		return errors.New("replication: a function is missing")
	case c.Mutant != nil && !faulty:
		return errors.New("replication: rules are left out only when built with the tag faults")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.VectorEvery, 2*time.Millisecond)
	def(&c.ProbeEvery, time.Second)
	def(&c.AuditEvery, time.Minute)
	def(&c.PullAfter, 20*time.Millisecond)
	def(&c.ReissueAfter, 10*time.Millisecond)
	for _, v := range []struct {
		v   *int
		def int
	}{{&c.LogBytes, 40 << 20}, {&c.Window, 16384}, {&c.Scans, 4}, {&c.ScanPiece, 4096}, {&c.NodeRecords, 1 << 24}, {&c.NodeRate, 250_000}} {
		if *v.v == 0 {
			*v.v = v.def
		}
	}
	return nil
}

// PeerID names a session; the host chooses it and uses it once.
type PeerID uint64

// Event is something that happened: one of the types below.
type Event interface{ event() }

type (
	// Connected: a session has begun, authenticated as a node, or as a client. Name is who it is proved to be; empty: whoever it says.
	Connected struct {
		Peer   PeerID
		Name   string
		Client bool
	}
	// Disconnected: a session has ended.
	Disconnected struct{ Peer PeerID }
	// Received: a message of a session.
	Received struct {
		Peer    PeerID
		Message []byte // not kept
	}
	// Written: records of this node are durable and merged, numbered from First on. Unnamed lists those whose merge left content without a dot.
	Written struct {
		Index   uint32
		First   uint64
		Records []Record // not kept
		Unnamed []Record
	}
	// Journaled: everything up to a token of [Outputs.Journal] is durable.
	Journaled struct{ Token uint64 }
	// SetVoters: another configuration is in force. Self: this replica votes under it.
	SetVoters struct {
		Voters Voters
		Self   bool
	}
	// SendControl queues a message of the host's for a peer.
	SendControl struct {
		Peer    PeerID
		Message []byte
	}
	// SetKeys: what the host knows the keys of records by has changed. It is sent to all peers ahead of what is written behind this event, and means nothing here. Several: records
	// may be under another key than the first, so that peers which know only of one cannot be talked to.
	SetKeys struct {
		Keys    []byte // at most 1 KiB; kept
		Several bool
	}
	// Tick: nothing happened, but time passed: see [Replica.Deadline].
	Tick struct{}
)

func (Connected) event()    {}
func (Disconnected) event() {}
func (Received) event()     {}
func (Written) event()      {}
func (Journaled) event()    {}
func (SetVoters) event()    {}
func (SendControl) event()  {}
func (SetKeys) event()      {}
func (Tick) event()         {}

// JournalWrite is what the host must make durable, in the order of tokens. Then it says [Journaled].
type JournalWrite struct {
	Token   uint64
	Records []Record
	Dots    []Dot
	Vector  []VectorEntry // true as soon as the records, and all earlier ones, are durable
}

// VectorEntry says that everything of an origin up to a number is held.
type VectorEntry struct {
	Index  uint32
	Number uint64
}

// Control is a message of a peer's host.
type Control struct {
	Peer    PeerID
	Name    string
	Message []byte
}

// Keys is what a node knows the keys of records by: see [SetKeys].
type Keys struct {
	Peer PeerID
	Name string
	Keys []byte
}

// CaughtUp is a peer whose holdings are durable here, as of a moment when it followed the voters with this hash.
type CaughtUp struct {
	Name        string
	Incarnation Incarnation
	Hash        uint64
}

// Closing is a session that must end.
type Closing struct {
	Peer PeerID
	Err  error
}

// Outputs is what a step asks for. It is valid until the next step.
type Outputs struct {
	Wake    []PeerID // Fill has something for them
	Journal []JournalWrite
	Origins []Origin // new, or with news: to be durable no later than the next journal write
	Dropped []uint32 // indices of origins that nothing refers to any more
	Reissue []Record // content that needs a name: to be written by this node under a dot of its own, which takes the place of the one that it is held under
	Control []Control
	Keys    []Keys
	Close   []Closing
	// CaughtUp names peers of which this replica holds durably all that they held at some moment under the voters that both follow.
	CaughtUp []CaughtUp
	Changed  []Record // what changed in the store, if Config.Client
	Acks     bool     // a peer's durable vector, or this one's, has moved
	Fence    bool     // a peer holds more of this run's records than were ever written: its origins must be replaced
	Views    bool     // the age of a view has changed
}

func (o *Outputs) reset() {
	*o = Outputs{
		Wake: o.Wake[:0], Journal: o.Journal[:0], Origins: o.Origins[:0], Dropped: o.Dropped[:0], Reissue: o.Reissue[:0],
		Control: o.Control[:0], Keys: o.Keys[:0], Close: o.Close[:0], Changed: o.Changed[:0], CaughtUp: o.CaughtUp[:0],
	}
}
