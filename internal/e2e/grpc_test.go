package e2e_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// TestGRPC talks to the real program with Google's gRPC implementation, which shares no code with the node's.
func TestGRPC(t *testing.T) {
	p, _ := newNode(t, "").start(t)
	conn, err := grpc.NewClient(strings.TrimPrefix(p.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func(method string, in, out proto.Message) error {
		return conn.Invoke(t.Context(), "/revokd.v1."+method, in, out)
	}

	var minted revokdv1.MintTokenResponse
	if err := call("DevService/MintToken", &revokdv1.MintTokenRequest{Sub: "alice"}, &minted); err != nil {
		t.Fatal(err)
	}
	verdict := func() revokdv1.Verdict {
		t.Helper()
		var res revokdv1.CheckResponse
		if err := call("RevocationService/Check", &revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Token{Token: minted.GetToken()}}, &res); err != nil {
			t.Fatal(err)
		}
		return res.GetVerdict()
	}
	if v := verdict(); v != revokdv1.Verdict_VERDICT_ACTIVE {
		t.Errorf("%v before", v)
	}
	var revoked revokdv1.RevokeResponse
	err = call("RevocationService/Revoke", &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: minted.GetToken()}}, &revoked)
	if err != nil || revoked.GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED || revoked.GetReceipt().GetDurability() != revokdv1.Durability_DURABILITY_DISK {
		t.Errorf("%v, %v", &revoked, err)
	}
	if v := verdict(); v != revokdv1.Verdict_VERDICT_REVOKED {
		t.Errorf("%v after", v)
	}

	// Errors have a code and a detail that names the field.
	err = call("RevocationService/Revoke", &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: "a.b.c"}}, &revoked)
	st := status.Convert(err)
	if st.Code() != codes.InvalidArgument || len(st.Details()) == 0 {
		t.Fatalf("%v", err)
	}
	if detail, ok := st.Details()[0].(*revokdv1.ErrorDetail); !ok || detail.GetField() != "token" {
		t.Errorf("detail %v", st.Details()[0])
	}
}

// TestGRPCGenerated makes the same calls with the client that is generated into proto/, speaking gRPC.
func TestGRPCGenerated(t *testing.T) {
	p, _ := newNode(t, "").start(t)
	web := h2c(t)
	svc := revokdv1connect.NewRevocationServiceClient(web, p.URL, connect.WithGRPC())
	minted, err := revokdv1connect.NewDevServiceClient(web, p.URL, connect.WithGRPC()).MintToken(t.Context(), connect.NewRequest(&revokdv1.MintTokenRequest{Sub: "alice"}))
	if err != nil {
		t.Fatal(err)
	}
	raw := minted.Msg.GetToken()
	verdict := func() revokdv1.Verdict {
		t.Helper()
		res, err := svc.Check(t.Context(), connect.NewRequest(&revokdv1.CheckRequest{Subject: &revokdv1.CheckRequest_Token{Token: raw}}))
		if err != nil {
			t.Fatal(err)
		}
		if typ := res.Header().Get("Content-Type"); !strings.HasPrefix(typ, "application/grpc") {
			t.Fatalf("the answer is %q", typ)
		}
		return res.Msg.GetVerdict()
	}
	if v := verdict(); v != revokdv1.Verdict_VERDICT_ACTIVE {
		t.Errorf("%v before", v)
	}
	revoke := func(raw string) (*connect.Response[revokdv1.RevokeResponse], error) {
		return svc.Revoke(t.Context(), connect.NewRequest(&revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Token{Token: raw}}))
	}
	revoked, err := revoke(raw)
	if err != nil {
		t.Fatal(err)
	}
	if m := revoked.Msg; m.GetOutcome() != revokdv1.Outcome_OUTCOME_REVOKED || m.GetReceipt().GetDurability() != revokdv1.Durability_DURABILITY_DISK {
		t.Errorf("%v", m)
	}
	if v := verdict(); v != revokdv1.Verdict_VERDICT_REVOKED {
		t.Errorf("%v after", v)
	}

	_, err = revoke("a.b.c")
	coded := new(connect.Error)
	if !errors.As(err, &coded) || coded.Code() != connect.CodeInvalidArgument || len(coded.Details()) == 0 {
		t.Fatalf("%v", err)
	}
	if detail, err := coded.Details()[0].Value(); err != nil || detail.(*revokdv1.ErrorDetail).GetField() != "token" {
		t.Errorf("detail %v, %v", detail, err)
	}
}

func TestGRPCStream(t *testing.T) {
	p, api := newNode(t, "").start(t)
	conn, err := grpc.NewClient(strings.TrimPrefix(p.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{StreamName: "RevokeStream", ServerStreams: true, ClientStreams: true},
		"/revokd.v1.RevocationService/RevokeStream")
	if err != nil {
		t.Fatal(err)
	}
	h := newLedger(0)
	var entries []entry
	for range 10 {
		var m revokdv1.RevokeStreamRequest
		for range 100 {
			e := h.entry()
			entries = append(entries, e)
			m.Items = append(m.Items, &revokdv1.RevokeRequest{Target: &revokdv1.RevokeRequest_Match{Match: &revokdv1.Match{Claims: map[string]string{"iss": issuer, "jti": e.id()}}}})
		}
		if err := s.SendMsg(&m); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var last revokdv1.RevokeStreamResponse
	for {
		var m revokdv1.RevokeStreamResponse
		err := s.RecvMsg(&m)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		proto.Reset(&last)
		proto.Merge(&last, &m)
	}
	if last.GetAcknowledged() != 1000 || last.GetRevoked() != 1000 || last.GetReceipt().GetDurability() != revokdv1.Durability_DURABILITY_DISK {
		t.Errorf("last message %v", &last)
	}
	if missing := lost(t, api, entries); len(missing) > 0 {
		t.Errorf("%d revocations are not there", len(missing))
	}
}
