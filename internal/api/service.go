package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
)

// maxItems is the number of items in one message.
const maxItems = node.MaxBatch

// maxUrgent is how many items of a batch may overtake those of streams on their way to other nodes.
const maxUrgent = 64

// revocations serves RevocationService. Its methods return errors as they come; the interceptor turns them into codes.
type revocations struct{ *Server }

var _ revokdv1connect.RevocationServiceHandler = revocations{}

// Rehearse is the way of a request up to where it would be written.
func (s revocations) Rehearse(ctx context.Context, c *connect.Request[revokdv1.RehearseRequest]) (*connect.Response[revokdv1.RehearseResponse], error) {
	var r revocation.Request
	var err error
	switch m := rehearsed(c.Msg).(type) {
	case *revokdv1.RevokeRequest:
		r, err = s.revokeRequest(ctx, m)
	case *revokdv1.BlockRequest:
		r, err = s.blockingRequest(ctx, m)
	case *revokdv1.UnblockRequest:
		r, err = s.blockRequest(ctx, revocation.Unblock, m.GetMatch(), m.GetReason(), m.GetComment())
	default:
		err = bad("request", "missing", "", "a revoke, a block or an unblock")
	}
	if err != nil {
		return nil, err
	}
	would, err := s.node.Rehearse(r, writer(ctx))
	if err != nil {
		return nil, err
	}
	callFrom(ctx).wrote = s.auditor.wrote([]revocation.Request{r}, nil, []node.Result{would.Result}, node.Receipt{})
	return connect.NewResponse(rehearsalAnswer(would)), nil
}

// rehearsed returns the request of a rehearsal; nil if it has none.
func rehearsed(m *revokdv1.RehearseRequest) any {
	switch r := m.GetRequest().(type) {
	case *revokdv1.RehearseRequest_Revoke:
		return r.Revoke
	case *revokdv1.RehearseRequest_Block:
		return r.Block
	case *revokdv1.RehearseRequest_Unblock:
		return r.Unblock
	}
	return nil
}

func (s revocations) Revoke(ctx context.Context, c *connect.Request[revokdv1.RevokeRequest]) (*connect.Response[revokdv1.RevokeResponse], error) {
	o, err := writeOptions(c.Msg.GetOptions())
	if err != nil {
		return nil, err
	}
	r, err := s.revokeRequest(ctx, c.Msg)
	if err != nil {
		return nil, err
	}
	if err := s.confirm(ctx, c.Spec().Procedure, c.Msg, &r); err != nil {
		return nil, err
	}
	return s.write(ctx, r, o)
}

func (s revocations) Block(ctx context.Context, c *connect.Request[revokdv1.BlockRequest]) (*connect.Response[revokdv1.RevokeResponse], error) {
	o, err := writeOptions(c.Msg.GetOptions())
	if err != nil {
		return nil, err
	}
	r, err := s.blockingRequest(ctx, c.Msg)
	if err != nil {
		return nil, err
	}
	if err := s.confirm(ctx, c.Spec().Procedure, c.Msg, &r); err != nil {
		return nil, err
	}
	return s.write(ctx, r, o)
}

func (s revocations) blockingRequest(ctx context.Context, m *revokdv1.BlockRequest) (r revocation.Request, err error) {
	if r, err = s.blockRequest(ctx, revocation.Block, m.GetMatch(), m.GetReason(), m.GetComment()); err != nil {
		return r, err
	}
	r.ExpiresAt, err = millis("expires_at", m.GetExpiresAt())
	return r, err
}

func (s revocations) Unblock(ctx context.Context, c *connect.Request[revokdv1.UnblockRequest]) (*connect.Response[revokdv1.RevokeResponse], error) {
	m := c.Msg
	o, err := writeOptions(m.GetOptions())
	if err != nil {
		return nil, err
	}
	r, err := s.blockRequest(ctx, revocation.Unblock, m.GetMatch(), m.GetReason(), m.GetComment())
	if err != nil {
		return nil, err
	}
	return s.write(ctx, r, o)
}

func (s revocations) blockRequest(ctx context.Context, a revocation.Action, m *revokdv1.Match, reason revokdv1.Reason, comment string) (r revocation.Request, err error) {
	r.Action = a
	if r.Match, err = s.match(ctx, m); err != nil {
		return r, err
	}
	if r.Reason, err = reasonOf(reason); err != nil {
		return r, err
	}
	return r, errors.Join(checkComment(comment), mayWrite(ctx, r.Match))
}

// write carries out one request.
func (s revocations) write(ctx context.Context, r revocation.Request, o node.WriteOptions) (*connect.Response[revokdv1.RevokeResponse], error) {
	results, receipt, err := s.carryOut(ctx, []revocation.Request{r}, o)
	callFrom(ctx).wrote = s.auditor.wrote([]revocation.Request{r}, nil, results, receipt)
	if err != nil {
		return nil, withReceipt(err, receipt)
	}
	if results[0].Err != nil {
		return nil, results[0].Err
	}
	m := resultAnswer(results[0])
	m.Receipt = receiptAnswer(receipt)
	return connect.NewResponse(m), nil
}

func (s revocations) RevokeBatch(ctx context.Context, c *connect.Request[revokdv1.RevokeBatchRequest]) (*connect.Response[revokdv1.RevokeBatchResponse], error) {
	o, err := writeOptions(c.Msg.GetOptions())
	if err != nil {
		return nil, err
	}
	if n := len(c.Msg.GetItems()); n == 0 || n > maxItems {
		return nil, node.ErrTooMany
	}
	results, receipt, err := s.writeItems(ctx, c.Msg.GetItems(), o)
	if err != nil {
		return nil, err
	}
	m := &revokdv1.RevokeBatchResponse{Results: make([]*revokdv1.RevokeResult, len(results)), Receipt: receipt}
	for i, r := range results {
		if r.Err != nil {
			m.Results[i] = &revokdv1.RevokeResult{Error: s.itemError(r.Err, c.Spec().Procedure)}
		} else {
			m.Results[i] = &revokdv1.RevokeResult{Response: resultAnswer(r)}
		}
	}
	return connect.NewResponse(m), nil
}

