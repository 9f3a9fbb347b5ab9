package api

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
	"github.com/revokd/revokd/journal"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
)

// Refusals that the API decides itself; the others come from the packages below.
var (
	errHost         = errors.New("host is not one of ours")
	errCrossSite    = errors.New("cross-site request")
	errAnyIssuer    = errors.New("match without iss")
	errKeepDenied   = errors.New("what is to be kept is not active")
	errTooLarge     = errors.New("message is too large")
	errSlow         = errors.New("request did not arrive in time")
	errBody         = errors.New("request could not be read")
	errOverload     = errors.New("too many bytes of requests")
	errStreams      = errors.New("too many streams")
	errIdle         = errors.New("stream is idle")
	errRole         = errors.New("the caller's role may not")
	errBackups      = errors.New("a backup is being made")
	errFilters      = errors.New("too many filters are being sent")
	errOtherKey     = errors.New("the caller has another fingerprint key")
	errStopping     = errors.New("server stops")
	errPanic        = errors.New("handler panicked")
	errNoCredential = errors.New("no credential")
	errPlaintext    = errors.New("a token without TLS")
	errFailures     = errors.New("too many tokens that are not ours")
	errConfirm      = errors.New("to be confirmed")
	errConfirms     = errors.New("too many confirmations are waited for")
	errManyWide     = errors.New("a global deny among others")
	errRate         = errors.New("more than may be written in a second")
	errGrant        = errors.New("the caller is limited to other matches")
	errAudit        = errors.New("the audit cannot be written")
	errUnaudited    = errors.New("the call could not be recorded")
	errNoIdentity   = errors.New("no secrets are handed out")
)

// outcome is what a caller is told about an error.
type outcome struct {
	code    connect.Code
	kind    string // of the ErrorDetail: a closed list, see docs/api.md
	field   string
	limit   string
	message string // constant: errors from below may quote what must not leave
	retry   int    // seconds after which the same request may succeed; 0: it will not
}

