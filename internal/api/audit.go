package api

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/internal/audit"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// Callers who may not call at all can fill a disk with lines that say so: these many are written, the others counted.
const (
	strangersPerSecond = 10
	strangersAtOnce    = 100
)

// auditor records what callers do before they are answered. Without a log it does nothing.
type auditor struct {
	log    *audit.Log
	values bool // of claims, and not only their names
	goOn   bool // without it, if it cannot be written

	strangers *rate.Limiter
	mu        sync.Mutex
	unwritten uint64 // strangers who were too many
}

func newAuditor(c *Config) *auditor {
	return &auditor{log: c.Audit, values: c.AuditValues, goOn: c.AuditGoOn, strangers: rate.NewLimiter(strangersPerSecond, strangersAtOnce)}
}

// ready returns an error if nothing may be changed now, because nobody would know of it.
func (a *auditor) ready() error {
	if a.log == nil || a.goOn || a.log.Failed() == nil {
		return nil
	}
	return errAudit
}

// auditPatience bounds the wait for the audit's disk.
const auditPatience = 10 * time.Second

// append writes n lines. Its error is for the caller, who is not told then that anything was done.
func (a *auditor) append(ctx context.Context, n int, line func(i int, e *audit.Event)) error {
	if a.log == nil {
		return nil
	}
	// Who has gone away meanwhile is recorded like everybody else.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditPatience)
	defer cancel()
	if err := a.log.AppendEach(ctx, n, line); err != nil && !a.goOn {
		return errUnaudited
	}
	return nil
}

// trail makes the lines of one message.
type trail struct {
	*auditor
	base audit.Event // who, from where, in which call
}

func (s *Server) trail(ctx context.Context, procedure, id, from string) *trail {
	t := &trail{auditor: s.auditor, base: audit.Event{Kind: "write", Method: methodOf(procedure), Request: id, From: from}}
	t.base.Who, t.base.Role = who(ctx)
	return t
}

// who returns the name and the role of a caller; both are empty where nobody needs to say who he is.
func who(ctx context.Context) (name, role string) {
	if caller, known := Caller(ctx); known {
		name, role = caller.String(), string(caller.Role)
	}
	return name, role
}

func methodOf(procedure string) string { return procedure[strings.LastIndexByte(procedure, '/')+1:] }

func newRequestID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// wrote is what a handler tells the audit about the items of a message: the answer does not have all of it.
type wrote struct {
	results []node.Result
	matches []revocation.Match // only if their values are recorded
	receipt node.Receipt
}

// wrote is for the results of items, of which requests were handed to the node; places, unless nil, are theirs among the items.
func (a *auditor) wrote(requests []revocation.Request, places []int, results []node.Result, r node.Receipt) *wrote {
	w := &wrote{results: results, receipt: r}
	if !a.values {
		return w
	}
	w.matches = make([]revocation.Match, max(len(results), len(requests)))
	for i, request := range requests {
		at := i
		if places != nil {
			at = places[i]
		}
		w.matches[at] = request.Match
	}
	return w
}

// unary records a call; err is what ended it.
func (t *trail) unary(ctx context.Context, request any, w *wrote, err error) error {
	if m, ok := request.(*revokdv1.RevokeBatchRequest); ok && len(m.GetItems()) > 0 && len(m.GetItems()) <= maxItems {
		return t.items(ctx, m.GetItems(), 0, w, err)
	}
	if changesNothing(request) {
		return nil
	}
	if m, ok := request.(*revokdv1.RehearseRequest); ok {
		request = rehearsed(m)
		t.base.Kind = "rehearsal"
	}
	return t.append(ctx, 1, func(_ int, e *audit.Event) {
		*e = t.base
		switch m := request.(type) {
		case *revokdv1.RevokeRequest:
			t.revoke(e, m, 0, w, err)
		case *revokdv1.BlockRequest:
			t.block(e, revocation.ClassBlock, m.GetMatch(), m.GetReason(), m.GetComment(), w, err)
		case *revokdv1.UnblockRequest:
			t.block(e, revocation.ClassUnblock, m.GetMatch(), m.GetReason(), m.GetComment(), w, err)
		case *revokdv1.RevokeBatchRequest, nil:
			t.failed(e, err)
		default:
			t.change(e, request)
			e.Outcome = "done"
			if err != nil {
				t.failed(e, err)
			}
		}
	})
}

