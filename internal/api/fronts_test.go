package api

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/revokd/revokd/internal/clock/clocktest"
	"github.com/revokd/revokd/node"
	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
	"github.com/revokd/revokd/revocation"
	"github.com/revokd/revokd/token"
	"github.com/revokd/revokd/ttlstore"
)

// The small world of the programs: lives are short, so that things end within one.
const (
	frontIssuer   = "https://id.example"
	frontLifetime = time.Hour
	frontSession  = 2 * time.Hour
	maxFrontSteps = 20
	maxFrontToken = 6
	// renewFronts is after how many programs the node is a new one: what they blocked stays for 400 days of its time.
	renewFronts = 1000
)

// frontTimes are the steps of time: a moment, the border of a second, what ends in between, and the slack.
var frontTimes = []time.Duration{
	time.Millisecond, 499 * time.Millisecond, time.Second, 30 * time.Second, time.Minute, revocation.DefaultSlack, 10 * time.Minute, 31 * time.Minute, time.Hour, 2 * time.Hour,
}

// front is a way to call a node.
type front struct {
	name   string
	client revokdv1connect.RevocationServiceClient
}

// direct calls a handler as if over HTTP/2, which gRPC insists on.
type direct struct{ handle http.HandlerFunc }

func (d direct) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	w := httptest.NewRecorder()
	d.handle(w, r)
	return w.Result(), nil
}

// fronts is a node in memory with the ways to call it.
type fronts struct {
	node  *node.Node
	clock *clocktest.Fake
	list  []front
	stop  func() error
}

func newFronts(t testing.TB) *fronts {
	t.Helper()
	issuer := token.Issuer{Name: frontIssuer, JWKSURL: "https://id.example/keys", MaxTokenLifetime: frontLifetime, MaxSessionLifetime: frontSession}
	verifier, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{issuer}})
	if err != nil {
		t.Fatal(err)
	}
	f := &fronts{clock: clocktest.New(noon)}
	f.node, err = node.New(node.Config{
		Name: "n1", Durability: node.DurabilityMemory, Key: revocation.Key{1}, Clock: f.clock, Policy: verifier.Policy(), Store: ttlstore.Config{Heap: true, MaxItems: 100_000},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{Node: f.node, Verifier: verifier, Now: f.clock.Now, Limits: Limits{WriterRate: 1e9, IssuerRate: 1e9}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- f.node.Run(ctx) }()
	eventually(t, "the node is ready", func() bool { return len(f.node.Ready()) == 0 })
	caller := &http.Client{Transport: direct{s.handle}}
	for _, by := range []struct {
		name    string
		options []connect.ClientOption
	}{{"connect", nil}, {"json", []connect.ClientOption{connect.WithProtoJSON()}}, {"grpc", []connect.ClientOption{connect.WithGRPC()}}, {"grpc-web", []connect.ClientOption{connect.WithGRPCWeb()}}} {
		f.list = append(f.list, front{by.name, revokdv1connect.NewRevocationServiceClient(caller, "http://localhost", by.options...)})
	}
	f.stop = func() error {
		cancel()
		return errors.Join(<-ran, f.node.Close())
	}
	return f
}

// advance lets time pass: a rehearsal reads the clocks, else the node does it ten times a second.
func (f *fronts) advance(t *testing.T, d time.Duration, any revocation.Match) {
	t.Helper()
	f.clock.Advance(d)
	if _, err := f.node.Rehearse(revocation.Request{Action: revocation.Unblock, Match: any}, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := f.node.Now(), f.clock.Now().UnixMilli(); got != want {
		t.Fatalf("the node is at %d, the clock at %d", got, want)
	}
}

// frontToken is a token that somebody has verified. Times are Unix milliseconds.
type frontToken struct {
	jti, sub, sid string
	iat, exp      int64
}

func (k frontToken) request(payload bool) *revokdv1.CheckRequest {
	if payload {
		return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Payload{Payload: k.payload()}}
	}
	return &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Claims{Claims: &structpb.Struct{Fields: map[string]*structpb.Value{
		"iss": structpb.NewStringValue(frontIssuer), "jti": structpb.NewStringValue(k.jti), "sub": structpb.NewStringValue(k.sub), "sid": structpb.NewStringValue(k.sid),
		"iat": structpb.NewNumberValue(float64(k.iat) / 1000), "exp": structpb.NewNumberValue(float64(k.exp) / 1000),
	}}}}
}

