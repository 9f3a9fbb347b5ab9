package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/revokd/revokd/cluster"
	"github.com/revokd/revokd/cluster/voters"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// passing lets time pass on the fixture's clock until the result is called.
func (f *fixture) passing() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for t := time.NewTicker(time.Millisecond); ctx.Err() == nil; <-t.C {
			f.clock.Advance(5 * time.Millisecond)
		}
	})
	return func() {
		cancel()
		running.Wait()
	}
}

// A change of the voters that is refused says why, and one that takes too long says what for.
func TestChangeVotersSaysWhy(t *testing.T) {
	f := start(t, func(c *setup) { c.paired = true })
	defer f.passing()()
	service := revokdv1connect.NewClusterServiceClient(f.http, f.url)
	for _, c := range []struct {
		name         string
		req          *revokdv1.ChangeVotersRequest
		kind, field  string
		limit, words string
	}{
		{"nothing", &revokdv1.ChangeVotersRequest{}, "missing", "change", "one of add, remove, accept_loss with the name of a node", "change: missing"},
		{"the last", &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Remove{Remove: "n1"}}, "voters", "remove", "", "the last voter cannot be removed"},
		{"nobody's loss", &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_AcceptLoss{AcceptLoss: "n7"}}, "voters", "accept_loss", "", "no voter has that name"},
		{
			"a node that is not there", &revokdv1.ChangeVotersRequest{Change: &revokdv1.ChangeVotersRequest_Add{Add: "n7"}, Timeout: durationpb.New(time.Second)},
			"voters", "", "it waits for the node to be seen", "the voters were not changed in time; the change may still come into force",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := service.ChangeVoters(t.Context(), connect.NewRequest(c.req))
			r := f.connectError(err)
			if r.detail.GetKind() != c.kind || r.detail.GetField() != c.field || r.detail.GetLimit() != c.limit || r.text[:min(len(c.words), len(r.text))] != c.words {
				t.Errorf("%v, detail %v", r, r.detail)
			}
		})
	}
}

// Status and Members tell how the node stands to its cluster.
func TestStatusOfReplication(t *testing.T) {
	f := start(t, func(c *setup) { c.paired = true })
	var r *revokdv1.ReplicationStatus
	eventually(t, "n2 is connected", func() bool {
		f.clock.Advance(5 * time.Millisecond)
		r = f.post("Status", "{}").message.(*revokdv1.StatusResponse).GetReplication()
		return r.GetPeers() == 1
	})
	if len(r.GetVoters()) != 1 || r.GetVoters()[0] != "n1" || r.GetVotersNumber() != 1 || !r.GetVotes() || r.GetClients() != 0 {
		t.Errorf("%v", r)
	}
	if r.GetQuorumAge() == nil || r.GetQuorumAge().AsDuration() != 0 || r.GetAllAge() == nil { // it is a majority by itself
		t.Errorf("%v", r)
	}
	res, err := revokdv1connect.NewClusterServiceClient(f.http, f.url).Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	st := f.post("Status", "{}").message.(*revokdv1.StatusResponse)
	if m := res.Msg.GetMembers()[0]; len(m.GetEpoch()) != 16 || m.GetEpoch() != st.GetEpoch() || m.Records == nil || int64(m.GetRecords()) != st.GetRecords() {
		t.Errorf("%v, in the status %v", m, st)
	}
	if m := res.Msg.GetMembers(); len(m) != 1 || !m[0].GetSelf() || !m[0].GetVoter() || m[0].GetStatus() != "alive" || m[0].GetApiAddr() != "127.0.0.1:1" {
		t.Errorf("%v", m)
	}
	// A lone node is all voters and has no cluster.
	lone := start(t)
	if r := lone.post("Status", "{}").message.(*revokdv1.StatusResponse).GetReplication(); !r.GetVotes() || r.GetPeers() != 0 || r.GetQuorumAge().AsDuration() != 0 {
		t.Errorf("%v", r)
	}
	_, err = revokdv1connect.NewClusterServiceClient(lone.http, lone.url).Members(t.Context(), connect.NewRequest(&revokdv1.MembersRequest{}))
	if got := lone.connectError(err); got.detail.GetKind() != "no_cluster" {
		t.Errorf("%v", got)
	}
}

