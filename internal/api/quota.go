package api

import (
	"context"
	"errors"
	"hash/maphash"
	"time"

	"golang.org/x/time/rate"

	"github.com/revokd/revokd/internal/credentials"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/node"
	"github.com/revokd/revokd/revocation"
)

// budget is what writers may write in a second. It binds writers who have said who they are: never admins, who must get through when a writer runs wild,
// never other nodes, nor what they have accepted already.
type budget struct {
	seed    maphash.Seed
	writers rates[writerKey]
	issuers rates[uint64] // by a hash of the issuer, so that none is held here
}

type writerKey struct {
	name  string
	paced bool
}

// tooFast is a write beyond a budget.
type tooFast struct{ wait time.Duration }

func (e *tooFast) Error() string { return errRate.Error() }
func (e *tooFast) Unwrap() error { return errRate }

// SetRates puts other rates in force than those of [Limits]; 0 is the default. What was written counts against the new ones.
func (s *Server) SetRates(writer, bulk, issuer int) {
	l := Limits{WriterRate: writer, BulkRate: bulk, IssuerRate: issuer}
	l.defaults()
	s.rates.Store(&l)
}

// bound returns the caller if he is one who is held to limits of his own, else nil.
func bound(ctx context.Context) *credentials.Caller {
	caller, known := Caller(ctx)
	if !known || caller.Role == pki.RoleAdmin || caller.Role == pki.RoleNode {
		return nil
	}
	return caller
}

// writer is the caller as the node knows him.
func writer(ctx context.Context) *node.Writer {
	caller := bound(ctx)
	if caller == nil {
		return nil
	}
	return &node.Writer{Name: caller.Name, Records: caller.Records, Grants: caller.Grants}
}

// charge takes requests off the budgets of their writer and issuers, or returns an error that says when to come again. A stream waits instead, as its
// sender does then.
func (s *Server) charge(ctx context.Context, requests []revocation.Request) error {
	caller := bound(ctx)
	if caller == nil {
		return nil
	}
	paced := callFrom(ctx).paced
	rates := s.rates.Load()
	perSecond := rates.WriterRate
	if paced {
		perSecond = rates.BulkRate
	}
	if caller.Rate > 0 {
		perSecond = caller.Rate
	}
	err := spend(ctx, paced, func() (time.Duration, bool) {
		return s.budget.writers.take(writerKey{caller.Name, paced}, rate.Limit(perSecond), burst(perSecond), len(requests), s.cfg.Now())
	})
	if err != nil {
		return inWhose("writer", err)
	}
	counts := map[uint64]int{}
	for i := range requests {
		if iss, ok := requests[i].Match.Get("iss"); ok {
			counts[maphash.Comparable(s.budget.seed, iss)]++
		}
	}
	for issuer, n := range counts {
		err := spend(ctx, paced, func() (time.Duration, bool) {
			return s.budget.issuers.take(issuer, rate.Limit(rates.IssuerRate), burst(rates.IssuerRate), n, s.cfg.Now())
		})
		if err != nil {
			return inWhose("match.iss", err)
		}
	}
	return nil
}

// burst is how much may come at once: what comes in a second, and at least one message of items.
func burst(perSecond int) int { return max(perSecond, maxItems) }

func spend(ctx context.Context, paced bool, take func() (time.Duration, bool)) error {
	for {
		wait, ok := take()
		switch {
		case ok:
			return nil
		case !paced:
			return &tooFast{wait}
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func inWhose(field string, err error) error {
	if errors.Is(err, errRate) {
		return &inField{field, err}
	}
	return err
}