// outcomes maps every sentinel that can reach the API. The first that matches wins.
var outcomes = []struct {
	err error
	outcome
}{
	{token.ErrMalformed, outcome{code: connect.CodeInvalidArgument, kind: "malformed", field: "token", message: "the token is no signed JWT in compact form"}},
	{token.ErrTooLarge, outcome{code: connect.CodeInvalidArgument, kind: "too_large", field: "token", message: "the token is too long"}},
	{token.ErrUnsigned, outcome{code: connect.CodeInvalidArgument, kind: "unsigned", field: "token", message: "the token is not signed"}},
	{token.ErrAlgorithm, outcome{code: connect.CodeInvalidArgument, kind: "algorithm", field: "token", message: "the token's algorithm is not one of its issuer's"}},
	{token.ErrUnknownIssuer, outcome{code: connect.CodeInvalidArgument, kind: "unknown_issuer", field: "token", message: "the token's issuer is not configured on this node"}},
	{token.ErrUnknownKey, outcome{code: connect.CodeInvalidArgument, kind: "unknown_key", field: "token", message: "the token's key is not in its issuer's key set"}},
	{token.ErrSignature, outcome{code: connect.CodeInvalidArgument, kind: "signature", field: "token", message: "the token's signature is wrong"}},
	{token.ErrType, outcome{code: connect.CodeInvalidArgument, kind: "type", field: "token", message: "the token is of a type that its issuer's settings do not accept"}},
	{token.ErrAudience, outcome{code: connect.CodeInvalidArgument, kind: "audience", field: "token", message: "the token is for another audience"}},
	{token.ErrDuplicateClaim, outcome{code: connect.CodeInvalidArgument, kind: "duplicate_claim", field: "token", message: "the token names a claim twice"}},
	{token.ErrNotYetValid, outcome{code: connect.CodeFailedPrecondition, kind: "not_yet_valid", field: "token", message: "the token is not valid yet"}},
	{token.ErrExpired, outcome{code: connect.CodeFailedPrecondition, kind: "expired", field: "token", message: "the token has expired"}},
	{token.ErrKeysUnavailable, outcome{code: connect.CodeUnavailable, kind: "keys_unavailable", field: "token", message: "the issuer's keys cannot be loaded", retry: 5}},

	{revocation.ErrDuplicateClaim, outcome{code: connect.CodeInvalidArgument, kind: "duplicate_claim", field: "payload", message: "a claim is named twice"}},
	{revocation.ErrFull, outcome{code: connect.CodeResourceExhausted, kind: "full", message: "the limit of live records is reached; nothing was dropped", retry: 30}},
	{revocation.ErrWriterShapes, outcome{code: connect.CodeResourceExhausted, kind: "shapes", limit: "at most 16 combinations of claim names with live records that one writer was the first to use", message: "this writer has made too many combinations of claim names", retry: 30}},
	{revocation.ErrShapes, outcome{code: connect.CodeResourceExhausted, kind: "shapes", limit: "at most 64 combinations of claim names with live records, 8 of them for admins only", message: "too many combinations of claim names", retry: 30}},

	{node.ErrQuota, outcome{code: connect.CodeResourceExhausted, kind: "quota", field: "match", message: "the quota of live revocations of this issuer, or of this grant, is used up; nothing was dropped", retry: 30}},
	{node.ErrNotReady, outcome{code: connect.CodeUnavailable, kind: "not_ready", message: "the node is not ready", retry: 1}},
	{node.ErrClock, outcome{code: connect.CodeUnavailable, kind: "clock", limit: "state issued_before and expires_at, or wait", message: "the node's wall clock cannot be believed and the request needs it", retry: 5}},
	{node.ErrBusy, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "too many writes are waiting", retry: 1}},
	{node.ErrNoJournal, outcome{code: connect.CodeFailedPrecondition, kind: "not_allowed", limit: "durability disk", message: "the node has no journal: there is nothing to back up"}},
	{node.ErrAck, outcome{code: connect.CodeDeadlineExceeded, kind: "ack", field: "options.ack", message: "the write is durable on this node and will reach the others; fewer than asked for have confirmed it in time, see the receipt"}},
	{node.ErrSuperseded, outcome{code: connect.CodeAborted, kind: "superseded", message: "opposite calls for the same match have won each time: this one is not in force"}},
	{node.ErrNoCluster, outcome{code: connect.CodeFailedPrecondition, kind: "no_cluster", message: "the node does not belong to a cluster"}},
	{voters.ErrNoConfig, outcome{code: connect.CodeFailedPrecondition, kind: "voters", message: "there are no voters yet"}},
	{voters.ErrPresent, outcome{code: connect.CodeFailedPrecondition, kind: "voters", field: "add", message: "the node is a voter already, with another data directory: it looks after that itself"}},
	{voters.ErrFull, outcome{code: connect.CodeFailedPrecondition, kind: "voters", field: "add", limit: "at most 64 voters", message: "there are too many voters"}},
	{voters.ErrLast, outcome{code: connect.CodeFailedPrecondition, kind: "voters", field: "remove", message: "the last voter cannot be removed"}},
	{voters.ErrUnknown, outcome{code: connect.CodeFailedPrecondition, kind: "voters", field: "accept_loss", message: "no voter has that name"}},
	{voters.ErrNotVoter, outcome{code: connect.CodeFailedPrecondition, kind: "voters", field: "accept_loss", message: "the node that is asked would not be a voter: ask one that is"}},
	{voters.ErrName, outcome{code: connect.CodeInvalidArgument, kind: "malformed", field: "change", limit: "1 to 64 bytes", message: "no node can have that name"}},
	{voters.ErrBusy, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "too many changes of the voters are waiting", retry: 5}},
	{voters.ErrTimeout, outcome{code: connect.CodeFailedPrecondition, kind: "voters", message: "the voters were not changed in time; the change may still come into force"}},
	{node.ErrVoters, outcome{code: connect.CodeFailedPrecondition, kind: "voters", message: "the voters were not changed, or not yet"}},
	{node.ErrKeys, outcome{code: connect.CodeFailedPrecondition, kind: "fingerprint_keys", message: "the fingerprint keys were not changed, or not everywhere yet"}},
	{node.ErrSession, outcome{code: connect.CodeAborted, kind: "session", message: "the session is not wanted: there is one already, or the node is not ready"}},
	{replication.ErrIncompatible, outcome{code: connect.CodePermissionDenied, kind: "incompatible", message: "the peer belongs to another cluster, has another fingerprint key or speaks another version"}},
	{replication.ErrProtocol, outcome{code: connect.CodeInvalidArgument, kind: "malformed", field: "frames", message: "the message is malformed"}},
	{replication.ErrRefused, outcome{code: connect.CodeInvalidArgument, kind: "refused", field: "frames", message: "a record was refused"}},
	{replication.ErrDefinition, outcome{code: connect.CodeAborted, kind: "session", field: "frames", message: "the definition of a record is missing: begin another session"}},
	{cluster.ErrSeed, outcome{code: connect.CodeInvalidArgument, kind: "malformed", field: "addresses", limit: "host:port, dns+name:port or dnssrv+name", message: "an address cannot be used"}},
	{cluster.ErrKeySize, outcome{code: connect.CodeInvalidArgument, kind: "malformed", field: "install", limit: "16, 24 or 32 bytes in base64", message: "a gossip key has 16, 24 or 32 bytes"}},
	{cluster.ErrKeyLimit, outcome{code: connect.CodeResourceExhausted, kind: "full", field: "install", limit: "at most 8 keys", message: "too many gossip keys: remove one first", retry: 1}},
	{cluster.ErrUnknownKey, outcome{code: connect.CodeInvalidArgument, kind: "unknown_key", field: "id", message: "no such gossip key on this node"}},
	{cluster.ErrPrimaryKey, outcome{code: connect.CodeFailedPrecondition, kind: "conflict", field: "remove", message: "the gossip key in use cannot be removed: use another one first"}},
	{errGossipKeys, outcome{code: connect.CodeFailedPrecondition, kind: "gossip_keys", message: "the gossip keys were not changed on any node"}},
	{errForget, outcome{code: connect.CodeFailedPrecondition, kind: "member", message: "the member was not forgotten, or not everywhere yet"}},
	{cluster.ErrPresent, outcome{code: connect.CodeFailedPrecondition, kind: "member", message: "the member is alive"}},
	{cluster.ErrNoKey, outcome{code: connect.CodeFailedPrecondition, kind: "no_cluster", field: "change", message: "gossip is not encrypted on this node"}},
	{cluster.ErrNotRunning, outcome{code: connect.CodeUnavailable, kind: "not_ready", message: "gossip is not running", retry: 1}},
	{errNoIdentity, outcome{code: connect.CodePermissionDenied, kind: "not_allowed", message: "this node hands out no secrets: it is not for development"}},
	{node.ErrTooMany, outcome{code: connect.CodeInvalidArgument, kind: "out_of_range", field: "items", limit: "1 to 1000", message: "1 to 1000 items in one message"}},
	{node.ErrIdempotencyConflict, outcome{code: connect.CodeAlreadyExists, kind: "conflict", field: "options.idempotency_key", message: "the idempotency key was used for another request"}},
	{journal.ErrFull, outcome{code: connect.CodeResourceExhausted, kind: "disk_full", message: "the disk is full; checks go on", retry: 30}},
	{journal.ErrDisk, outcome{code: connect.CodeUnavailable, kind: "disk", message: "the disk refuses writes; checks go on", retry: 30}},

	{errHost, outcome{code: connect.CodePermissionDenied, kind: "host", field: "host", limit: "localhost, a loopback address or a configured name", message: "this server does not answer to that Host"}},
	{errCrossSite, outcome{code: connect.CodePermissionDenied, kind: "cross_site", field: "origin", limit: "requests of the same origin", message: "cross-site requests are refused"}},
	{errNoCredential, outcome{code: connect.CodeUnauthenticated, kind: "unauthenticated", field: "certificate", limit: "of the cluster's authority, or of --credentials", message: "this needs a client certificate or a bearer token in force"}},
	{errPlaintext, outcome{code: connect.CodePermissionDenied, kind: "plaintext", field: "authorization", limit: "over TLS only, or from a loopback address", message: "a bearer token was sent where others could read it: replace it"}},
	{errRate, outcome{code: connect.CodeResourceExhausted, kind: "rate", retry: 1, limit: "--writer-rate, --bulk-rate, --issuer-rate, or the rate of the credential", message: "this writer, or all writers of the issuer together, write more than they may"}},
	{errFailures, outcome{code: connect.CodeResourceExhausted, kind: "attempts", field: "authorization", limit: "10 tokens a minute that are not in force, from one address", message: "too many attempts with tokens that are not in force", retry: 6}},
	{errGrant, outcome{code: connect.CodePermissionDenied, kind: "grant", field: "match", limit: "the claims and values that the caller is granted", message: "the caller is limited to certain issuers or tenants, and the match must name one of them"}},
	{errConfirm, outcome{code: connect.CodeFailedPrecondition, kind: "confirm", field: "options.confirmation", limit: "the code of the Confirmation in the details, within 2 minutes, once", message: "nothing was done: this would deny every token there is, or of an issuer; the same request with the code does it"}},
	{errManyWide, outcome{code: connect.CodeInvalidArgument, kind: "confirm", field: "match", limit: "in a call of its own", message: "what denies every token, or every token of an issuer, has to be confirmed, which many at once cannot be"}},
	{errConfirms, outcome{code: connect.CodeResourceExhausted, kind: "busy", field: "options.confirmation", limit: "64 at once", message: "too many confirmations are waited for", retry: 30}},
	{errRole, outcome{code: connect.CodePermissionDenied, kind: "not_allowed", field: "certificate", message: "the caller's role may not do this"}},
	{errAnyIssuer, outcome{code: connect.CodePermissionDenied, kind: "not_allowed", field: "match.iss", limit: "an issuer", message: "a match without iss concerns every issuer and is not allowed here"}},
	{errKeepDenied, outcome{code: connect.CodeFailedPrecondition, kind: "conflict", field: "keep", limit: "what is kept must be active", message: "what is to be kept is revoked, or cannot be judged"}},
	{errTooLarge, outcome{code: connect.CodeInvalidArgument, kind: "too_large", field: "body", message: "the request's message is too large"}},
	{errSlow, outcome{code: connect.CodeDeadlineExceeded, kind: "timeout", field: "body", message: "the request did not arrive in time"}},
	{errBody, outcome{code: connect.CodeCanceled, kind: "canceled", field: "body", message: "the request could not be read to its end"}},
	{errOverload, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "too many requests at once", retry: 1}},
	{errStreams, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "too many streams at once", retry: 5}},
	{errBackups, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "another backup is being made", retry: 5}},
	{errFilters, outcome{code: connect.CodeResourceExhausted, kind: "busy", message: "too many filters are being sent", retry: 5}},
	{errOtherKey, outcome{code: connect.CodePermissionDenied, kind: "incompatible", field: "key_id", message: "the caller has another fingerprint key"}},
	{errIdle, outcome{code: connect.CodeDeadlineExceeded, kind: "timeout", message: "no message came for too long; resume at acknowledged"}},
	{errStopping, outcome{code: connect.CodeUnavailable, kind: "not_ready", message: "the node is stopping; resume at acknowledged on another", retry: 1}},

	{errAudit, outcome{code: connect.CodeUnavailable, kind: "audit", message: "nothing was changed: the audit of this node cannot be written", retry: 1}},
	{errUnaudited, outcome{code: connect.CodeUnavailable, kind: "audit", message: "it was carried out, but the audit of this node could not be written", retry: 1}},

	{errPanic, internal},

	{context.Canceled, outcome{code: connect.CodeCanceled, kind: "canceled", message: "the call was canceled; whether it was carried out is open"}},
	{context.DeadlineExceeded, outcome{code: connect.CodeDeadlineExceeded, kind: "timeout", message: "the call took too long; whether it was carried out is open"}},
}

