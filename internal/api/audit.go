package api

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-hclog"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// maxAuditLines bounds the lines of one message of many items. Equal ones are one line with a count, so that only a message
// of many different refusals comes here; what is beyond is summed up in a line without details.
const maxAuditLines = 64

// audited is what the audit log says about a write. It has names of claims and no values: a line must be worth
// nothing to whoever reads logs.
type audited struct {
	outcome  string // of node.Outcome, else refused or failed
	rule     string
	claims   []string
	compared string
	target   string // match, token, session or subject: what the caller named
	reason   string
	comment  string
	kind     string // of a refusal: see outcome
	field    string
}

func (a *audited) equal(b *audited) bool {
	return a.outcome == b.outcome && a.rule == b.rule && a.compared == b.compared && a.target == b.target && a.reason == b.reason &&
		a.comment == b.comment && a.kind == b.kind && a.field == b.field && slices.Equal(a.claims, b.claims)
}

// audit collects the lines of one message.
type audit struct {
	log    hclog.Logger
	caller string // empty without TLS
	method string
	id     string // of the request; a stream has one for all its messages
	lines  []audited
	counts []int
}

func (s *Server) audit(ctx context.Context, procedure, id string) *audit {
	caller, known := Caller(ctx)
	who := ""
	if known {
		who = caller.String()
	}
	return &audit{log: s.cfg.Logger.Named("audit"), caller: who, method: procedure[strings.LastIndexByte(procedure, '/')+1:], id: id}
}

func newRequestID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// add takes the line of one item.
func (a *audit) add(l audited) {
	// Backwards: neighbours are mostly equal.
	for i := len(a.lines) - 1; i >= 0; i-- {
		if a.lines[i].equal(&l) {
			a.counts[i]++
			return
		}
	}
	if len(a.lines) == maxAuditLines {
		l = audited{outcome: "others"}
		if a.lines[maxAuditLines-1].equal(&l) {
			a.counts[maxAuditLines-1]++
			return
		}
		a.lines[maxAuditLines-1] = l
		a.counts[maxAuditLines-1]++
		return
	}
	a.lines, a.counts = append(a.lines, l), append(a.counts, 1)
}

// write logs what was collected.
func (a *audit) write() {
	for i := range a.lines {
		l := &a.lines[i]
		a.log.Info("write", "method", a.method, "outcome", l.outcome, "count", a.counts[i], "target", l.target, "rule", l.rule,
			"claims", strings.Join(l.claims, ","), "compared", l.compared, "reason", l.reason, "kind", l.kind, "field", l.field,
			"comment", l.comment, "caller", a.caller, "request", a.id)
	}
}

// unary logs the writes of a call; err is what ended it.
func (a *audit) unary(request any, answer connect.AnyResponse, err error) {
	switch m := request.(type) {
	case *revokdv1.RevokeRequest:
		a.one(ofRevoke(m), answer, err)
	case *revokdv1.BlockRequest:
		l := ofMatch(m.GetMatch(), m.GetReason(), m.GetComment())
		l.rule = revocation.ClassBlock.String()
		a.one(l, answer, err)
	case *revokdv1.UnblockRequest:
		l := ofMatch(m.GetMatch(), m.GetReason(), m.GetComment())
		l.rule = revocation.ClassUnblock.String()
		a.one(l, answer, err)
	case *revokdv1.RevokeBatchRequest:
		var results []*revokdv1.RevokeResult
		if batch, ok := answer.(*connect.Response[revokdv1.RevokeBatchResponse]); ok && err == nil {
			results = batch.Msg.GetResults()
		}
		if len(m.GetItems()) == 0 || len(m.GetItems()) > maxItems {
			a.add(new(audited).failed(err))
		} else {
			for i, item := range m.GetItems() {
				switch l := ofRevoke(item); {
				case i >= len(results):
					a.add(l.failed(err))
				case results[i].GetError() != nil:
					d := results[i].GetError().GetDetail()
					l.outcome, l.kind, l.field = "refused", d.GetKind(), d.GetField()
					a.add(l)
				default:
					a.add(l.done(results[i].GetResponse()))
				}
			}
		}
	default:
		a.cluster(request, err)
		return
	}
	a.write()
}

// cluster logs a change of the cluster.
func (a *audit) cluster(request any, err error) {
	change, name := "", ""
	switch m := request.(type) {
	case *revokdv1.JoinRequest:
		change, name = "join", strings.Join(m.GetAddresses(), ",")
	case *revokdv1.LeaveRequest:
		change = "leave"
	case *revokdv1.ChangeVotersRequest:
		switch c := m.GetChange().(type) {
		case *revokdv1.ChangeVotersRequest_Add:
			change, name = "add", c.Add
		case *revokdv1.ChangeVotersRequest_Remove:
			change, name = "remove", c.Remove
		case *revokdv1.ChangeVotersRequest_AcceptLoss:
			change, name = "accept_loss", c.AcceptLoss
		}
	case *revokdv1.GossipKeysRequest:
		switch c := m.GetChange().(type) {
		case *revokdv1.GossipKeysRequest_Install:
			change = "install"
			if key, err := base64.StdEncoding.DecodeString(c.Install); err == nil {
				name = cluster.KeyID(key)
			}
		case *revokdv1.GossipKeysRequest_Use:
			change, name = "use", c.Use
		case *revokdv1.GossipKeysRequest_Remove:
			change, name = "remove", c.Remove
		}
	}
	if change == "" {
		return // a question
	}
	l := audited{outcome: "done"}
	if err != nil {
		l = l.failed(err)
	}
	a.log.Info("cluster", "method", a.method, "change", change, "name", cut(name, 256), "outcome", l.outcome, "kind", l.kind, "field", l.field,
		"caller", a.caller, "request", a.id)
}