// items records items that were written together; before is how many of the call came before them.
func (t *trail) items(ctx context.Context, items []*revokdv1.RevokeRequest, before int64, w *wrote, err error) error {
	return t.append(ctx, len(items), func(i int, e *audit.Event) {
		*e = t.base
		e.Item = int(before) + i + 1
		t.revoke(e, items[i], i, w, err)
	})
}

// revoke is the line of the i-th item of a message.
func (t *trail) revoke(e *audit.Event, m *revokdv1.RevokeRequest, i int, w *wrote, err error) {
	e.Target = "match"
	if _, token := m.GetTarget().(*revokdv1.RevokeRequest_Token); token {
		switch m.GetScope() {
		case revokdv1.Scope_SCOPE_SESSION:
			e.Target = "session"
		case revokdv1.Scope_SCOPE_SUBJECT:
			e.Target = "subject"
		default:
			e.Target = "token"
		}
	}
	t.said(e, m.GetReason(), m.GetComment())
	t.became(e, i, w, err)
	if e.Claims == nil {
		e.Claims = namesOf(m.GetMatch())
	}
}

// block is the line of a block or unblock.
func (t *trail) block(e *audit.Event, class revocation.Class, m *revokdv1.Match, reason revokdv1.Reason, comment string, w *wrote, err error) {
	e.Target, e.Rule = "match", class.String()
	t.said(e, reason, comment)
	t.became(e, 0, w, err)
	if e.Claims == nil {
		e.Claims = namesOf(m)
	}
}

// said takes what the caller says about the write; the comment as he sent it, which may be what the request is refused for: it is cut.
func (t *trail) said(e *audit.Event, reason revokdv1.Reason, comment string) {
	e.Comment = cut(comment, maxComment)
	if reason != revokdv1.Reason_REASON_UNSPECIFIED {
		e.Reason = revocation.Reason(min(max(reason, 0), 255)).String()
	}
}

// became takes what became of the i-th item of a message. What fewer nodes than asked for have confirmed is in force all the same.
func (t *trail) became(e *audit.Event, i int, w *wrote, err error) {
	var r node.Result
	if w != nil && i < len(w.results) {
		if r = w.results[i]; r.Err != nil {
			err = r.Err
		}
	}
	if w != nil && i < len(w.matches) {
		if values, jsonErr := w.matches[i].MarshalJSON(); jsonErr == nil && len(values) > len("{}") {
			e.Values = values
		}
	}
	if f := r.Fingerprint; f != (revocation.Fingerprint{}) {
		binary.BigEndian.PutUint64(e.Match[:8], f.Hi)
		binary.BigEndian.PutUint64(e.Match[8:], f.Lo)
	}
	if r.Rule.Shape != nil {
		e.Rule, e.Claims, e.Compared, e.Expires = r.Rule.Class.String(), r.Rule.Shape.Names, r.Rule.Shape.Compared, int64(r.Rule.ExpiresAt)
	}
	if e.Kind == "write" && r.Outcome != 0 && r.Outcome != node.OutcomeAlreadyExpired {
		e.Durability, e.Ack, e.Confirmed = w.receipt.Durability.String(), w.receipt.Ack.String(), w.receipt.Confirmed
	}
	if err != nil {
		t.failed(e, err)
		return
	}
	e.Outcome = r.Outcome.String()
}

// failed says why nothing was acknowledged: refused is for good and changed nothing; unconfirmed is in force on this node; after failed, whether it was
// carried out may be open.
func (t *trail) failed(e *audit.Event, err error) {
	o, _, _ := outcomeOf(err)
	e.Outcome, e.Error, e.Field = "refused", o.kind, o.field
	switch {
	case errors.Is(err, node.ErrAck):
		e.Outcome = "unconfirmed"
	case errors.Is(err, errAudit):
	case o.code == connect.CodeInternal, o.code == connect.CodeUnavailable, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e.Outcome = "failed"
	}
}

// receipt records how widely all of a stream was confirmed at its end.
func (t *trail) receipt(ctx context.Context, r node.Receipt, items int64, err error) error {
	return t.append(ctx, 1, func(_ int, e *audit.Event) {
		*e = t.base
		e.Kind, e.Outcome, e.Count = "receipt", "confirmed", uint64(items)
		e.Durability, e.Ack, e.Confirmed = r.Durability.String(), r.Ack.String(), r.Confirmed
		if err != nil {
			t.failed(e, err)
		}
	})
}

// changesNothing reports whether a request of an audited procedure changes nothing.
func changesNothing(request any) bool {
	switch m := request.(type) {
	case *revokdv1.GossipKeysRequest:
		return m.GetChange() == nil
	case *revokdv1.FingerprintKeysRequest:
		return m.GetChange() == nil
	}
	return false
}