func (k frontToken) payload() []byte {
	return fmt.Appendf(nil, `{"iss":%q,"jti":%q,"sub":%q,"sid":%q,"iat":%d.%03d,"exp":%d.%03d}`, frontIssuer, k.jti, k.sub, k.sid, k.iat/1000, k.iat%1000, k.exp/1000, k.exp%1000)
}

// frontRule is something in force until a second: what has a time says since when, in milliseconds.
type frontRule struct {
	at, until int64
	lifted    bool
}

// frontModel is a list of what was revoked: what DESIGN says about it, by names and without fingerprints, records or joins.
type frontModel struct {
	denied  map[[2]string][]frontRule // by claim and value
	cutoffs map[string]frontRule      // the latest, by sub
	keeps   map[[2]string]frontRule   // the latest, by sub and sid
	blocks  map[string]frontRule      // the latest, or what lifted it, by sub
}

// kept: what has ended is of interest until no verifier takes a token that it concerns.
func (r frontRule) kept(now int64) bool {
	return r.until != 0 && r.until+int64(revocation.DefaultSlack/time.Second) >= now/1000
}

func (m *frontModel) denies(claim, value string, now int64) bool {
	for _, r := range m.denied[[2]string{claim, value}] {
		if r.kept(now) {
			return true
		}
	}
	return false
}

func (m *frontModel) revokes(k frontToken, now int64) bool {
	if m.denies("jti", k.jti, now) || m.denies("sid", k.sid, now) {
		return true
	}
	if b := m.blocks[k.sub]; !b.lifted && b.until >= now/1000 {
		return true
	}
	cutoff, keep := m.cutoffs[k.sub], m.keeps[[2]string{k.sub, k.sid}]
	return cutoff.kept(now) && k.iat < cutoff.at && (!keep.kept(now) || keep.at < cutoff.at)
}

func (m *frontModel) verdict(k frontToken, now int64) revokdv1.Verdict {
	switch {
	case m.revokes(k, now):
		return revokdv1.Verdict_VERDICT_REVOKED
	case k.exp+revocation.DefaultSlack.Milliseconds() < now: // what was known of it may be gone
		return revokdv1.Verdict_VERDICT_UNKNOWN
	}
	return revokdv1.Verdict_VERDICT_ACTIVE
}

// frontProgram is a program in execution. What it names is its own: a node has had others before.
type frontProgram struct {
	*testing.T
	*fronts
	id     string
	model  frontModel
	tokens []frontToken
	seen   map[string]bool // what all programs came to
}

func (p *frontProgram) now() int64 { return p.clock.Now().UnixMilli() }

func (p *frontProgram) sub(arg byte) string { return fmt.Sprintf("%s-u%d", p.id, arg&1) }
func (p *frontProgram) sid(arg byte) string { return fmt.Sprintf("%s-s%d", p.id, arg>>1&1) }

func matchOfFront(claim, value string) *revokdv1.Match {
	return &revokdv1.Match{Claims: map[string]string{"iss": frontIssuer, claim: value}}
}

func seconds(ms int64) int64 { return (ms + 999) / 1000 }