// withReceipt adds the receipt to the error of a write that is durable, but not as widely as was asked for.
func withReceipt(err error, r node.Receipt) error {
	if errors.Is(err, node.ErrAck) {
		return &withDetail{receiptAnswer(r), err}
	}
	return err
}

// writeItems carries out items in one durable write. What is refused, here or by the node, has its error in its
// result; without an item to write there is no receipt.
func (s *Server) writeItems(ctx context.Context, items []*revokdv1.RevokeRequest, o node.WriteOptions) ([]node.Result, *revokdv1.Receipt, error) {
	results := make([]node.Result, len(items))
	requests := make([]revocation.Request, 0, len(items))
	place := make([]int, 0, len(items))
	for i, item := range items {
		r, err := s.revokeRequest(ctx, item)
		if err == nil && wide(r.Match) {
			err = errManyWide
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			results[i].Err = err
			continue
		}
		requests, place = append(requests, r), append(place, i)
	}
	if len(requests) == 0 {
		callFrom(ctx).wrote = &wrote{results: results}
		return results, nil, nil
	}
	o.Bulk = o.Bulk || len(requests) > maxUrgent
	written, receipt, err := s.carryOut(ctx, requests, o)
	for i, r := range written {
		results[place[i]] = r
	}
	callFrom(ctx).wrote = s.auditor.wrote(requests, place, results, receipt)
	if err != nil {
		return nil, nil, withReceipt(err, receipt)
	}
	return results, receiptAnswer(receipt), nil
}

func (s revocations) Check(ctx context.Context, c *connect.Request[revokdv1.CheckRequest]) (*connect.Response[revokdv1.CheckResponse], error) {
	m, err := s.check(ctx, c.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

func (s revocations) check(ctx context.Context, m *revokdv1.CheckRequest) (*revokdv1.CheckResponse, error) {
	o, err := checkOptions(m)
	if err != nil {
		return nil, err
	}
	claims, err := s.subject(ctx, m)
	if err != nil {
		return nil, err
	}
	v := s.node.CheckFresh(claims, o)
	s.metrics.checked(v)
	return verdictAnswer(v), nil
}

func (s revocations) CheckBatch(ctx context.Context, c *connect.Request[revokdv1.CheckBatchRequest]) (*connect.Response[revokdv1.CheckBatchResponse], error) {
	items := c.Msg.GetItems()
	if len(items) == 0 || len(items) > maxItems {
		return nil, node.ErrTooMany
	}
	m := &revokdv1.CheckBatchResponse{Results: make([]*revokdv1.CheckResult, len(items))}
	for i, item := range items {
		answer, err := s.check(ctx, item)
		switch {
		case err == nil:
			m.Results[i] = &revokdv1.CheckResult{Response: answer}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		default:
			m.Results[i] = &revokdv1.CheckResult{Error: s.itemError(err, c.Spec().Procedure)}
		}
	}
	return connect.NewResponse(m), nil
}

func (s revocations) Explain(ctx context.Context, c *connect.Request[revokdv1.CheckRequest]) (*connect.Response[revokdv1.ExplainResponse], error) {
	if _, err := checkOptions(c.Msg); err != nil {
		return nil, err
	}
	claims, err := s.subject(ctx, c.Msg)
	if err != nil {
		return nil, err
	}
	v, steps := s.node.Explain(claims)
	m := &revokdv1.ExplainResponse{Verdict: verdictAnswer(v), Steps: make([]*revokdv1.ExplainResponse_Step, len(steps))}
	for i, step := range steps {
		m.Steps[i] = stepAnswer(step)
	}
	return connect.NewResponse(m), nil
}

func (s revocations) Status(context.Context, *connect.Request[revokdv1.StatusRequest]) (*connect.Response[revokdv1.StatusResponse], error) {
	st := s.node.Status()
	waiting := s.waitingFor()
	m := &revokdv1.StatusResponse{
		Node: st.Name, Version: st.Version, Epoch: epochAnswer(st.Epoch), Ready: len(waiting) == 0, WaitingFor: waiting, Durability: durabilityAnswer(st.Durability),
		Now: timestamppb.New(st.Wall), Guarded: timestamppb.New(st.Guarded), Clock: st.Clock,
		Records: int64(st.Table.Items), RecordsLimit: int64(st.Table.Limit), MemoryBytes: st.Table.Bytes,
		BlocksEndingSoon: int64(st.Census.BlocksEnding),
		LiveShapes:       int32(st.Table.LiveShapes), LiveShapesLimit: revocation.MaxLiveShapes,
		Uptime: durationpb.New(st.Uptime), KeyId: st.KeyID.String(), Dev: s.cfg.Dev != nil, Issuers: s.node.Policy().IssuerNames(),
		Replication: replicationAnswer(st, s.node.Peers()),
	}
	for _, k := range st.Keys {
		m.FingerprintKeys = append(m.FingerprintKeys, k.ID.String())
	}
	if j := st.Journal; j != nil {
		m.Journal = &revokdv1.JournalStatus{Dir: st.JournalDir, Bytes: j.Bytes, Files: int64(j.Files), Cut: j.Cut}
		if j.Failed != nil {
			m.Journal.Error = j.Failed.Error()
		}
	}
	return connect.NewResponse(m), nil
}
