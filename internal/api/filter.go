package api

import (
	"cmp"
	"context"
	"encoding/binary"
	"math"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

const (
	// filterPath is a plain path and no procedure, like backupPath: a filter is a file, and a checksum is in it.
	filterPath = "/filter"
	// filterSends is how many callers are sent a filter at once: the others come again, or elsewhere.
	filterSends = 16

	fingerprintSize = 16
	maxLookup       = 256
)

// filter sends a filter of all records; see view.Filtered. What is cut off has no checksum. max_age asks for one that was made within a duration.
func (s *Server) filter(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	out := &backupStream{server: s, w: w, control: http.NewResponseController(w)}
	maxAge, err := time.ParseDuration(cmp.Or(r.URL.Query().Get("max_age"), "0s"))
	if err != nil {
		err = bad("max_age", "malformed", "duration", "a duration such as 5s")
	} else {
		err = s.writeFilter(r.Context(), out, maxAge)
	}
	switch {
	case err == nil:
		s.metrics.called(filterPath, "ok", time.Since(began))
	case out.begun:
		o, _, _ := outcomeOf(err)
		s.metrics.called(filterPath, o.code.String(), time.Since(began))
		panic(http.ErrAbortHandler)
	default:
		coded := s.refusal(err, filterPath)
		s.metrics.called(filterPath, coded.Code().String(), time.Since(began))
		_ = s.refuser.Write(w, r, coded)
	}
}

func (s *Server) writeFilter(ctx context.Context, out *backupStream, maxAge time.Duration) error {
	select {
	case s.filters <- struct{}{}:
		defer func() { <-s.filters }()
	default:
		return errFilters
	}
	_ = out.control.SetReadDeadline(time.Time{})
	// Making one may take seconds before the first byte; each write sets its own.
	_ = out.control.SetWriteDeadline(time.Now().Add(s.cfg.Limits.Read + s.cfg.Limits.Deadline))
	f, err := s.node.Filter(ctx, maxAge)
	if err != nil {
		return err
	}
	_, err = f.WriteTo(out)
	return err
}

// Lookup answers by fingerprints: what a client asks about leaves its process only as keyed hashes.
func (s replicas) Lookup(_ context.Context, c *connect.Request[revokdv1.LookupRequest]) (*connect.Response[revokdv1.LookupResponse], error) {
	b := c.Msg.GetFingerprints()
	switch {
	case len(b)%fingerprintSize != 0 || len(b) == 0 || len(b) > maxLookup*fingerprintSize:
		return nil, bad("fingerprints", "out_of_range", "bytes", "16 bytes each, 1 to 256")
	case c.Msg.GetKeyId() != uint64(s.node.KeyID()):
		return nil, errOtherKey
	}
	list := make([]revocation.Fingerprint, 0, len(b)/fingerprintSize)
	for ; len(b) > 0; b = b[fingerprintSize:] {
		list = append(list, revocation.Fingerprint{Hi: binary.BigEndian.Uint64(b), Lo: binary.BigEndian.Uint64(b[8:])})
	}
	records, quorum, all, err := s.node.Lookup(list)
	if err != nil {
		return nil, err
	}
	m := &revokdv1.LookupResponse{}
	for _, r := range records {
		m.Records, _ = r.AppendBinary(m.Records)
	}
	if quorum != math.MaxInt64 {
		m.QuorumAge = durationpb.New(quorum)
	}
	if all != math.MaxInt64 {
		m.AllAge = durationpb.New(all)
	}
	return connect.NewResponse(m), nil
}
