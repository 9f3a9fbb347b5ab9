package replication

import (
	"encoding/binary"
	"slices"
)

// Fill appends the next message for a peer to b and returns it; nothing was appended if there is nothing to send: then the host
// waits for the peer to be named in Outputs.Wake. now must not be earlier than that of the last step.
func (r *Replica) Fill(now Now, id PeerID, b []byte) []byte {
	p := r.peers[id]
	if p == nil {
		return b
	}
	r.now = now
	w := &writer{b: b}
	if !p.helped {
		p.helped = true
		w.hello(hello{protocolVersion, r.cfg.KeyID, r.cfg.Name, r.cfg.Incarnation, r.cfg.Boot, r.cfg.Client, true})
	}
	if !p.hello {
		p.woken = len(w.b) > len(b)
		return outgoing(w.b, len(b))
	}
	start := len(b)
	// In this order: under which keys records are, what the origins are that anything below names, under which voters, up to where, and what that answers.
	if p.toldKeys != r.keysVersion {
		p.toldKeys = r.keysVersion
		w.frame(frameKeys)
		w.string(string(r.keys))
		w.end()
	}
	w.b = append(w.b, p.names...)
	p.names = p.names[:0]
	r.fillVoters(w, p)
	if !p.said || p.due || len(p.answers) > 0 || p.version < r.version && now.Mono >= p.vectorAt+r.vectorEvery(p) {
		if p.due = !r.fillVector(w, p); !p.due {
			r.fillAnswers(w, p)
		}
	}
	if len(p.out) > 0 {
		w.b = append(w.b, p.out...)
		p.out, p.controls = p.out[:0], 0
	}
	for _, lane := range [lanes]Lane{Urgent, Bulk} {
		for len(w.b)-start < fillTarget && r.fillLane(w, p, lane) {
		}
	}
	if len(w.b)-start < fillTarget {
		r.fillScan(w, p)
	}
	p.woken = len(w.b) > len(b)
	return outgoing(w.b, len(b))
}

// define makes an origin known to a peer, ahead of everything else that is queued or being written.
func (r *Replica) define(p *peer, o *origin) {
	p.defined = grow(p.defined, o.Index)
	if p.defined[o.Index] == o.told() {
		return
	}
	w := writer{b: p.names}
	w.origin(o)
	p.names = w.b
	p.defined[o.Index] = o.told()
}

// defineIn is define within a message.
func (r *Replica) defineIn(w *writer, p *peer, o *origin) {
	p.defined = grow(p.defined, o.Index)
	if p.defined[o.Index] != o.told() {
		w.origin(o)
		p.defined[o.Index] = o.told()
	}
}

func (w *writer) origin(o *origin) {
	w.frame(frameOrigin)
	w.uint(uint64(o.Index))
	w.fixed(uint64(o.ID))
	w.uint(o.Sealed)
	w.uint(uint64(o.expires()))
	w.string(o.Node)
	w.flag(o.own)
	w.end()
}

// fillVoters writes under which configuration this replica acknowledges from here on.
func (r *Replica) fillVoters(w *writer, p *peer) {
	votes := r.votes && !r.renaming
	if r.cfg.Client || p.toldHash == r.voters.Hash && p.toldVotes == votes {
		return
	}
	p.toldHash, p.toldVotes = r.voters.Hash, votes
	w.frame(frameVoters)
	w.fixed(r.voters.Hash)
	w.flag(votes)
	w.uint(r.voters.Number)
	w.uint(uint64(len(r.voters.Names)))
	for _, name := range r.voters.Names {
		w.string(name)
	}
	w.end()
}

// fillVector writes what has moved since the last time. It reports false, and has written no vector, if there are too many origins to define in one message: the next one
// goes on.
func (r *Replica) fillVector(w *writer, p *peer) bool {
	const inFrame = 1024
	indices := r.movedSince(p.version)
	start := len(w.b)
	for _, index := range indices {
		if len(w.b)-start > maxDefined {
			return false
		}
		r.defineIn(w, p, r.reg.get(index))
	}
	var moved []*origin
	flush := func() {
		w.frame(frameVector)
		w.uint(uint64(len(moved)))
		for _, o := range moved {
			w.uint(uint64(o.Index))
			w.uint(o.applied)
			w.uint(o.durable)
		}
		w.end()
		moved = moved[:0]
	}
	for _, index := range indices {
		if moved = append(moved, r.reg.get(index)); len(moved) == inFrame {
			flush()
		}
	}
	if len(moved) > 0 || !p.said { // who holds nothing says so once
		flush()
	}
	p.said = true
	p.version, p.vectorAt = r.version, r.now.Mono
	return true
}

