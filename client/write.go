package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/cluster/replication"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// Match names zero to four claims with their values: string, int, int64 or bool. No claim at all matches every token.
type Match map[string]any

// Ack says which voters must hold a write durably before the call returns.
type Ack uint8

// The levels. AckDefault is a majority in a cluster of three voters or more, else the node that takes the write.
const (
	AckDefault Ack = iota
	AckLocal
	AckQuorum
	AckAll
)

// Option changes a write.
type Option func(*write)

type write struct {
	reason       string
	comment      string
	ack          Ack
	ackTimeout   time.Duration
	issuedBefore time.Time
	expiresAt    time.Time
	key          string
	confirm      func(Confirmation) bool
}

// Reason states why: one of the reasons of package revocation, such as "logout".
func Reason(name string) Option { return func(w *write) { w.reason = name } }

// Comment is free text for the audit log of the node, at most 256 bytes.
func Comment(text string) Option { return func(w *write) { w.comment = text } }

// Acknowledged asks for a level and how long to wait for it; 0 is the node's default.
func Acknowledged(level Ack, limit time.Duration) Option {
	return func(w *write) { w.ack, w.ackTimeout = level, limit }
}

// IssuedBefore states the cutoff.
func IssuedBefore(t time.Time) Option { return func(w *write) { w.issuedBefore = t } }

// ExpiresAt states when the revocation may be forgotten.
func ExpiresAt(t time.Time) Option { return func(w *write) { w.expiresAt = t } }

// IdempotencyKey makes calls with the same key, within ten minutes and to the same node, one call. Each call has a random one otherwise, which its own retries keep.
func IdempotencyKey(key string) Option { return func(w *write) { w.key = key } }

// Confirm allows a call to deny every token, or every token of an issuer: the node first says what that is, and it is done if ask returns true. Without it such a
// call fails with the code FailedPrecondition.
func Confirm(ask func(Confirmation) bool) Option { return func(w *write) { w.confirm = ask } }

// Confirmation says what a call would deny that is about to deny a lot.
type Confirmation struct {
	Effect  string   // in words
	Issuers []string // whose tokens it would concern, as far as the node knows them
	Held    int      // revocations that the node holds now, of all kinds
}

// confirmed repeats a call with the code of the node if that wants it confirmed and the caller does.
func (w *write) confirmed(o *revokdv1.WriteOptions, call func() (Receipt, error)) (Receipt, error) {
	r, err := call()
	if w.confirm == nil {
		return r, err
	}
	asked, ok := detailIn[*revokdv1.Confirmation](err)
	if !ok || !w.confirm(Confirmation{Effect: asked.GetEffect(), Issuers: asked.GetIssuers(), Held: int(asked.GetLiveRecords())}) {
		return r, err
	}
	o.Confirmation = asked.GetCode()
	return call()
}

// Receipt says what a write has done and who holds it.
type Receipt struct {
	Outcome string // revoked, covered, already_expired, unblocked
	Durable bool   // fsynced on the node that took it
	Ack     Ack    // the level that was reached
	// Confirmed and Unconfirmed name nodes.
	Confirmed, Unconfirmed []string
	// UsableAfter: a token with a whole-second iat is accepted again from then on; zero without a cutoff.
	UsableAfter time.Time

	positions []*revokdv1.Position
}

// RevokeToken revokes one signed token; the node verifies it first.
func (c *Client) RevokeToken(ctx context.Context, token string, o ...Option) (Receipt, error) {
	return c.revoke(ctx, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: token}}, o)
}

// RevokeSession revokes the session of a signed token.
func (c *Client) RevokeSession(ctx context.Context, token string, o ...Option) (Receipt, error) {
	return c.revoke(ctx, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: token}, Scope: revokdv1.Scope_SCOPE_SESSION}, o)
}

// RevokeSubject logs out all devices of a subject: its tokens issued before now, or before [IssuedBefore].
func (c *Client) RevokeSubject(ctx context.Context, issuer, subject string, o ...Option) (Receipt, error) {
	return c.Revoke(ctx, Match{"iss": issuer, "sub": subject}, o...)
}