// change is the line of a change of the cluster.
func (t *trail) change(e *audit.Event, request any) {
	e.Kind = "cluster"
	switch m := request.(type) {
	case *revokdv1.JoinRequest:
		e.Change, e.Name = "join", strings.Join(m.GetAddresses(), ",")
	case *revokdv1.LeaveRequest:
		e.Change = "leave"
	case *revokdv1.ForgetRequest:
		e.Change, e.Name = "forget", m.GetName()
	case *revokdv1.ChangeVotersRequest:
		switch c := m.GetChange().(type) {
		case *revokdv1.ChangeVotersRequest_Add:
			e.Change, e.Name = "add", c.Add
		case *revokdv1.ChangeVotersRequest_Remove:
			e.Change, e.Name = "remove", c.Remove
		case *revokdv1.ChangeVotersRequest_AcceptLoss:
			e.Change, e.Name = "accept_loss", c.AcceptLoss
		}
	case *revokdv1.GossipKeysRequest:
		switch c := m.GetChange().(type) {
		case *revokdv1.GossipKeysRequest_Install:
			e.Change = "install"
			if key, err := base64.StdEncoding.DecodeString(c.Install); err == nil {
				e.Name = cluster.KeyID(key)
			}
		case *revokdv1.GossipKeysRequest_Use:
			e.Change, e.Name = "use", c.Use
		case *revokdv1.GossipKeysRequest_Remove:
			e.Change, e.Name = "remove", c.Remove
		}
	case *revokdv1.FingerprintKeysRequest:
		switch c := m.GetChange().(type) {
		case *revokdv1.FingerprintKeysRequest_Add:
			e.Change = "add"
		case *revokdv1.FingerprintKeysRequest_Use:
			e.Change, e.Name = "use", c.Use
		case *revokdv1.FingerprintKeysRequest_Drop:
			e.Change, e.Name = "drop", c.Drop
		}
	}
	e.Name = cut(e.Name, maxComment)
}

// stranger records a request that was refused before it was read, as far as they are not too many.
func (s *Server) stranger(r *http.Request, err error) {
	a := s.auditor
	if a.log == nil || !isAudited(r.URL.Path) {
		return
	}
	if !a.strangers.Allow() {
		a.mu.Lock()
		a.unwritten++
		a.mu.Unlock()
		return
	}
	a.mu.Lock()
	others := a.unwritten
	a.unwritten = 0
	a.mu.Unlock()
	t := s.trail(r.Context(), r.URL.Path, "", r.RemoteAddr)
	lines := 1
	if others > 0 {
		lines++
	}
	_ = t.append(r.Context(), lines, func(i int, e *audit.Event) { // the request is refused anyhow
		if i == 1 {
			*e = audit.Event{Kind: "access", Outcome: "refused", Count: others}
			return
		}
		*e = t.base
		e.Kind = "access"
		t.failed(e, err)
	})
}

// namesOf returns the names of a match that came to nothing, as the caller sent them: they are cut, and at most as many as a match may have.
func namesOf(m *revokdv1.Match) []string {
	if len(m.GetClaims())+len(m.GetIntegers())+len(m.GetBooleans()) > revocation.MaxMatchClaims {
		return []string{"(too many)"}
	}
	var names []string
	for name := range m.GetClaims() {
		names = append(names, cut(name, revocation.MaxNameBytes))
	}
	for name := range m.GetIntegers() {
		names = append(names, cut(name, revocation.MaxNameBytes))
	}
	for name := range m.GetBooleans() {
		names = append(names, cut(name, revocation.MaxNameBytes))
	}
	slices.Sort(names)
	return names
}

func cut(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "?")
}

// isAudited reports whether calls of a procedure are audited.
func isAudited(procedure string) bool {
	switch procedure {
	case revokdv1connect.RevocationServiceRevokeProcedure, revokdv1connect.RevocationServiceRevokeBatchProcedure, streamProcedure,
		revokdv1connect.RevocationServiceRehearseProcedure,
		revokdv1connect.RevocationServiceBlockProcedure, revokdv1connect.RevocationServiceUnblockProcedure,
		revokdv1connect.ClusterServiceJoinProcedure, revokdv1connect.ClusterServiceLeaveProcedure, revokdv1connect.ClusterServiceForgetProcedure,
		revokdv1connect.ClusterServiceChangeVotersProcedure, revokdv1connect.ClusterServiceGossipKeysProcedure,
		revokdv1connect.ClusterServiceFingerprintKeysProcedure, backupPath:
		return true
	}
	return false
}
