package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/replication"
	"github.com/revokd/revokd/cluster/voters"
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

// othersTimeout is how long other nodes have for an answer. Twice that is less than any call may take.
const othersTimeout = 10 * time.Second

// answer of another node, or why there is none.
type answer[T any] struct {
	node string
	msg  *T
	err  error
}

// askOthers calls members at once and returns their answers in the order of the members.
func askOthers[T any](ctx context.Context, s clusters, members []cluster.Member, call func(context.Context, revokdv1connect.ClusterServiceClient) (*connect.Response[T], error)) []answer[T] {
	ctx, cancel := context.WithTimeout(ctx, othersTimeout)
	defer cancel()
	answers := make([]answer[T], len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		wg.Go(func() {
			answers[i].node = m.Name
			res, err := call(ctx, s.cfg.Peer(m))
			if err != nil {
				answers[i].err = err
				return
			}
			answers[i].msg = res.Msg
		})
	}
	wg.Wait()
	return answers
}

// because is an error with the words that go to the caller as its limit.
type because struct {
	err error
	why string
}

func (e *because) Error() string { return e.err.Error() + ": " + e.why }
func (e *because) Unwrap() error { return e.err }

// maxReasons is how many reasons a refusal gives.
const maxReasons = 8

// refuse returns err with what stands in the way, nil if nothing does.
func refuse(err error, reasons []string) error {
	if len(reasons) == 0 {
		return nil
	}
	if more := len(reasons) - maxReasons; more > 0 {
		reasons = append(reasons[:maxReasons:maxReasons], fmt.Sprintf("%d more", more))
	}
	return &because{err, strings.Join(reasons, "; ")}
}

// errForget: a member does not count as one that has left, or not everywhere yet.
var errForget = errors.New("the member was not forgotten")

