package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
)

// index teaches whoever opens the address.
func (s *Server) index(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	url := "http://" + r.Host
	if s.cfg.TLS != nil {
		url = "--cacert ca.crt --cert me.crt --key me.key https://" + r.Host
	}
	fmt.Fprintf(w, `revokd answers whether a JWT has been revoked.

Revoke a token, then check it:

  curl -H 'content-type: application/json' -d "{\"token\":\"$TOKEN\"}" %[1]s/revokd.v1.RevocationService/Revoke
  curl -H 'content-type: application/json' -d "{\"token\":\"$TOKEN\"}" %[1]s/revokd.v1.RevocationService/Check

  POST /revokd.v1.RevocationService/{Revoke,RevokeBatch,Block,Unblock,Check,CheckBatch,Explain,Status}
  POST the same, and RevokeStream, as gRPC and gRPC-Web; reflection and grpc.health.v1 are there
  GET  /healthz   the process is alive
  GET  /readyz    the node is ready, or what it waits for
  GET  /metrics   Prometheus
  POST /backup    everything that is durable, as one file
`, url)
	if s.cfg.Dev != nil {
		fmt.Fprintf(w, `
This is a development node. It signs tokens:

  curl -H 'content-type: application/json' -d '{"sub":"alice"}' %s/revokd.v1.DevService/MintToken
  GET  /.well-known/jwks.json   the keys that verify them
`, url)
	}
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	answer := struct {
		Ready      bool     `json:"ready"`
		WaitingFor []string `json:"waitingFor,omitempty"`
	}{WaitingFor: s.waitingFor()}
	answer.Ready = len(answer.WaitingFor) == 0
	w.Header().Set("Content-Type", "application/json")
	if !answer.Ready {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *Server) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	_, _ = w.Write(s.cfg.Dev.JWKS())
}

// health answers grpc.health.v1: every service is as ready as the node.
type health struct {
	server   *Server
	services []string
}

func (h health) Check(_ context.Context, r *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	if r.Service != "" && !slices.Contains(h.services, r.Service) {
		return nil, connect.NewError(connect.CodeNotFound, nil)
	}
	if len(h.server.waitingFor()) > 0 {
		return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
}