// step carries out two bytes: what, by which front and whether in a batch; and about whom, until when.
func (p *frontProgram) step(op, arg byte) {
	by, batch := p.list[op>>3&3], op>>5&1 == 1
	now := p.now()
	switch op & 7 {
	case 0:
		if len(p.tokens) == maxFrontToken {
			return
		}
		k := frontToken{jti: fmt.Sprintf("%s-%d", p.id, len(p.tokens)), sub: p.sub(arg), sid: p.sid(arg), iat: now / 1000 * 1000}
		if arg>>2&1 == 1 {
			k.iat = now // some issuers have milliseconds
		}
		if k.exp = k.iat + frontLifetime.Milliseconds(); arg>>3&1 == 1 {
			k.exp = k.iat + time.Minute.Milliseconds()
		}
		p.tokens = append(p.tokens, k)
	case 1:
		if len(p.tokens) == 0 {
			return
		}
		k, ends := p.tokens[int(arg>>1)%len(p.tokens)], int64(0)
		if arg&1 == 1 {
			ends = k.exp
		}
		p.deny(by, batch, "jti", k.jti, ends, now+frontLifetime.Milliseconds())
	case 2:
		ends := int64(0)
		if arg&1 == 1 {
			ends = now + time.Minute.Milliseconds()
		}
		p.deny(by, batch, "sid", p.sid(arg), ends, now+frontSession.Milliseconds())
	case 3:
		p.cutoff(by, batch, p.sub(arg), p.sid(arg), arg>>2&1 == 1)
	case 4:
		m, until := &revokdv1.BlockRequest{Match: matchOfFront("sub", p.sub(arg))}, now+revocation.MaxCeiling.Milliseconds()
		if arg>>2&1 == 1 {
			until = now + time.Minute.Milliseconds()
			m.ExpiresAt = at(until)
		}
		_, err := by.client.Block(p.Context(), connect.NewRequest(m))
		p.done(by, "block", err, false)
		p.model.blocks[p.sub(arg)] = frontRule{until: seconds(until)}
	case 5:
		_, err := by.client.Unblock(p.Context(), connect.NewRequest(&revokdv1.UnblockRequest{Match: matchOfFront("sub", p.sub(arg))}))
		p.done(by, "unblock", err, false)
		p.model.blocks[p.sub(arg)] = frontRule{lifted: true}
	case 6:
		any, err := revocation.ParseMatch("iss=" + frontIssuer + ",sub=" + p.sub(arg))
		if err != nil {
			p.Fatal(err)
		}
		p.advance(p.T, frontTimes[int(arg)%len(frontTimes)], any)
	case 7:
		p.ask()
	}
	for i, k := range p.tokens {
		if got, want := p.direct(k), p.model.verdict(k, p.now()); got.GetVerdict() != want {
			p.Fatalf("token %d: the node says %v, the model %s", i, got, want)
		}
	}
}

// direct asks the node itself.
func (p *frontProgram) direct(k frontToken) *revokdv1.CheckResponse {
	c, err := revocation.ParseClaims(k.payload())
	if err != nil {
		p.Fatal(err)
	}
	return verdictAnswer(p.node.Check(c))
}

func (p *frontProgram) done(by front, what string, err error, refused bool) {
	p.Helper()
	if (err != nil) != refused {
		p.Fatalf("%s by %s: %v, want an error: %v", what, by.name, err, refused)
	}
}

// revoke sends a request alone or in a batch of one, which is decoded in another way.
func (p *frontProgram) revoke(by front, batch bool, m *revokdv1.RevokeRequest) (revokdv1.Outcome, error) {
	if !batch {
		res, err := by.client.Revoke(p.Context(), connect.NewRequest(m))
		if err != nil {
			return 0, err
		}
		return res.Msg.GetOutcome(), nil
	}
	res, err := by.client.RevokeBatch(p.Context(), connect.NewRequest(&revokdv1.RevokeBatchRequest{Items: []*revokdv1.RevokeRequest{m}}))
	if err != nil {
		return 0, err
	}
	r := res.Msg.GetResults()[0]
	if e := r.GetError(); e != nil {
		return 0, fmt.Errorf("%s: %s", e.GetCode(), e.GetMessage())
	}
	return r.GetResponse().GetOutcome(), nil
}

// deny denies a token or a session, until a stated time or else until natural, in Unix milliseconds.
func (p *frontProgram) deny(by front, batch bool, claim, value string, stated, natural int64) {
	m := &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: matchOfFront(claim, value)}}
	until := natural
	if stated != 0 {
		until, m.ExpiresAt = stated, at(stated)
	}
	outcome, err := p.revoke(by, batch, m)
	p.done(by, claim, err, false)
	past := until+revocation.DefaultSlack.Milliseconds() <= p.now()
	if got := outcome == revokdv1.Outcome_OUTCOME_ALREADY_EXPIRED; got != past {
		p.Fatalf("%s by %s: %s, until %d at %d", claim, by.name, outcome, until, p.now())
	}
	if past {
		p.seen["already expired"] = true
	} else {
		key := [2]string{claim, value}
		p.model.denied[key] = append(p.model.denied[key], frontRule{until: seconds(until)})
	}
}

