package audit

import (
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"
)

// Event is what a line says. Empty fields are left out. Nothing in it may be a token or a key.
type Event struct {
	Kind string    // write, receipt, cluster, access, rehearsal
	Time time.Time // zero: when it is appended

	// Who asked for what.
	Method  string
	Request string // id of the call
	Who     string // credential of the caller, by name
	Role    string
	From    string // address of the connection

	// What it was about.
	Item     int // of a batch or a stream, from 1; 0: the call has only one
	Target   string
	Match    [16]byte // fingerprint of the match under its rule; zero: none was made
	Claims   []string // names in the match
	Values   []byte   // the match as JSON, only where the operator has asked for values
	Rule     string
	Compared string
	Expires  int64 // Unix seconds
	Change   string
	Name     string
	Reason   string
	Comment  string

	// What became of it.
	Outcome    string
	Error      string // kind of the refusal
	Field      string
	Durability string
	Ack        string
	Confirmed  []string // nodes
	Count      uint64   // of what one line stands for
}

// maxField bounds a string of a line, in bytes, and maxList the strings of a list: what callers hand over is shorter.
const (
	maxField = 1024
	maxList  = 64
)

// appendContent appends the line from its second member on, without the hash.
func (e *Event) appendContent(b []byte) []byte {
	b = append(b, `,"event":`...)
	b = appendString(b, e.Kind)
	b = append(b, `,"time":"`...)
	b = e.Time.UTC().AppendFormat(b, timeFormat)
	b = append(b, '"')
	b = member(b, "method", e.Method)
	b = member(b, "request", e.Request)
	b = number(b, "item", uint64(max(0, e.Item)))
	b = member(b, "who", e.Who)
	b = member(b, "role", e.Role)
	b = member(b, "from", e.From)
	b = member(b, "target", e.Target)
	if e.Match != [16]byte{} {
		b = append(b, `,"match":"`...)
		b = hex.AppendEncode(b, e.Match[:])
		b = append(b, '"')
	}
	b = list(b, "claims", e.Claims)
	if len(e.Values) > 0 {
		b = append(b, `,"values":`...)
		b = append(b, e.Values...)
	}
	b = member(b, "rule", e.Rule)
	b = member(b, "compared", e.Compared)
	if e.Expires > 0 {
		b = append(b, `,"expires":"`...)
		b = time.Unix(e.Expires, 0).UTC().AppendFormat(b, time.RFC3339)
		b = append(b, '"')
	}
	b = member(b, "change", e.Change)
	b = member(b, "name", e.Name)
	b = member(b, "reason", e.Reason)
	b = member(b, "comment", e.Comment)
	b = member(b, "outcome", e.Outcome)
	b = member(b, "error", e.Error)
	b = member(b, "field", e.Field)
	b = member(b, "durability", e.Durability)
	b = member(b, "ack", e.Ack)
	b = list(b, "confirmed", e.Confirmed)
	return number(b, "count", e.Count)
}

const timeFormat = "2006-01-02T15:04:05.000000Z"

func member(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	return appendString(b, value)
}

func number(b []byte, name string, n uint64) []byte {
	if n == 0 {
		return b
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	return strconv.AppendUint(b, n, 10)
}

func list(b []byte, name string, values []string) []byte {
	if len(values) == 0 {
		return b
	}
	b = append(append(append(b, ',', '"'), name...), '"', ':', '[')
	for i, v := range values[:min(len(values), maxList)] {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, v)
	}
	return append(b, ']')
}

// appendString appends s as a JSON string on one line. What is no UTF-8 becomes U+FFFD; the line and paragraph separators of Unicode are escaped as well, since some readers end a
// line there.
func appendString(b []byte, s string) []byte {
	if len(s) > maxField {
		s = s[:maxField]
	}
	b = append(b, '"')
	plain := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		r, size := rune(c), 1
		if c >= utf8.RuneSelf {
			if r, size = utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError && r != '\u2028' && r != '\u2029' && r > 0x9f {
				i += size
				continue
			}
		}
		b = append(b, s[plain:i]...)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		default:
			b = append(b, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
		}
		i += size
		plain = i
	}
	return append(append(b, s[plain:]...), '"')
}

const digits = "0123456789abcdef"

// sealed appends a whole line: the number, a content, and the hash that it makes of them.
func (c *chain) sealed(b, content []byte) []byte {
	start := len(b)
	b = append(b, `{"n":`...)
	b = strconv.AppendUint(b, c.n+1, 10)
	b = append(b, content...)
	c.seal.hash(&c.sum, b[start:])
	c.n++
	b = append(b, hashMember...)
	b = hex.AppendEncode(b, c.sum[:])
	return append(b, '"', '}', '\n')
}

// begin is the content of the first line of a file, torn that of the line behind torn bytes.
func (c *chain) begin(now time.Time, node string, t torn) []byte {
	b := append([]byte(nil), `,"event":"begin","time":"`...)
	b = now.UTC().AppendFormat(b, timeFormat)
	b = append(b, `","format":1`...)
	b = member(b, "node", node)
	b = member(b, "prev", hex.EncodeToString(c.sum[:]))
	b = member(b, "seal", c.seal.name)
	b = member(b, "key", c.seal.id)
	return t.append(b)
}

func (t torn) content(now time.Time) []byte {
	b := append([]byte(nil), `,"event":"torn","time":"`...)
	b = now.UTC().AppendFormat(b, timeFormat)
	return t.append(append(b, '"'))
}

func (t torn) append(b []byte) []byte {
	if t.bytes == 0 {
		return b
	}
	b = number(b, "torn", uint64(t.bytes))
	return member(b, "torn_sha256", hex.EncodeToString(t.sum[:]))
}

// torn describes bytes that are no line, with the end of line behind them.
type torn struct {
	bytes int64
	sum   [32]byte
}
