// Package revokdgrpc refuses revoked tokens in front of the methods of a gRPC server.
//
// # What it knows
//
// A function gives it the verified claims of a call; another one, usually Client.Allow of package client, says whether they may pass. [Interceptors.Unary] and
// [Interceptors.Stream] go into grpc.ChainUnaryInterceptor and grpc.ChainStreamInterceptor.
//
// # What it promises
//
//   - A call without a valid token, or with a revoked one, ends with Unauthenticated. A call with a token of which nobody can say whether it is revoked ends with
//     Unavailable and a RetryInfo, never Unauthenticated: it may be good.
//   - Whatever error it does not know is refused. Its text never reaches the caller, and errors.Is finds the cause in what an outer interceptor is given.
//   - A stream is checked when it begins and before each message in either direction, so a token revoked meanwhile moves no further message. One that waits
//     in between is ended by Config.OnRevoked: its context ends, and with it what the handler does under that context.
//
// # Concurrency
//
// [Interceptors] may be used concurrently if the functions of its Config may. The zero Interceptors is not usable.
package revokdgrpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/revokd/revokd/client"
	"github.com/revokd/revokd/revocation"
)

// Sentinels: one for each answer that is not for package client to name.
var (
	// ErrConfig: the configuration cannot be used.
	ErrConfig = errors.New("revokdgrpc: invalid configuration")
	// ErrNoToken: the call has no token, or more than one: answer Unauthenticated.
	ErrNoToken = errors.New("revokdgrpc: the call does not have one bearer token")
	// ErrInvalidToken: Claims refused the token: answer Unauthenticated.
	ErrInvalidToken = errors.New("revokdgrpc: the token is not valid")
	// ErrNotDecided: Allow failed with an error that says neither revoked nor unknown: answer Unavailable.
	ErrNotDecided = errors.New("revokdgrpc: whether the token is revoked could not be decided")
)

// Config of [New]. Zero fields mean the defaults.
type Config struct {
	// Allow decides: nil, or an error that matches client.ErrRevoked or client.ErrUnknown. Usually Client.Allow. Required.
	Allow func(*revocation.Claims) error
	// Claims returns the verified claims of a call; see [Bearer]. Its errors: [ErrNoToken], client.ErrUnknown when the token could not be verified through
	// no fault of its own (no keys), anything else: not valid. Required.
	Claims func(context.Context) (*revocation.Claims, error)
	// Skip names methods that need no token, such as /grpc.health.v1.Health/Check. Nil: none.
	Skip func(fullMethod string) bool
	// RetryAfter of Unavailable. Default 1 s.
	RetryAfter time.Duration
	// OnRevoked calls fn, at most once, when a revocation arrives that covers the claims of an open stream, until stop is called. Usually
	// Client.OnRevoked. Nil: streams are checked at their messages only.
	OnRevoked func(claims *revocation.Claims, fn func(revocation.Verdict)) (stop func())
}

// Interceptors of a server.
type Interceptors struct{ cfg Config }

// New checks the configuration. Errors match [ErrConfig].
func New(cfg Config) (*Interceptors, error) {
	if cfg.Allow == nil || cfg.Claims == nil {
		return nil, fmt.Errorf("%w: Allow and Claims: required", ErrConfig)
	}
	if cfg.RetryAfter < 0 {
		return nil, fmt.Errorf("%w: RetryAfter: not negative", ErrConfig)
	}
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = time.Second
	}
	return &Interceptors{cfg}, nil
}

// Unary is a grpc.UnaryServerInterceptor.
func (i *Interceptors) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if i.skip(info.FullMethod) {
		return handler(ctx, req)
	}
	claims, err := i.check(ctx)
	if err != nil {
		return nil, i.refusal(err)
	}
	return handler(NewContext(ctx, claims), req)
}