// cutoff logs a subject out, but for one session if it is to be kept. A session that is denied cannot be.
func (p *frontProgram) cutoff(by front, batch bool, sub, sid string, keep bool) {
	m := &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: matchOfFront("sub", sub)}}
	if keep {
		m.Keep = &revokdv1.Keep{Kept: &revokdv1.Keep_Session{Session: sid}}
	}
	refused := keep && p.model.denies("sid", sid, p.now())
	_, err := p.revoke(by, batch, m)
	p.done(by, "cutoff", err, refused)
	if refused {
		p.seen["keep refused"] = true
		return
	}
	r := frontRule{at: p.now(), until: seconds(p.now() + frontLifetime.Milliseconds())}
	p.model.cutoffs[sub] = r
	if keep {
		p.model.keeps[[2]string{sub, sid}] = r
	}
}

// ask asks every front about every token: all must say what the node says, to the last field, in whichever form the token comes.
func (p *frontProgram) ask() {
	if len(p.tokens) == 0 {
		return
	}
	for i, by := range p.list {
		m := new(revokdv1.CheckBatchRequest)
		for j, k := range p.tokens {
			m.Items = append(m.Items, k.request((i+j)%2 == 0))
		}
		res, err := by.client.CheckBatch(p.Context(), connect.NewRequest(m))
		p.done(by, "check", err, false)
		for j, k := range p.tokens {
			got, want := res.Msg.GetResults()[j], p.direct(k)
			if got.GetError() != nil || !proto.Equal(got.GetResponse(), want) {
				p.Fatalf("token %d: %s says %v, the node %v", j, by.name, got, want)
			}
			p.seen[want.GetVerdict().String()] = true
		}
		// Alone, it is the same.
		one, err := by.client.Check(p.Context(), connect.NewRequest(m.GetItems()[0]))
		p.done(by, "check", err, false)
		if !proto.Equal(one.Msg, res.Msg.GetResults()[0].GetResponse()) {
			p.Fatalf("%s says %v, and in a batch %v", by.name, one.Msg, res.Msg.GetResults()[0])
		}
	}
}

// FuzzFronts: bytes are a short program of revocations, each sent by one of the fronts, and of time. Whatever it is, all fronts and the node itself
// give one verdict, which is that of a plain list of what was revoked.
func FuzzFronts(f *testing.F) {
	for _, program := range []string{
		"\x00\x00\x01\x00\x07\x00",                         // a token is revoked
		"\x00\x00\x00\x03\x0b\x00\x06\x02\x00\x00\x07\x00", // a cutoff, and a token of afterwards
		"\x00\x00\x00\x02\x00\x01\x33\x06\x07\x00",         // but for one session, in a batch
		"\x00\x00\x02\x00\x1b\x04\x07\x00",                 // which is denied
		"\x00\x00\x14\x00\x07\x00\x1d\x00\x07\x00",         // blocked and not
		"\x00\x00\x0c\x04\x06\x04\x06\x02\x07\x00",         // until the block ends
		"\x00\x08\x06\x09\x07\x00",                         // long expired
		"\x00\x08\x01\x01\x06\x04\x06\x05\x29\x01\x06\x00\x29\x01\x07\x00",
		"\x00\x00\x0b\x04\x06\x00\x2b\x00\x07\x00\x06\x08\x06\x05\x06\x02\x07\x00",
		"\x00\x04\x00\x00\x03\x00\x07\x00\x06\x00\x00\x04\x07\x00",
	} {
		f.Add([]byte(program))
	}
	w := newFronts(f)
	programs, seen := 0, map[string]bool{}
	f.Cleanup(func() {
		// The seeds have all of it; what a worker of the fuzzer is given, or a single input, need not.
		if flag.Lookup("test.fuzz").Value.String() == "" && programs > 5 && len(seen) != 5 {
			f.Errorf("%d programs came to %v only", programs, seen)
		}
		if err := w.stop(); err != nil {
			f.Error(err)
		}
	})
	f.Fuzz(func(t *testing.T, program []byte) {
		if programs++; programs%renewFronts == 0 {
			if err := w.stop(); err != nil {
				t.Error(err)
			}
			w = newFronts(t)
		}
		p := &frontProgram{T: t, fronts: w, id: fmt.Sprint(programs), seen: seen, model: frontModel{
			denied: map[[2]string][]frontRule{}, cutoffs: map[string]frontRule{}, keeps: map[[2]string]frontRule{}, blocks: map[string]frontRule{},
		}}
		for i := 0; i+1 < min(len(program), 2*maxFrontSteps); i += 2 {
			p.step(program[i], program[i+1])
		}
		p.ask()
	})
}