// fillLane writes one run of records of a lane and reports whether there was one.
func (r *Replica) fillLane(w *writer, p *peer, lane Lane) bool {
	if r.cfg.Client || !p.heard { // where it begins is not known yet
		return false
	}
	if p.client {
		if r.fillClient(w, p, lane) {
			return true
		}
	} else if o := r.own[lane]; o != nil && r.fillPush(w, p, o) {
		return true
	}
	for i := 0; i < len(p.pulls); i++ {
		q := &p.pulls[i]
		o := r.reg.get(q.index)
		if o != nil && o.ID.Lane() != lane {
			continue
		}
		if o == nil || q.next > q.to {
			p.pulls = append(p.pulls[:i], p.pulls[i+1:]...)
			i--
			continue
		}
		n := r.fillRun(w, p, o, q.next, min(q.to, r.window(p, o)))
		if n == 0 {
			if q.next <= o.floor { // the log has moved on
				r.defineIn(w, p, o)
				w.below(o)
				q.next = q.to + 1
				return true
			}
			continue
		}
		q.next += n
		return true
	}
	return false
}

// fillClient is fillLane for a client, which is sent the records of all origins: those that have moved since everything was last sent.
func (r *Replica) fillClient(w *writer, p *peer, lane Lane) bool {
	if p.pushed < r.version {
		for _, index := range r.movedSince(p.pushed) {
			if !slices.Contains(p.todo, index) {
				p.todo = append(p.todo, index)
			}
		}
		p.pushed = r.version
	}
	for i := 0; i < len(p.todo); i++ {
		o := r.reg.get(p.todo[i])
		if o != nil && o.ID.Lane() != lane {
			continue
		}
		if o != nil && r.fillPush(w, p, o) {
			return true
		}
		if o == nil || p.cursor[o.Index] >= o.applied || p.cursor[o.Index] < o.floor { // else the window is closed
			p.todo = slices.Delete(p.todo, i, i+1)
			i--
		}
	}
	return false
}

// window is the number up to which records may be sent now: bulk records wait for the peer's vector, so that urgent ones do not
// wait behind them.
func (r *Replica) window(p *peer, o *origin) uint64 {
	if o.ID.Lane() == Urgent {
		return o.applied
	}
	return min(o.applied, at(p.applied, o.Index)+uint64(r.cfg.Window))
}

// fillPush writes what follows the cursor.
func (r *Replica) fillPush(w *writer, p *peer, o *origin) bool {
	p.cursor = grow(p.cursor, o.Index)
	cursor := max(p.cursor[o.Index], at(p.applied, o.Index))
	p.cursor[o.Index] = cursor
	if cursor >= o.applied {
		return false
	}
	if cursor < o.floor {
		p.told = grow(p.told, o.Index)
		if p.told[o.Index] != o.floor+1 && cursor < p.told[o.Index] || p.told[o.Index] == 0 {
			p.told[o.Index] = o.floor + 1
			r.defineIn(w, p, o)
			w.below(o)
			return true
		}
		return false
	}
	n := r.fillRun(w, p, o, cursor+1, r.window(p, o))
	p.cursor[o.Index] += n
	return n > 0
}

// fillRun writes a run of the log between two numbers, inclusive, and returns its length.
func (r *Replica) fillRun(w *writer, p *peer, o *origin, from, to uint64) uint64 {
	if from > to {
		return 0
	}
	b := o.read(from, int(min(recordsInRun, to-from+1)))
	if len(b) == 0 {
		return 0
	}
	r.defineIn(w, p, o)
	r.fillDefinitions(w, p, b)
	w.frame(frameRecords)
	w.uint(uint64(o.Index))
	w.uint(from)
	w.records(b)
	w.end()
	n := uint64(len(b) / RecordSize)
	r.stats.Sent += n
	return n
}

// fillDefinitions writes the definitions that records need and the peer has not been sent.
func (r *Replica) fillDefinitions(w *writer, p *peer, records []byte) {
	last := uint64(0)
	for ; len(records) > 0; records = records[RecordSize:] {
		id := r.cfg.DefinitionID((*Record)(records))
		if id == last {
			continue
		}
		r.fillDefinition(w, p, id)
		last = id
	}
}

func (r *Replica) fillDefinition(w *writer, p *peer, id uint64) {
	if p.defs[id] {
		return
	}
	if d := r.store.Definition(id); d != nil { // else it was forgotten with its records; others may come
		p.defs[id] = true
		w.frame(frameDefine)
		w.b = append(w.b, d...)
		w.end()
	}
}

func putDot(b []byte, d Dot) []byte { return binary.BigEndian.AppendUint64(b, uint64(d)) }