// Stream is a grpc.StreamServerInterceptor.
func (i *Interceptors) Stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if i.skip(info.FullMethod) {
		return handler(srv, s)
	}
	claims, err := i.check(s.Context())
	if err != nil {
		return i.refusal(err)
	}
	ctx, cancel := context.WithCancelCause(NewContext(s.Context(), claims))
	defer cancel(nil)
	if i.cfg.OnRevoked != nil {
		defer i.cfg.OnRevoked(claims, func(revocation.Verdict) { cancel(client.ErrRevoked) })()
	}
	err = handler(srv, &stream{ServerStream: s, ctx: ctx, by: i, claims: claims})
	if errors.Is(context.Cause(ctx), client.ErrRevoked) {
		return i.refusal(client.ErrRevoked) // whatever the handler made of the end of its context
	}
	return err
}

// stream checks again before each message.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	by     *Interceptors
	claims *revocation.Claims
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SendMsg(m any) error {
	if err := s.check(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(m)
}

func (s *stream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.check() // after the wait for the message
}

func (s *stream) check() error {
	if err := s.by.allow(s.claims); err != nil {
		return s.by.refusal(err)
	}
	return nil
}

func (i *Interceptors) skip(method string) bool { return i.cfg.Skip != nil && i.cfg.Skip(method) }

func (i *Interceptors) check(ctx context.Context) (*revocation.Claims, error) {
	claims, err := i.cfg.Claims(ctx)
	switch {
	case err == nil && claims == nil:
		return nil, ErrNoToken
	case err == nil:
		return claims, i.allow(claims)
	case errors.Is(err, ErrNoToken), errors.Is(err, client.ErrUnknown), errors.Is(err, client.ErrRevoked):
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrInvalidToken, err)
}

func (i *Interceptors) allow(claims *revocation.Claims) error {
	err := i.cfg.Allow(claims)
	if err == nil || errors.Is(err, client.ErrRevoked) || errors.Is(err, client.ErrUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotDecided, err)
}

// refused is a status for the caller that keeps its cause for interceptors around this one.
type refused struct {
	status *status.Status
	cause  error
}

func (r *refused) Error() string              { return r.status.Err().Error() }
func (r *refused) GRPCStatus() *status.Status { return r.status }
func (r *refused) Unwrap() error              { return r.cause }

// refusal is the one place where errors become codes.
func (i *Interceptors) refusal(err error) error {
	unauthenticated := func(text string) error { return &refused{status.New(codes.Unauthenticated, text), err} }
	switch {
	case errors.Is(err, client.ErrRevoked):
		return unauthenticated("the access token has been revoked")
	case errors.Is(err, ErrNoToken):
		return unauthenticated("an access token is required")
	case errors.Is(err, ErrInvalidToken):
		return unauthenticated("the access token is not valid")
	}
	s := status.New(codes.Unavailable, "whether the access token is valid cannot be said at the moment")
	if detailed, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(i.cfg.RetryAfter)}); err == nil {
		s = detailed
	}
	return &refused{s, err}
}

// Bearer makes Config.Claims of a function that verifies a token, such as Verifier.Claims of package revokdjwt: it takes the token from the metadata
// "authorization: Bearer ...".
func Bearer(verify func(ctx context.Context, token string) (*revocation.Claims, error)) func(context.Context) (*revocation.Claims, error) {
	return func(ctx context.Context) (*revocation.Claims, error) {
		values := metadata.ValueFromIncomingContext(ctx, "authorization")
		if len(values) != 1 {
			return nil, ErrNoToken
		}
		scheme, token, _ := strings.Cut(values[0], " ")
		if !strings.EqualFold(scheme, "Bearer") || token == "" {
			return nil, ErrNoToken
		}
		return verify(ctx, token)
	}
}

type contextKey struct{}

// NewContext returns a context with claims; the interceptors do so for the methods behind them.
func NewContext(ctx context.Context, c *revocation.Claims) context.Context {
	return context.WithValue(ctx, contextKey{}, c)
}

// FromContext returns the claims of the call that the interceptors have let pass, nil if there are none. They must not be changed.
func FromContext(ctx context.Context) *revocation.Claims {
	c, _ := ctx.Value(contextKey{}).(*revocation.Claims)
	return c
}