// A key is used when all have it, and removed when nobody seals with it; who does not answer may lack it, or seal with it.
func TestMayChangeGossipKeys(t *testing.T) {
	ring := func(node string, ids ...string) *revokdv1.GossipKeysResponse_NodeKeys {
		return &revokdv1.GossipKeysResponse_NodeKeys{Node: node, Ids: ids}
	}
	silent := &revokdv1.GossipKeysResponse_NodeKeys{Node: "n3", Error: "refused"}
	type rings = []*revokdv1.GossipKeysResponse_NodeKeys
	for name, c := range map[string]struct {
		rings       rings
		use, remove string // why not
	}{
		"all have it and nobody uses it": {rings{ring("n1", "old", "new"), ring("n2", "old", "new")}, "", ""},
		"one uses it":                    {rings{ring("n1", "new", "old"), ring("n2", "old", "new")}, "", "n1 seals with it"},
		"all use it":                     {rings{ring("n1", "new"), ring("n2", "new", "old")}, "", "n1 seals with it; n2 seals with it"},
		"one lacks it":                   {rings{ring("n1", "old", "new"), ring("n2", "old")}, "n2 lacks it", ""},
		"nobody has it":                  {rings{ring("n1", "old"), ring("n2")}, cluster.ErrUnknownKey.Error(), cluster.ErrUnknownKey.Error()},
		"one does not answer":            {rings{ring("n1", "old", "new"), ring("n2", "old", "new"), silent}, "n3 does not answer: refused", "n3 does not answer: refused"},
		"a voter is not listed":          {rings{ring("n1", "old", "new")}, "n2 is a voter and not there", "n2 is a voter and not there"},
		"many lack it": {
			rings{ring("n1", "new"), ring("n2"), ring("c"), ring("d"), ring("e"), ring("f"), ring("g"), ring("h"), ring("i"), ring("j"), ring("k")},
			"n2 lacks it; c lacks it; d lacks it; e lacks it; f lacks it; g lacks it; h lacks it; i lacks it; 2 more", "n1 seals with it",
		},
	} {
		for remove, want := range map[bool]string{false: c.use, true: c.remove} {
			got := ""
			if err := mayChange(c.rings, []voters.Voter{{Name: "n1"}, {Name: "n2"}}, "new", remove); err != nil {
				got = err.Error()
				if reason, ok := errors.AsType[*because](err); ok {
					got = reason.why
				}
			}
			if got != want {
				t.Errorf("%s, remove %t: %q, want %q", name, remove, got, want)
			}
		}
	}
}

// A member is gone when it is dead for everybody, nobody has a session with it and it does not vote.
func TestPresent(t *testing.T) {
	for name, c := range map[string]struct {
		member *revokdv1.Member
		voter  bool
		why    string
		listed bool
	}{
		"dead":               {&revokdv1.Member{Name: "n2", Status: "dead"}, false, "", true},
		"left":               {&revokdv1.Member{Name: "n2", Status: "left"}, false, "", true},
		"alive":              {&revokdv1.Member{Name: "n2", Status: "alive"}, true, "alive", true},
		"suspect":            {&revokdv1.Member{Name: "n2", Status: "suspect"}, false, "suspect", true},
		"of a later version": {&revokdv1.Member{Name: "n2", Status: "asleep"}, false, "asleep", true},
		"connected":          {&revokdv1.Member{Name: "n2", Status: "dead", Connected: true}, true, "connected", true},
		"a dead voter":       {&revokdv1.Member{Name: "n2", Status: "dead"}, true, "a voter (revokd voters remove n2)", true},
		"a voter unlisted":   {&revokdv1.Member{Name: "n3", Status: "alive"}, true, "a voter (revokd voters remove n2)", true},
		"another one":        {&revokdv1.Member{Name: "n3", Status: "alive"}, false, "", false},
	} {
		m := &revokdv1.MembersResponse{Members: []*revokdv1.Member{c.member}, Voters: &revokdv1.Voters{Names: []string{"n1"}}}
		if c.voter {
			m.Voters.Names = append(m.Voters.Names, "n2")
		}
		if why, listed := present(m, "n2"); why != c.why || listed != c.listed {
			t.Errorf("%s: %q %t, want %q %t", name, why, listed, c.why, c.listed)
		}
	}
}

// other is a node that is asked by this one.
type other struct {
	revokdv1connect.ClusterServiceClient
	members       *revokdv1.MembersResponse
	silent, fails error
	told          []string
}

func (o *other) Members(context.Context, *connect.Request[revokdv1.MembersRequest]) (*connect.Response[revokdv1.MembersResponse], error) {
	return connect.NewResponse(o.members), o.silent
}

