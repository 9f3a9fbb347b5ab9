package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// clusters serves ClusterService.
type clusters struct{ *Server }

var _ revokdv1connect.ClusterServiceHandler = clusters{}

func (s clusters) gossip() (*cluster.Members, error) {
	if g := s.node.Gossip(); g != nil {
		return g, nil
	}
	return nil, node.ErrNoCluster
}

func (s clusters) Members(context.Context, *connect.Request[revokdv1.MembersRequest]) (*connect.Response[revokdv1.MembersResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	self, st := s.node.Status(), s.node.Voters()
	m := &revokdv1.MembersResponse{Voters: s.voters()}
	peers := s.node.Peers()
	for _, p := range g.Members() {
		member := &revokdv1.Member{
			Name: p.Name, GossipAddr: p.Addr.String(), ApiAddr: p.Meta.APIAddr, Version: p.Meta.Version, Status: p.Status.String(), State: p.Meta.State.String(),
			Self: p.Name == self.Name, Since: timestamppb.New(p.Since), Epoch: epochAnswer(p.Meta.Epoch),
		}
		if member.Self {
			member.Records = proto.Uint64(uint64(self.Table.Items))
		}
		for _, v := range st.Config.Voters {
			member.Voter = member.Voter || v.Name == p.Name
		}
		if i := slices.IndexFunc(peers, func(q node.Peer) bool { return q.Name == p.Name && !q.Client }); i >= 0 {
			q := peers[i]
			member.Connected = true
			member.Behind, member.Ahead = q.Behind, q.Ahead
			if q.Counted {
				member.Records = &q.Records
			}
			if q.Timed {
				member.Rtt, member.ClockOffset = durationpb.New(q.RTT), durationpb.New(q.Offset)
			}
			member.ViewAge, member.AuditAge = ageAnswer(q.ViewAge), ageAnswer(q.AuditAge)
			member.Lag = lagAnswer(q.Lag)
		}
		m.Members = append(m.Members, member)
	}
	return connect.NewResponse(m), nil
}

// epochAnswer leaves out that of a version that did not tell it.
func epochAnswer(epoch uint64) string {
	if epoch == 0 {
		return ""
	}
	return fmt.Sprintf("%016x", epoch)
}

// ageAnswer leaves out an age that there is none of.
func ageAnswer(d time.Duration) *durationpb.Duration {
	if d == math.MaxInt64 {
		return nil
	}
	return durationpb.New(d)
}

func lagAnswer(l replication.Lag) *revokdv1.Lag {
	return &revokdv1.Lag{Count: l.Count, P50: durationpb.New(l.Quantile(0.5)), P99: durationpb.New(l.Quantile(0.99)), Last: durationpb.New(l.Last)}
}

func (s clusters) voters() *revokdv1.Voters {
	st := s.node.Voters()
	v := &revokdv1.Voters{Number: st.Config.Number, Hash: strconv.FormatUint(st.Hash, 16)}
	for _, voter := range st.Config.Voters {
		v.Names = append(v.Names, voter.Name)
	}
	for i, w := range st.Waits {
		if i > 0 {
			v.Pending += "; "
		}
		v.Pending += w
	}
	return v
}

func (s clusters) Join(_ context.Context, c *connect.Request[revokdv1.JoinRequest]) (*connect.Response[revokdv1.JoinResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	if len(c.Msg.GetAddresses()) == 0 {
		return nil, bad("addresses", "missing", "", "1 to 64 addresses of gossip: host:port, dns+name:port or dnssrv+name")
	}
	if err := g.Join(c.Msg.GetAddresses()); err != nil {
		return nil, &inField{"addresses", err}
	}
	return connect.NewResponse(&revokdv1.JoinResponse{}), nil
}

func (s clusters) Leave(ctx context.Context, _ *connect.Request[revokdv1.LeaveRequest]) (*connect.Response[revokdv1.LeaveResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	if err := g.Leave(ctx); err != nil {
		return nil, err
	}
	if s.cfg.Leave != nil {
		s.cfg.Leave()
	}
	return connect.NewResponse(&revokdv1.LeaveResponse{}), nil
}

func (s clusters) ChangeVoters(ctx context.Context, c *connect.Request[revokdv1.ChangeVotersRequest]) (*connect.Response[revokdv1.ChangeVotersResponse], error) {
	change := node.VoterChange{Add: c.Msg.GetAdd(), Remove: c.Msg.GetRemove(), AcceptLoss: c.Msg.GetAcceptLoss()}
	if change == (node.VoterChange{}) {
		return nil, bad("change", "missing", "", "one of add, remove, accept_loss with the name of a node")
	}
	limit := time.Duration(0)
	if t := c.Msg.GetTimeout(); t != nil {
		if limit = t.AsDuration(); t.CheckValid() != nil || limit <= 0 || limit > time.Minute {
			return nil, bad("timeout", "out_of_range", "duration", "above 0, at most 1 min")
		}
	}
	if err := s.node.ChangeVoters(ctx, change, limit); err != nil {
		return nil, err
	}
	return connect.NewResponse(&revokdv1.ChangeVotersResponse{Voters: s.voters()}), nil
}

func (s clusters) GossipKeys(ctx context.Context, c *connect.Request[revokdv1.GossipKeysRequest]) (*connect.Response[revokdv1.GossipKeysResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	m := &revokdv1.GossipKeysResponse{}
	if !c.Msg.GetLocal() && s.cfg.OtherKeys != nil {
		m.Nodes = s.cfg.OtherKeys(ctx, g.Members(), c.Msg)
		// A key is removed here only when it has been elsewhere, and used here only when all others have it.
		if slices.ContainsFunc(m.Nodes, func(n *revokdv1.GossipKeysResponse_NodeKeys) bool { return n.GetError() != "" }) && c.Msg.GetInstall() == "" && c.Msg.GetChange() != nil {
			m.Nodes = append(m.Nodes, s.keys(g))
			return connect.NewResponse(m), nil
		}
	}
	switch {
	case c.Msg.GetInstall() != "":
		key, decodeErr := base64.StdEncoding.DecodeString(c.Msg.GetInstall())
		if decodeErr != nil {
			return nil, bad("install", "malformed", "string", "16, 24 or 32 random bytes in base64")
		}
		_, err = g.InstallKey(key)
	case c.Msg.GetUse() != "":
		err = g.UseKey(c.Msg.GetUse())
	case c.Msg.GetRemove() != "":
		err = g.RemoveKey(c.Msg.GetRemove())
	}
	if err != nil {
		return nil, err
	}
	m.Nodes = append(m.Nodes, s.keys(g))
	return connect.NewResponse(m), nil
}

func (s clusters) keys(g *cluster.Members) *revokdv1.GossipKeysResponse_NodeKeys {
	n := &revokdv1.GossipKeysResponse_NodeKeys{Node: s.node.Status().Name}
	for _, k := range g.ListKeys() {
		n.Ids = append(n.Ids, k.ID)
	}
	return n
}

// Identity hands out the fingerprint key and the policy, to whom access allows it; on a loopback address without TLS, to everybody: whoever
// reaches that can ask about every token anyhow. The issuer's key of a development cluster is for its nodes.
func (s clusters) Identity(context.Context, *connect.Request[revokdv1.IdentityRequest]) (*connect.Response[revokdv1.IdentityResponse], error) {
	if s.cfg.Identity == nil {
		return nil, errNoIdentity
	}
	m := s.cfg.Identity()
	policy, err := json.Marshal(s.node.Policy())
	if err != nil {
		return nil, err
	}
	m.Policy, m.Slack = policy, durationpb.New(s.node.Slack())
	if ring := s.node.Ring(); !ring.Single() {
		if m.Ring, err = ring.MarshalBinary(); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(m), nil
}
