package replication

import "sort"

// chunkRecords is how many records lie in one piece of the log.
const chunkRecords = 512

// chunk is a run of one origin's records without holes.
type chunk struct {
	origin *origin
	first  uint64
	data   []byte
}

func (c *chunk) last() uint64 { return c.first + uint64(len(c.data)/RecordSize) - 1 }

// hotLog keeps the latest records of all origins, as they were written, superseded or not. The oldest go when it is full: the
// store has what superseded them.
type hotLog struct {
	limit int // bytes
	bytes int
	order []*chunk // oldest first; head is behind those that are gone
	head  int
}

// append adds records that follow the origin's last one: encoded ones, whole.
func (l *hotLog) append(o *origin, first uint64, records []byte) {
	for len(records) > 0 {
		var c *chunk
		if n := len(o.chunks); n > 0 {
			c = o.chunks[n-1]
		}
		if c == nil || len(c.data) >= chunkRecords*RecordSize || c.last()+1 != first {
			c = &chunk{origin: o, first: first}
			o.chunks = append(o.chunks, c)
			l.order = append(l.order, c)
		}
		n := min(len(records), chunkRecords*RecordSize-len(c.data))
		c.data = append(c.data, records[:n]...)
		records = records[n:]
		first += uint64(n / RecordSize)
		l.bytes += n
		for l.bytes > l.limit && l.order[l.head] != c {
			l.evict()
		}
	}
}

func (l *hotLog) evict() {
	c := l.order[l.head]
	l.order[l.head] = nil
	if l.head++; l.head > len(l.order)/2 {
		l.order = append(l.order[:0], l.order[l.head:]...)
		l.head = 0
	}
	l.bytes -= len(c.data)
	o := c.origin
	if len(o.chunks) > 0 && o.chunks[0] == c { // else the origin has let go of it
		o.floor = c.last()
		o.chunks = o.chunks[1:]
	}
}

// forget lets go of an origin's records: a scan has raised its vector, and there would be a hole.
func (l *hotLog) forget(o *origin) {
	for _, c := range o.chunks {
		l.bytes -= len(c.data)
		c.data = nil // stays in order until its turn comes
	}
	o.chunks = nil
	o.floor = o.applied
}

// read returns records of an origin from a number on, as many as lie together and at most limit; nothing if there are none.
func (o *origin) read(from uint64, limit int) []byte {
	i := sort.Search(len(o.chunks), func(i int) bool { return o.chunks[i].last() >= from })
	if i == len(o.chunks) || o.chunks[i].first > from {
		return nil
	}
	c := o.chunks[i]
	b := c.data[(from-c.first)*RecordSize:]
	return b[:min(len(b), limit*RecordSize)]
}
