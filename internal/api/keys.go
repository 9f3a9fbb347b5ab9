package api

import (
	"context"
	"crypto/rand"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/revocation"
)

// FingerprintKeys lists or changes the keys under which records are made. A key never comes or goes with a call: the node makes it, and others get it in their sessions.
func (s clusters) FingerprintKeys(ctx context.Context, c *connect.Request[revokdv1.FingerprintKeysRequest]) (*connect.Response[revokdv1.FingerprintKeysResponse], error) {
	limit := time.Duration(0)
	if t := c.Msg.GetTimeout(); t != nil {
		if limit = t.AsDuration(); t.CheckValid() != nil || limit <= 0 || limit > time.Minute {
			return nil, bad("timeout", "out_of_range", "duration", "above 0, at most 1 min")
		}
	}
	change, err := keyChange(c.Msg)
	if err != nil {
		return nil, err
	}
	if change != (node.KeyChange{}) {
		if err := s.node.ChangeKeys(ctx, change, limit); err != nil {
			return nil, err
		}
	}
	s.node.Recount()
	m := &revokdv1.FingerprintKeysResponse{}
	for _, k := range s.node.Keys() {
		key := &revokdv1.FingerprintKey{Id: k.ID.String(), InUse: k.Primary, Records: uint64(k.Records)}
		if !k.LiveUntil.IsZero() {
			key.LiveUntil = timestamppb.New(k.LiveUntil)
		}
		m.Keys = append(m.Keys, key)
	}
	return connect.NewResponse(m), nil
}

func keyChange(m *revokdv1.FingerprintKeysRequest) (c node.KeyChange, err error) {
	id := func(field, text string) (revocation.KeyID, error) {
		v, err := strconv.ParseUint(text, 16, 64)
		if err != nil || len(text) != 16 || v == 0 {
			return 0, bad(field, "malformed", "string", "the id of a key: 16 hex digits")
		}
		return revocation.KeyID(v), nil
	}
	switch change := m.GetChange().(type) {
	case *revokdv1.FingerprintKeysRequest_Add:
		if !change.Add {
			return c, bad("add", "malformed", "boolean", "true")
		}
		rand.Read(c.Add[:])
	case *revokdv1.FingerprintKeysRequest_Use:
		c.Use, err = id("use", change.Use)
	case *revokdv1.FingerprintKeysRequest_Drop:
		c.Drop, err = id("drop", change.Drop)
	}
	return c, err
}