// internal is the outcome of everything that is not in the table.
var internal = outcome{code: connect.CodeInternal, kind: "internal", message: "internal error"}

// withDetail is an error with which something goes to the caller: the receipt of a write that fewer nodes than asked for have confirmed in time, or a
// confirmation.
type withDetail struct {
	detail proto.Message
	err    error
}

func (e *withDetail) Error() string { return e.err.Error() }
func (e *withDetail) Unwrap() error { return e.err }

// inField says in which field of the request an error arose.
type inField struct {
	field string
	err   error
}

func (e *inField) Error() string { return e.field + ": " + e.err.Error() }
func (e *inField) Unwrap() error { return e.err }

// bad is a field of a request that can never be accepted as it is.
func bad(field, kind, valueKind, limit string) error {
	return &revocation.FieldError{Field: field, Kind: kind, ValueKind: valueKind, Limit: limit}
}

// outcomeOf judges an error; known is false if it is in no table.
func outcomeOf(err error) (o outcome, valueKind string, known bool) {
	for _, row := range outcomes {
		if errors.Is(err, row.err) {
			o, known = row.outcome, true
			break
		}
	}
	if field, ok := errors.AsType[*revocation.FieldError](err); ok {
		if !known {
			o, known = outcome{code: connect.CodeInvalidArgument, kind: field.Kind, field: field.Field, message: field.Error()}, true
		}
		if o.limit == "" {
			o.limit, valueKind = field.Limit, field.ValueKind
		}
	}
	if waits, ok := errors.AsType[*voters.WaitError](err); ok {
		o.limit = "it waits for " + waits.For
	}
	if keys, ok := errors.AsType[*node.KeysError](err); ok {
		o.limit = keys.Why
	}
	if reason, ok := errors.AsType[*because](err); ok {
		o.limit = reason.why
	}
	if !known {
		o = internal
	}
	if fast, ok := errors.AsType[*tooFast](err); ok {
		o.retry = int(fast.wait/time.Second) + 1
	}
	if quota, ok := errors.AsType[*node.QuotaError](err); ok {
		o.limit = fmt.Sprintf("at most %d live revocations for one {%s}: ", quota.Limit, strings.Join(quota.Claims, ","))
		if quota.Grant {
			o.limit += "records of the credential"
		} else {
			o.field, o.limit = "match.iss", o.limit+"--issuer-records"
		}
	}
	if where, ok := errors.AsType[*inField](err); ok && known {
		o.field = where.field
	}
	return o, valueKind, known
}

