// Package next makes messages of package replication as a later version of the protocol may send them: with more at the end of the frames that
// may grow, and with a kind of frame that this version does not know.
//
// It knows where frames begin and end, no more, and promises that a reader of this version finds in the result what was in the message. Message may be
// called concurrently. The simulator uses it, and programs built with the tag nextversion.
package next

import "encoding/binary"

// Frame is a kind that this version does not know.
const Frame = 63

// fixed are the frames whose last field reaches to their end: records, a definition, scanned records, a control message, a leaf.
var fixed = map[byte]bool{4: true, 5: true, 10: true, 14: true, 17: true, 21: true}

// Message returns what a later version would send for a message.
func Message(message []byte) []byte {
	out := make([]byte, 0, len(message)+len(message)/2+16)
	for first := true; len(message) > 0; first = false {
		size, n := binary.Uvarint(message[1:])
		end := 1 + n + int(size)
		t, content := message[0], message[1+n:end]
		message = message[end:]
		more := []byte("more")
		if fixed[t] {
			more = nil
		}
		out = append(out, t)
		out = binary.AppendUvarint(out, size+uint64(len(more)))
		out = append(append(out, content...), more...)
		if first { // behind the hello at the earliest
			out = append(out, Frame, 3, 1, 2, 3)
		}
	}
	return out
}