func (o *other) Forget(_ context.Context, c *connect.Request[revokdv1.ForgetRequest]) (*connect.Response[revokdv1.ForgetResponse], error) {
	o.told = append(o.told, fmt.Sprint(c.Msg.GetName(), " ", c.Msg.GetLocal()))
	return connect.NewResponse(&revokdv1.ForgetResponse{}), o.fails
}

// Who is gone for this node and not for another one is not forgotten by anybody.
func TestForgetAsksFirst(t *testing.T) {
	n2 := &other{}
	f := start(t, func(c *setup) {
		c.paired = true
		c.api.Peer = func(m cluster.Member) revokdv1connect.ClusterServiceClient {
			if m.Name != "n2" {
				t.Errorf("%s is asked", m.Name)
			}
			return n2
		}
	})
	defer f.passing()()
	for _, name := range []string{"n2", "n3"} { // n3 has gone: nobody asks it
		m, err := cluster.New(cluster.Config{
			Name: name, Bind: "127.0.0.1:0", Seeds: []string{f.node.Gossip().Local().Addr.String()},
			Meta: func() cluster.Meta { return cluster.Meta{State: cluster.Ready} },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() { stop(); running.Wait() })
		is := func(want cluster.Status) {
			t.Helper()
			eventually(t, fmt.Sprint(name, " is ", want), func() bool {
				return slices.ContainsFunc(f.node.Gossip().Members(), func(m cluster.Member) bool { return m.Name == name && m.Status == want })
			})
		}
		is(cluster.Alive)
		if name == "n3" {
			eventually(t, "n3 knows whom to say good-bye to", func() bool {
				return slices.ContainsFunc(m.Members(), func(m cluster.Member) bool { return m.Name == "n1" && m.Status == cluster.Alive })
			})
			if err := m.Leave(ctx); err != nil {
				t.Fatal(err)
			}
			is(cluster.Left)
		}
	}
	service := revokdv1connect.NewClusterServiceClient(f.http, f.url)
	sees := func(status string, voters ...string) *revokdv1.MembersResponse {
		return &revokdv1.MembersResponse{Members: []*revokdv1.Member{{Name: "n3", Status: status}}, Voters: &revokdv1.Voters{Names: voters}}
	}
	for _, c := range []struct {
		name string
		n2   other
		req  *revokdv1.ForgetRequest
		why  string // not
		told string
	}{
		{"alive there", other{members: sees("alive")}, &revokdv1.ForgetRequest{Name: "n3"}, "for n2 it is alive", "[]"},
		{"a voter there", other{members: sees("dead", "n3")}, &revokdv1.ForgetRequest{Name: "n3"}, "for n2 it is a voter (revokd voters remove n3)", "[]"},
		{"no answer", other{silent: errors.New("refused")}, &revokdv1.ForgetRequest{Name: "n3"}, "n2 does not answer: refused", "[]"},
		{"nobody's", other{members: sees("dead")}, &revokdv1.ForgetRequest{Name: "n4"}, "no node lists it", "[]"},
		{"itself", other{members: sees("dead")}, &revokdv1.ForgetRequest{Name: "n1"}, "for n1 it is alive", "[]"},
		{"no name", other{members: sees("dead")}, &revokdv1.ForgetRequest{}, "the name of a member", "[]"},
		{"not told", other{members: sees("dead"), fails: errors.New("refused")}, &revokdv1.ForgetRequest{Name: "n3"}, "not yet on n2: refused", "[n3 true]"},
		{"gone", other{members: sees("dead")}, &revokdv1.ForgetRequest{Name: "n3"}, "", "[n3 true]"},
		{"listed there only", other{members: &revokdv1.MembersResponse{Members: []*revokdv1.Member{{Name: "n5", Status: "dead"}}}}, &revokdv1.ForgetRequest{Name: "n5"}, "", "[n5 true]"},
		{"here only, alive", other{}, &revokdv1.ForgetRequest{Name: "n2", Local: true}, "for n1 it is alive", "[]"},
		{"here only, unlisted", other{}, &revokdv1.ForgetRequest{Name: "n4", Local: true}, "", "[]"},
	} {
		*n2 = c.n2
		_, err := service.Forget(t.Context(), connect.NewRequest(c.req))
		why := ""
		if err != nil {
			why = f.connectError(err).detail.GetLimit()
		}
		if why != c.why || fmt.Sprint(n2.told) != c.told {
			t.Errorf("%s: %q, told %v; want %q, %s", c.name, why, n2.told, c.why, c.told)
		}
	}
}