// LogoutOthers logs out all devices of the subject of a signed token but the one that holds it: its session, or the token alone if it names none.
func (c *Client) LogoutOthers(ctx context.Context, issuer, subject, keepToken string, o ...Option) (Receipt, error) {
	m, err := Match{"iss": issuer, "sub": subject}.proto()
	if err != nil {
		return Receipt{}, err
	}
	return c.revoke(ctx, &revokdv1.RevokeRequest{
		Target: &revokdv1.RevokeRequest_Match{Match: m}, Keep: &revokdv1.Keep{Kept: &revokdv1.Keep_Token{Token: keepToken}},
	}, o)
}

// Revoke revokes what a match names: a plain deny if it names a token, a session or a key, else a cutoff at now.
func (c *Client) Revoke(ctx context.Context, m Match, o ...Option) (Receipt, error) {
	match, err := m.proto()
	if err != nil {
		return Receipt{}, err
	}
	return c.revoke(ctx, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: match}}, o)
}

// RevokeBelow revokes matching tokens whose integer claim, a token version, is below a value or missing.
func (c *Client) RevokeBelow(ctx context.Context, m Match, claim string, value int64, o ...Option) (Receipt, error) {
	match, err := m.proto()
	if err != nil {
		return Receipt{}, err
	}
	return c.revoke(ctx, &revokdv1.RevokeRequest{
		Target: &revokdv1.RevokeRequest_Match{Match: match}, Below: &revokdv1.Below{Claim: claim, Value: value},
	}, o)
}

// Block denies every matching token, whatever its iat, until [Client.Unblock] or [ExpiresAt].
func (c *Client) Block(ctx context.Context, m Match, o ...Option) (Receipt, error) {
	match, err := m.proto()
	if err != nil {
		return Receipt{}, err
	}
	w, opts, reason, err := options(o)
	if err != nil {
		return Receipt{}, err
	}
	req := &revokdv1.BlockRequest{Match: match, Reason: reason, Comment: w.comment, Options: opts, ExpiresAt: stamp(w.expiresAt)}
	return w.confirmed(opts, func() (Receipt, error) {
		return c.do(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, _ int) (*connect.Response[revokdv1.RevokeResponse], error) {
			return s.Block(ctx, connect.NewRequest(req))
		})
	})
}

// Unblock lifts a block. It lifts nothing else.
func (c *Client) Unblock(ctx context.Context, m Match, o ...Option) (Receipt, error) {
	match, err := m.proto()
	if err != nil {
		return Receipt{}, err
	}
	w, opts, reason, err := options(o)
	if err != nil {
		return Receipt{}, err
	}
	req := &revokdv1.UnblockRequest{Match: match, Reason: reason, Comment: w.comment, Options: opts}
	return c.do(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, _ int) (*connect.Response[revokdv1.RevokeResponse], error) {
		return s.Unblock(ctx, connect.NewRequest(req))
	})
}

func (c *Client) revoke(ctx context.Context, req *revokdv1.RevokeRequest, o []Option) (Receipt, error) {
	w, opts, reason, err := options(o)
	if err != nil {
		return Receipt{}, err
	}
	req.Reason, req.Comment, req.Options = reason, w.comment, opts
	req.IssuedBefore, req.ExpiresAt = stamp(w.issuedBefore), stamp(w.expiresAt)
	at := c.writeTime()
	return w.confirmed(opts, func() (Receipt, error) {
		return c.do(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, attempt int) (*connect.Response[revokdv1.RevokeResponse], error) {
			if attempt > 0 {
				return s.Revoke(ctx, connect.NewRequest(c.fixCutoff(req, at)))
			}
			return s.Revoke(ctx, connect.NewRequest(req))
		})
	})
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// options turns options into what is sent; the idempotency key is fixed here, once for a logical call.
func options(list []Option) (w write, o *revokdv1.WriteOptions, reason revokdv1.Reason, err error) {
	var b [16]byte
	rand.Read(b[:])
	w.key = hex.EncodeToString(b[:])
	for _, apply := range list {
		apply(&w)
	}
	o = &revokdv1.WriteOptions{Ack: revokdv1.AckLevel(w.ack), IdempotencyKey: w.key}
	if w.ackTimeout > 0 {
		o.AckTimeout = durationpb.New(w.ackTimeout)
	}
	if w.reason != "" {
		if reason, err = reasonOf(w.reason); err != nil {
			return w, nil, 0, err
		}
	}
	return w, o, reason, nil
}

