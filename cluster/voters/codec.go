package voters

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxMessage is the size of the largest message and of the largest state: two lists of 64 voters with the longest names, and a few ballots.
const MaxMessage = 12 << 10

// version is the first byte of messages and of the state.
const version = 1

var (
	ErrMessage = errors.New("voters: malformed message")
	ErrState   = errors.New("voters: malformed state")
)

type kind byte

const (
	kindHello    kind = iota + 1 // what I have adopted
	kindWant                     // whom have you caught up with?
	kindHave                     // these
	kindPrepare                  // a ballot begins
	kindPromise                  // I follow no lower one; I have accepted that
	kindAccept                   // accept this list
	kindAccepted                 // I have
	kindNack                     // I have promised a higher ballot
)

// ballot orders attempts. The incarnation is in it because a wiped proposer has forgotten its rounds and must not use one twice.
type ballot struct {
	round uint64
	name  string
	inc   Incarnation
}

func (b ballot) less(c ballot) bool {
	if b.round != c.round {
		return b.round < c.round
	}
	if b.name != c.name {
		return b.name < c.name
	}
	return string(b.inc[:]) < string(c.inc[:])
}

// message is the only form that goes over the wire: each one shows what its sender has adopted, so that whoever is behind learns it, and
// ballots are about the successor of exactly that configuration.
type message struct {
	kind    kind
	inc     Incarnation // of the sender
	settled bool
	cur     Config // adopted by the sender
	ballot  ballot
	other   ballot // of value; in a nack what was promised
	value   Config
	mask    uint64 // kindHave: by index in cur
}

func (m message) encode() []byte {
	b := append(make([]byte, 0, 256), version, byte(m.kind))
	b = append(b, m.inc[:]...)
	b = appendBool(b, m.settled)
	b = appendConfig(b, m.cur)
	b = appendBallot(b, m.ballot)
	b = appendBallot(b, m.other)
	b = appendConfig(b, m.value)
	return binary.BigEndian.AppendUint64(b, m.mask)
}

func decodeMessage(b []byte) (message, error) {
	if len(b) > MaxMessage {
		return message{}, fmt.Errorf("%w: %d bytes, at most %d", ErrMessage, len(b), MaxMessage)
	}
	r := reader{b: b}
	v := r.byte()
	m := message{kind: kind(r.byte())}
	m.inc = r.incarnation()
	m.settled = r.bool()
	m.cur = r.config()
	m.ballot, m.other = r.ballot(), r.ballot()
	m.value = r.config()
	m.mask = r.uint64()
	switch {
	case r.bad || len(r.b) > 0:
		return message{}, fmt.Errorf("%w: form", ErrMessage)
	case v != version || m.kind < kindHello || m.kind > kindNack:
		return message{}, fmt.Errorf("%w: version %d, kind %d", ErrMessage, v, m.kind)
	}
	return m, nil
}

// durable is what must survive a crash before anybody hears of it.
type durable struct {
	cur     Config
	settled bool
	fenced  bool

	round uint64 // highest that this node has used

	// The acceptor, for the successor of cur.
	promised ballot
	accepted ballot // zero: nothing
	value    Config
}

func (d durable) encode(self string) []byte {
	b := append(make([]byte, 0, 256), version, byte(len(self)))
	b = append(b, self...)
	b = appendConfig(b, d.cur)
	b = appendBool(b, d.settled)
	b = appendBool(b, d.fenced)
	b = binary.BigEndian.AppendUint64(b, d.round)
	b = appendBallot(b, d.promised)
	b = appendBallot(b, d.accepted)
	return appendConfig(b, d.value)
}

func decodeState(self string, b []byte) (durable, error) {
	if len(b) > MaxMessage {
		return durable{}, fmt.Errorf("%w: %d bytes, at most %d", ErrState, len(b), MaxMessage)
	}
	r := reader{b: b}
	v := r.byte()
	name := r.string()
	d := durable{cur: r.config(), settled: r.bool(), fenced: r.bool(), round: r.uint64()}
	d.promised, d.accepted = r.ballot(), r.ballot()
	d.value = r.config()
	switch {
	case r.bad || len(r.b) > 0:
		return durable{}, fmt.Errorf("%w: form", ErrState)
	case v != version:
		return durable{}, fmt.Errorf("%w: version %d, this one reads %d", ErrState, v, version)
	case name != self:
		return durable{}, fmt.Errorf("%w: it belongs to a node of another name", ErrState)
	}
	return d, nil
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendBallot(b []byte, v ballot) []byte {
	b = binary.BigEndian.AppendUint64(b, v.round)
	b = append(append(b, byte(len(v.name))), v.name...)
	return append(b, v.inc[:]...)
}

// appendConfig is the canonical encoding that [Config.Hash] hashes: it never changes.
func appendConfig(b []byte, c Config) []byte {
	b = binary.BigEndian.AppendUint32(b, c.Losses)
	b = binary.BigEndian.AppendUint64(b, c.Number)
	b = append(b, byte(len(c.Voters)))
	for _, v := range c.Voters {
		b = append(append(b, byte(len(v.Name))), v.Name...)
		b = append(b, v.Incarnation[:]...)
		b = appendBool(b, v.Silent)
	}
	return b
}

// reader takes fields off the front; after the first that does not fit, bad stays set and everything reads as zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) byte() byte {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) bool() bool {
	v := r.byte()
	r.bad = r.bad || v > 1
	return v == 1
}

func (r *reader) uint64() uint64 {
	if p := r.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (r *reader) string() string {
	n := int(r.byte())
	if n > MaxName {
		r.bad = true
	}
	return string(r.take(n))
}

func (r *reader) incarnation() (inc Incarnation) {
	copy(inc[:], r.take(len(inc)))
	return inc
}

func (r *reader) ballot() ballot {
	return ballot{round: r.uint64(), name: r.string(), inc: r.incarnation()}
}

func (r *reader) config() Config {
	var c Config
	if p := r.take(4); p != nil {
		c.Losses = binary.BigEndian.Uint32(p)
	}
	c.Number = r.uint64()
	n := int(r.byte())
	// A voter has 19 bytes at least: the list is not made before the bytes for it are there.
	if r.bad || n > MaxVoters || len(r.b) < n*19 {
		r.bad = true
		return Config{}
	}
	if n > 0 {
		c.Voters = make([]Voter, 0, n)
	}
	for range n {
		c.Voters = append(c.Voters, Voter{Name: r.string(), Incarnation: r.incarnation(), Silent: r.bool()})
	}
	if r.bad || c.check() != nil {
		r.bad = true
		return Config{}
	}
	return c
}
