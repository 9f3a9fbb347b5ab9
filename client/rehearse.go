package client

import (
	"context"
	"time"

	"connectrpc.com/connect"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// Rehearsal is what a write would do on the node that was asked, now.
type Rehearsal struct {
	Outcome     string    // that the write would have
	ExpiresAt   time.Time // of the revocation; zero if nothing would be stored
	UsableAfter time.Time // see [Receipt]
	// ShapeLive: there are live revocations with these names of claims, ShapeRecords of them with this rule, or about so many.
	ShapeLive             bool
	ShapeRecords          int64
	ShapeRecordsEstimated bool
	// Checks of the last five minutes that the node answered, or a sample of them, since the oldest. A replica such as this one answers its own, which no node knows of.
	Checks int64
	Since  time.Time
	// WouldRefuse of them would have been refused and were not, AlreadyRefused match and were refused anyhow; of Unclear nobody can tell.
	WouldRefuse, AlreadyRefused, Unclear int64
}

// RehearseRevoke tells what [Client.Revoke] with the same arguments would do. Nothing is written; it is refused, counted and recorded as the write would be.
func (c *Client) RehearseRevoke(ctx context.Context, m Match, o ...Option) (Rehearsal, error) {
	match, err := m.proto()
	if err != nil {
		return Rehearsal{}, err
	}
	w, _, reason, err := options(o)
	if err != nil {
		return Rehearsal{}, err
	}
	return c.rehearse(ctx, &revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Revoke{Revoke: &revokdv1.RevokeRequest{
		Target: &revokdv1.RevokeRequest_Match{Match: match}, Reason: reason, Comment: w.comment, IssuedBefore: stamp(w.issuedBefore), ExpiresAt: stamp(w.expiresAt),
	}}})
}

// RehearseBlock is RehearseRevoke for [Client.Block].
func (c *Client) RehearseBlock(ctx context.Context, m Match, o ...Option) (Rehearsal, error) {
	match, err := m.proto()
	if err != nil {
		return Rehearsal{}, err
	}
	w, _, reason, err := options(o)
	if err != nil {
		return Rehearsal{}, err
	}
	return c.rehearse(ctx, &revokdv1.RehearseRequest{Request: &revokdv1.RehearseRequest_Block{Block: &revokdv1.BlockRequest{
		Match: match, Reason: reason, Comment: w.comment, ExpiresAt: stamp(w.expiresAt),
	}}})
}

func (c *Client) rehearse(ctx context.Context, req *revokdv1.RehearseRequest) (r Rehearsal, err error) {
	err = c.try(ctx, func(ctx context.Context, s revokdv1connect.RevocationServiceClient, _ int) error {
		res, err := s.Rehearse(ctx, connect.NewRequest(req))
		if err != nil {
			return err
		}
		m := res.Msg
		r = Rehearsal{
			Outcome: outcomeOf(m.GetResult().GetOutcome()), ShapeLive: m.GetShapeLive(), ShapeRecords: m.GetShapeRecords(), ShapeRecordsEstimated: m.GetShapeRecordsEstimated(),
			Checks: m.GetChecks(), WouldRefuse: m.GetWouldRefuse(), AlreadyRefused: m.GetAlreadyRefused(), Unclear: m.GetUnclear(),
		}
		if t := m.GetResult().GetRule().GetExpiresAt(); t != nil {
			r.ExpiresAt = t.AsTime()
		}
		if t := m.GetResult().GetUsableAfter(); t != nil {
			r.UsableAfter = t.AsTime()
		}
		if t := m.GetChecksSince(); t != nil {
			r.Since = t.AsTime()
		}
		return nil
	})
	return r, err
}