// Forget asks everybody before anybody is told: a member that one of them sees is not gone.
func (s clusters) Forget(ctx context.Context, c *connect.Request[revokdv1.ForgetRequest]) (*connect.Response[revokdv1.ForgetResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	name := c.Msg.GetName()
	if name == "" {
		return nil, bad("name", "missing", "string", "the name of a member")
	}
	own, err := s.Members(ctx, connect.NewRequest(&revokdv1.MembersRequest{}))
	if err != nil {
		return nil, err
	}
	self := s.node.Status().Name
	views := []answer[revokdv1.MembersResponse]{{node: self, msg: own.Msg}}
	var others []cluster.Member
	if !c.Msg.GetLocal() && s.cfg.Peer != nil {
		for _, m := range g.Members() {
			if m.Name != self && (m.Status == cluster.Alive || m.Status == cluster.Suspect) {
				others = append(others, m)
			}
		}
		views = append(views, askOthers(ctx, s, others, func(ctx context.Context, peer revokdv1connect.ClusterServiceClient) (*connect.Response[revokdv1.MembersResponse], error) {
			return peer.Members(ctx, connect.NewRequest(&revokdv1.MembersRequest{}))
		})...)
	}
	var reasons []string
	listed := c.Msg.GetLocal() // others may list whom this node does not
	for _, v := range views {
		if v.err != nil {
			reasons = append(reasons, fmt.Sprintf("%s does not answer: %s", v.node, v.err))
			continue
		}
		why, known := present(v.msg, name)
		if listed = listed || known; why != "" {
			reasons = append(reasons, fmt.Sprintf("for %s it is %s", v.node, why))
		}
	}
	if err := refuse(errForget, reasons); err != nil {
		return nil, err
	}
	if !listed {
		return nil, &because{errForget, "no node lists it"}
	}
	if err := g.Forget(name); err != nil {
		return nil, err
	}
	m := &revokdv1.ForgetResponse{Nodes: []string{self}}
	for _, a := range askOthers(ctx, s, others, func(ctx context.Context, peer revokdv1connect.ClusterServiceClient) (*connect.Response[revokdv1.ForgetResponse], error) {
		return peer.Forget(ctx, connect.NewRequest(&revokdv1.ForgetRequest{Name: name, Local: true}))
	}) {
		if a.err != nil {
			reasons = append(reasons, fmt.Sprintf("not yet on %s: %s", a.node, a.err))
			continue
		}
		m.Nodes = append(m.Nodes, a.node)
	}
	if err := refuse(errForget, reasons); err != nil {
		return nil, err
	}
	return connect.NewResponse(m), nil
}

// present says why a member is not gone for who has answered; listed is false if he does not know it.
func present(m *revokdv1.MembersResponse, name string) (why string, listed bool) {
	if slices.Contains(m.GetVoters().GetNames(), name) {
		why, listed = fmt.Sprintf("a voter (revokd voters remove %s)", name), true
	}
	if i := slices.IndexFunc(m.GetMembers(), func(p *revokdv1.Member) bool { return p.GetName() == name }); i >= 0 {
		listed = true
		switch p := m.GetMembers()[i]; {
		case p.GetStatus() != cluster.Dead.String() && p.GetStatus() != cluster.Left.String():
			why = p.GetStatus()
		case p.GetConnected(): // gossip is only an opinion
			why = "connected"
		}
	}
	return why, listed
}

// errGossipKeys: a change of the gossip keys was refused before any node was told.
var errGossipKeys = errors.New("the gossip keys were not changed on any node")

// GossipKeys asks everybody before a key is used or removed: who seals with a key that another one lacks is not heard by him, and is soon dead for him.
func (s clusters) GossipKeys(ctx context.Context, c *connect.Request[revokdv1.GossipKeysRequest]) (*connect.Response[revokdv1.GossipKeysResponse], error) {
	g, err := s.gossip()
	if err != nil {
		return nil, err
	}
	if c.Msg.GetLocal() || s.cfg.Peer == nil {
		if err := changeKeys(g, c.Msg); err != nil {
			return nil, err
		}
		return connect.NewResponse(&revokdv1.GossipKeysResponse{Nodes: []*revokdv1.GossipKeysResponse_NodeKeys{s.keys(g)}}), nil
	}
	self := s.node.Status().Name
	var others []cluster.Member
	for _, m := range g.Members() { // those dead too: that is only gossip's opinion, which may itself come of keys that differ
		if m.Name != self && m.Status != cluster.Left {
			others = append(others, m)
		}
	}
	id := cmp.Or(c.Msg.GetUse(), c.Msg.GetRemove())
	var m revokdv1.GossipKeysResponse
	if id != "" {
		rings := append(s.otherKeys(ctx, others, &revokdv1.GossipKeysRequest{}), s.keys(g))
		if err := mayChange(rings, s.node.Voters().Config.Voters, id, c.Msg.GetRemove() != ""); err != nil {
			return nil, err
		}
		for _, ring := range rings { // nothing to be removed
			if !slices.Contains(ring.GetIds(), id) {
				m.Nodes = append(m.Nodes, ring)
				others = slices.DeleteFunc(others, func(m cluster.Member) bool { return m.Name == ring.GetNode() })
			}
		}
	}
	m.Nodes = append(m.Nodes, s.otherKeys(ctx, others, c.Msg)...)
	if slices.ContainsFunc(m.Nodes, func(n *revokdv1.GossipKeysResponse_NodeKeys) bool { return n.GetNode() == self }) {
		return connect.NewResponse(&m), nil
	}
	if err := changeKeys(g, c.Msg); err != nil {
		return nil, err
	}
	m.Nodes = append(m.Nodes, s.keys(g))
	return connect.NewResponse(&m), nil
}

// mayChange says why a key must not be used, or removed, by all whose rings these are.
func mayChange(rings []*revokdv1.GossipKeysResponse_NodeKeys, list []voters.Voter, id string, remove bool) error {
	var silent, without, sealing []string
	heard := 0
	for _, ring := range rings {
		switch i := slices.Index(ring.GetIds(), id); {
		case ring.GetError() != "":
			silent = append(silent, fmt.Sprintf("%s does not answer: %s", ring.GetNode(), ring.GetError()))
			continue
		case i < 0:
			without = append(without, ring.GetNode()+" lacks it")
		case i == 0:
			sealing = append(sealing, ring.GetNode()+" seals with it")
		}
		heard++
	}
	for _, v := range list { // this node may have been started while it was cut off, and list nobody
		if !slices.ContainsFunc(rings, func(r *revokdv1.GossipKeysResponse_NodeKeys) bool { return r.GetNode() == v.Name }) {
			silent = append(silent, v.Name+" is a voter and not there")
		}
	}
	switch {
	case len(without) == heard:
		return cluster.ErrUnknownKey
	case remove && len(sealing) > 0:
		return refuse(cluster.ErrPrimaryKey, sealing)
	case remove:
		return refuse(errGossipKeys, silent)
	}
	return refuse(errGossipKeys, append(without, silent...))
}

// changeKeys makes a change on this node; none is no change.
func changeKeys(g *cluster.Members, m *revokdv1.GossipKeysRequest) error {
	switch {
	case m.GetInstall() != "":
		key, err := base64.StdEncoding.DecodeString(m.GetInstall())
		if err != nil {
			return bad("install", "malformed", "string", "16, 24 or 32 random bytes in base64")
		}
		_, err = g.InstallKey(key)
		return err
	case m.GetUse() != "":
		return g.UseKey(m.GetUse())
	case m.GetRemove() != "":
		return g.RemoveKey(m.GetRemove())
	}
	return nil
}

// otherKeys carries a change of the gossip keys, or the question which they have, to other members.
func (s clusters) otherKeys(ctx context.Context, members []cluster.Member, req *revokdv1.GossipKeysRequest) []*revokdv1.GossipKeysResponse_NodeKeys {
	var list []*revokdv1.GossipKeysResponse_NodeKeys
	for i, a := range askOthers(ctx, s, members, func(ctx context.Context, peer revokdv1connect.ClusterServiceClient) (*connect.Response[revokdv1.GossipKeysResponse], error) {
		return peer.GossipKeys(ctx, connect.NewRequest(&revokdv1.GossipKeysRequest{Change: req.GetChange(), Local: true}))
	}) {
		if a.err == nil {
			list = append(list, a.msg.GetNodes()...)
			continue
		}
		why := a.err.Error()
		if members[i].Status == cluster.Dead {
			why += fmt.Sprintf(" (if it is gone for good: revokd members forget %s)", a.node)
		}
		list = append(list, &revokdv1.GossipKeysResponse_NodeKeys{Node: a.node, Error: why})
	}
	return list
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