// attempts bounds the nodes that a write is tried on.
const attempts = 5

type writeCall = func(ctx context.Context, s revokdv1connect.RevocationServiceClient, attempt int) (*connect.Response[revokdv1.RevokeResponse], error)

// do carries out a write on the node in use, or on another one if that does not answer, and waits until this replica holds it.
func (c *Client) do(ctx context.Context, call writeCall) (Receipt, error) {
	var res *connect.Response[revokdv1.RevokeResponse]
	err := c.try(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, attempt int) (err error) {
		res, err = call(ctx, s, attempt)
		return err
	})
	if err != nil {
		if r, ok := receiptIn(err); ok {
			return r, errors.Join(notConfirmed(r), c.seen(ctx, r))
		}
		return Receipt{}, err
	}
	r := receiptOf(res.Msg.GetReceipt())
	r.Outcome = outcomeOf(res.Msg.GetOutcome())
	if u := res.Msg.GetUsableAfter(); u != nil {
		r.UsableAfter = u.AsTime()
	}
	return r, c.seen(ctx, r)
}

func notConfirmed(r Receipt) error {
	return fmt.Errorf("%w: confirmed by %d, not by %d", ErrNotConfirmed, len(r.Confirmed), len(r.Unconfirmed))
}

// try calls nodes, the one in use first, until one does not fail for a reason that another attempt may mend. attempt counts from 0.
func (c *Client) try(ctx context.Context, call func(ctx context.Context, s revokdv1connect.RevocationServiceClient, attempt int) error) error {
	var errs error
	for attempt := range attempts {
		addrs := c.addresses(ctx)
		if len(addrs) == 0 {
			errs = errors.New("no address")
		} else {
			addr := addrs[attempt%len(addrs)]
			err := call(ctx, c.service(addr), attempt)
			if err == nil {
				return nil
			}
			errs = fmt.Errorf("%s: %w", addr, err)
			if _, answered := receiptIn(err); answered || !retriable(err) && ctx.Err() == nil {
				return errs
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, errors.Join(ctx.Err(), errs))
		case <-time.After(c.backoff(attempt)):
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, errs)
}

// retriable: what a node refuses is refused, but for what is counted on each (queues, disks, rates, quotas); one that goes away in the middle of a call may leave any other trace.
func retriable(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeAborted, connect.CodeInternal, connect.CodeUnknown, connect.CodeCanceled, connect.CodeDeadlineExceeded:
		return true
	}
	return false
}

// writeTime is what this replica takes for the nodes' time, in Unix milliseconds: the later of its own wall clock and the cluster's guarded time, so that a
// clock that is behind makes no cutoff miss the latest tokens.
func (c *Client) writeTime() int64 { return max(c.cfg.clock.Now().UnixMilli(), c.now.Load()) }

// fixCutoff returns a request that leaves its cutoff to the node with the cutoff that a node would have taken at a time; others as they are. The
// first node that was tried may have carried it out: one that is tried later must not move the cutoff over tokens issued meanwhile.
// The idempotency key is of the request as it was.
func (c *Client) fixCutoff(req *revokdv1.RevokeRequest, at int64) *revokdv1.RevokeRequest {
	if req.GetIssuedBefore() != nil || req.GetBelow() != nil || req.GetMatch() == nil {
		return req
	}
	m, err := matchOf(req.GetMatch())
	if err != nil {
		return req // the node says what is wrong
	}
	plan, err := c.held.Load().table.Plan(revocation.Request{Match: m, Cutoff: req.GetKeep() != nil}, at, at)
	if err != nil || plan.AlreadyExpired || plan.Main().Class != revocation.ClassIssuedBefore {
		return req
	}
	fixed := proto.CloneOf(req)
	fixed.IssuedBefore = timestamppb.New(time.UnixMilli(plan.Main().Value))
	if fixed.GetOptions() != nil {
		fixed.Options.IdempotencyKey = ""
	}
	return fixed
}

