package api

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// Limits of confirmations.
const (
	confirmTime = 2 * time.Minute // that a code is good for
	maxConfirms = 64              // that wait
	maxOfCaller = 8               // of these
)

// confirmations are the codes that callers have been told and may come back with. The zero confirmations is ready.
type confirmations struct {
	mu      sync.Mutex
	waiting []*confirmation // the oldest first
}

type confirmation struct {
	code   string
	caller string
	what   [sha256.Size]byte // hash of the request
	ends   time.Time
	used   string // the idempotency key of the request that has used it
}

// wide reports whether a match concerns every token, or every token of an issuer.
func wide(m revocation.Match) bool {
	return !slices.ContainsFunc(m.Names(), func(name string) bool { return name != "iss" })
}

// confirm lets a request pass that denies every token, or every token of an issuer, if it carries the code that was given for exactly it; else it
// returns an error with a code. A slip of the hand must not log out everybody.
func (s *Server) confirm(ctx context.Context, procedure string, m interface {
	proto.Message
	GetOptions() *revokdv1.WriteOptions
}, r *revocation.Request,
) error {
	if !wide(r.Match) || r.Action == revocation.Unblock {
		return nil
	}
	o := m.GetOptions()
	c := &confirmation{what: contentOf(procedure, m), ends: s.cfg.Now().Add(confirmTime)}
	if caller, known := Caller(ctx); known {
		c.caller = caller.String()
	}
	if s.confirms.use(c, o.GetConfirmation(), o.GetIdempotencyKey(), s.cfg.Now()) {
		return nil
	}
	if !s.confirms.add(c, s.cfg.Now()) {
		return errConfirms
	}
	st := s.node.Status()
	detail := &revokdv1.Confirmation{
		Code: c.code, ExpiresAt: timestamppb.New(c.ends), Effect: effectOf(r),
		LiveRecords: int64(st.Table.Items), LiveShapes: int32(st.Table.LiveShapes),
	}
	for _, name := range s.node.Policy().IssuerNames() {
		iss, narrow := r.Match.Get("iss")
		if text, _ := iss.AsString(); !narrow || text == name {
			detail.Issuers = append(detail.Issuers, name)
		}
	}
	return &withDetail{detail, errConfirm}
}

// contentOf is the hash of a request without what a retry may change.
func contentOf(procedure string, m proto.Message) [sha256.Size]byte {
	m = proto.Clone(m)
	if o, ok := m.(interface {
		GetOptions() *revokdv1.WriteOptions
	}); ok && o.GetOptions() != nil {
		o.GetOptions().Confirmation, o.GetOptions().IdempotencyKey = "", ""
		if proto.Size(o.GetOptions()) == 0 { // the first call needed none
			m.ProtoReflect().Clear(m.ProtoReflect().Descriptor().Fields().ByName("options"))
		}
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m) // it came from bytes
	return sha256.Sum256(append([]byte(procedure+"\x00"), b...))
}

// effectOf says what a request would deny. It names nobody.
func effectOf(r *revocation.Request) string {
	tokens := "every token of every issuer"
	if len(r.Match.Names()) > 0 {
		tokens = "every token of the issuer"
	}
	switch {
	case r.Action == revocation.Block:
		return tokens + ", old or new, until it is unblocked"
	case r.Below != nil:
		return fmt.Sprintf("%s whose claim %s is below %d, missing or no integer", tokens, r.Below.Claim, r.Below.Value)
	case r.IssuedBefore != 0:
		return tokens + " issued before " + time.UnixMilli(r.IssuedBefore).UTC().Format(time.RFC3339Nano)
	}
	return tokens + " issued before now"
}

// use reports whether a code was given for a request, and takes it: afterwards only retries of that request may use it, which the node recognises by
// their key.
func (c *confirmations) use(r *confirmation, code, key string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, w := range c.waiting {
		if subtle.ConstantTimeCompare([]byte(w.code), []byte(code)) == 0 || w.caller != r.caller || w.what != r.what || !now.Before(w.ends) {
			continue
		}
		switch {
		case w.used == "":
			w.used = key
			if key == "" { // no retry can be told from another call
				w.ends = now
			}
			return true
		case w.used == key:
			return true
		}
	}
	return false
}

// add keeps a new code, and returns false if there is no room. A caller's own oldest one makes place.
func (c *confirmations) add(r *confirmation, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(w *confirmation) bool { return !now.Before(w.ends) })
	oldest, own := -1, 0
	for i, w := range c.waiting {
		if w.caller == r.caller {
			if own++; oldest < 0 {
				oldest = i
			}
		}
	}
	switch {
	case own >= maxOfCaller:
		c.waiting = slices.Delete(c.waiting, oldest, oldest+1)
	case len(c.waiting) >= maxConfirms:
		return false
	}
	r.code = rand.Text()
	c.waiting = append(c.waiting, r)
	return true
}