func (a *audit) one(l audited, answer connect.AnyResponse, err error) {
	if res, ok := answer.(*connect.Response[revokdv1.RevokeResponse]); ok && err == nil {
		a.add(l.done(res.Msg))
		return
	}
	a.add(l.failed(err))
}

// items logs items of a stream; results are nil if err ended the call.
func (a *audit) items(items []*revokdv1.RevokeRequest, results []node.Result, err error) {
	for i, item := range items {
		l := ofRevoke(item)
		switch {
		case err != nil:
			a.add(l.failed(err))
		case results[i].Err != nil:
			a.add(l.failed(results[i].Err))
		default:
			l.outcome = results[i].Outcome.String()
			if r := results[i].Rule; r.Shape != nil {
				l.rule, l.claims, l.compared = r.Class.String(), r.Shape.Names, r.Shape.Compared
			}
			a.add(l)
		}
	}
	a.write()
}

func ofRevoke(m *revokdv1.RevokeRequest) audited {
	l := ofMatch(m.GetMatch(), m.GetReason(), m.GetComment())
	switch _, token := m.GetTarget().(*revokdv1.RevokeRequest_Token); {
	case !token:
	case m.GetScope() == revokdv1.Scope_SCOPE_SESSION:
		l.target = "session"
	case m.GetScope() == revokdv1.Scope_SCOPE_SUBJECT:
		l.target = "subject"
	default:
		l.target = "token"
	}
	return l
}

// ofMatch takes names and comment as the caller sent them, which may be what the request is refused for: they are cut.
func ofMatch(m *revokdv1.Match, reason revokdv1.Reason, comment string) audited {
	l := audited{target: "match", comment: cut(comment, maxComment)}
	if reason != revokdv1.Reason_REASON_UNSPECIFIED {
		l.reason = revocation.Reason(min(max(reason, 0), 255)).String()
	}
	for _, names := range [...][]string{keysOf(m.GetClaims()), keysOf(m.GetIntegers()), keysOf(m.GetBooleans())} {
		l.claims = append(l.claims, names...)
	}
	slices.Sort(l.claims)
	return l
}

// keysOf returns the first names of a map in order, at most as many as a match may have.
func keysOf[V any](m map[string]V) []string {
	if len(m) > revocation.MaxMatchClaims {
		return []string{"(too many)"}
	}
	var names []string
	for name := range m {
		names = append(names, cut(name, revocation.MaxNameBytes))
	}
	return names
}

func cut(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.ToValidUTF8(s, "?")
}

// done completes the line with what was answered.
func (a audited) done(m *revokdv1.RevokeResponse) audited {
	a.outcome = strings.ToLower(strings.TrimPrefix(m.GetOutcome().String(), "OUTCOME_"))
	if r := m.GetRule(); r != nil {
		a.rule = strings.ToLower(strings.TrimPrefix(r.GetKind().String(), "RULE_KIND_"))
		a.claims, a.compared = r.GetClaims(), r.GetCompared()
	}
	return a
}

// failed completes the line with why nothing was acknowledged: refused is for good and changed nothing; unconfirmed is in force on this node; after
// failed, whether it was carried out may be open.
func (a audited) failed(err error) audited {
	o, _, _ := outcomeOf(err)
	a.outcome, a.kind, a.field = "refused", o.kind, o.field
	switch {
	case errors.Is(err, node.ErrAck):
		a.outcome = "unconfirmed"
	case o.code == connect.CodeInternal, o.code == connect.CodeUnavailable, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		a.outcome = "failed"
	}
	return a
}

// isAudited reports whether calls of a procedure are audited.
func isAudited(procedure string) bool {
	switch procedure {
	case revokdv1connect.RevocationServiceRevokeProcedure, revokdv1connect.RevocationServiceRevokeBatchProcedure,
		revokdv1connect.RevocationServiceBlockProcedure, revokdv1connect.RevocationServiceUnblockProcedure,
		revokdv1connect.ClusterServiceJoinProcedure, revokdv1connect.ClusterServiceLeaveProcedure,
		revokdv1connect.ClusterServiceChangeVotersProcedure, revokdv1connect.ClusterServiceGossipKeysProcedure:
		return true
	}
	return false
}