// refusal returns an error as the caller sees it, and counts it. What is not in the table is logged, once.
func (s *Server) refusal(err error, method string) *connect.Error {
	if coded, ok := errors.AsType[*connect.Error](err); ok {
		return coded // by connect itself, or from here
	}
	o, valueKind, known := outcomeOf(err)
	s.metrics.refused(o.kind, method)
	coded := connect.NewError(o.code, &told{o.message, err})
	if detail, err := connect.NewErrorDetail(detailOf(o, valueKind)); err == nil {
		coded.AddDetail(detail)
	}
	if more, ok := errors.AsType[*withDetail](err); ok {
		if detail, err := connect.NewErrorDetail(more.detail); err == nil {
			coded.AddDetail(detail)
		}
	}
	if o.retry > 0 {
		coded.Meta().Set("Retry-After", strconv.Itoa(o.retry))
	}
	if !known {
		coded.Meta().Set(headerRequestID, s.unexpected(err, method))
	}
	return coded
}

// told is an error with the text that its receiver may read.
type told struct {
	message string
	cause   error
}

func (e *told) Error() string { return e.message }
func (e *told) Unwrap() error { return e.cause }

// itemError is refusal for one item of several.
func (s *Server) itemError(err error, method string) *revokdv1.ItemError {
	o, valueKind, known := outcomeOf(err)
	s.metrics.refused(o.kind, method)
	if !known {
		s.unexpected(err, method)
	}
	return &revokdv1.ItemError{Code: o.code.String(), Message: o.message, Detail: detailOf(o, valueKind)}
}

func detailOf(o outcome, valueKind string) *revokdv1.ErrorDetail {
	return &revokdv1.ErrorDetail{Kind: o.kind, Field: o.field, Limit: o.limit, ValueKind: valueKind}
}

const headerRequestID = "X-Request-Id"

// unexpected logs an error that nobody foresaw, and returns the id under which it is found.
func (s *Server) unexpected(err error, method string) string {
	id := newRequestID()
	s.log.Error("request failed", "method", method, "request", id, "type", fmt.Sprintf("%T", err), "error", err)
	return id
}