func matchOf(m *revokdv1.Match) (revocation.Match, error) {
	values := map[string]revocation.Value{}
	for name, v := range m.GetClaims() {
		values[name] = revocation.String(v)
	}
	for name, v := range m.GetIntegers() {
		values[name] = revocation.Int(v)
	}
	for name, v := range m.GetBooleans() {
		values[name] = revocation.Bool(v)
	}
	return revocation.NewMatch(values)
}

// seenTimeout bounds the wait for this replica when ctx has no deadline.
const seenTimeout = 5 * time.Second

// seen waits until this replica holds a write, so that its next check knows it.
func (c *Client) seen(ctx context.Context, r Receipt) error {
	ctx, cancel := context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	err := c.wait(ctx, func() bool {
		for _, p := range r.positions {
			if !c.core.ReachedOrigin(replication.OriginID(p.GetOrigin()), p.GetNumber()) {
				return false
			}
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("the write is done, but has not reached this replica yet: %w", err)
	}
	return nil
}

func receiptOf(m *revokdv1.Receipt) Receipt {
	return Receipt{
		Durable: m.GetDurability() == revokdv1.Durability_DURABILITY_DISK, Ack: Ack(m.GetAck()),
		Confirmed: m.GetConfirmed(), Unconfirmed: m.GetUnconfirmed(), positions: m.GetPositions(),
	}
}

// receiptIn returns the receipt that goes with the error of a write that was not confirmed widely enough.
func receiptIn(err error) (Receipt, bool) {
	m, ok := detailIn[*revokdv1.Receipt](err)
	if !ok {
		return Receipt{}, false
	}
	r := receiptOf(m)
	r.Outcome = "revoked"
	return r, true
}

// detailIn returns the first detail of a type that a node has sent with an error.
func detailIn[T proto.Message](err error) (found T, ok bool) {
	var coded *connect.Error
	if errors.As(err, &coded) {
		for _, d := range coded.Details() {
			if v, err := d.Value(); err == nil {
				if found, ok = v.(T); ok {
					return found, true
				}
			}
		}
	}
	return found, false
}

func outcomeOf(o revokdv1.Outcome) string {
	switch o {
	case revokdv1.Outcome_OUTCOME_REVOKED:
		return "revoked"
	case revokdv1.Outcome_OUTCOME_COVERED:
		return "covered"
	case revokdv1.Outcome_OUTCOME_ALREADY_EXPIRED:
		return "already_expired"
	case revokdv1.Outcome_OUTCOME_UNBLOCKED:
		return "unblocked"
	}
	return ""
}

func reasonOf(name string) (revokdv1.Reason, error) {
	for number, n := range revocation.Reasons() {
		if n == name {
			return revokdv1.Reason(number), nil
		}
	}
	return 0, fmt.Errorf("%w: reason: one of those of revocation.Reasons", ErrConfig)
}

func (m Match) proto() (*revokdv1.Match, error) {
	out := &revokdv1.Match{Claims: map[string]string{}, Integers: map[string]int64{}, Booleans: map[string]bool{}}
	for name, value := range m {
		switch v := value.(type) {
		case string:
			out.Claims[name] = v
		case int:
			out.Integers[name] = int64(v)
		case int64:
			out.Integers[name] = v
		case bool:
			out.Booleans[name] = v
		default:
			return nil, fmt.Errorf("%w: the value of a claim is a %T, want string, int, int64 or bool", ErrConfig, value)
		}
	}
	return out, nil
}
