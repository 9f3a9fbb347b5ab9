package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Limits of the profiles.
const (
	maxProfiles     = 2               // at once
	maxProfile      = 2 * time.Minute // of collecting and sending one
	profilesTimeout = 5 * time.Second // for a request to arrive
)

// profiles serves the profiles of package pprof on a loopback address. They show what the program does and no value that it holds, but whoever is on this
// machine can have them, and have the program work for them: so they have an address of their own, which only the user of the machine opens.
type profiles struct {
	listener net.Listener
	server   *http.Server
}

// listenProfiles opens the address; it must be a loopback address, with TLS or without.
func listenProfiles(ctx context.Context, addr string, resolve lookup, log hclog.Logger) (*profiles, error) {
	at, err := loopback(ctx, addr, resolve)
	if errors.Is(err, errBeyond) {
		return nil, fmt.Errorf("--pprof-addr %s: %w: profiles have no credentials: a loopback address (127.0.0.1, ::1, localhost), reached from elsewhere through ssh -L", addr, errBeyond)
	}
	if err != nil {
		return nil, fmt.Errorf("--pprof-addr %s: %w", addr, err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("--pprof-addr %s: %w", addr, err)
	}
	log.Warn("profiles of this process are given to whoever is on this machine", "address", "http://"+ln.Addr().String()+"/debug/pprof/")
	return &profiles{ln, &http.Server{
		Handler: profilesHandler(), ReadHeaderTimeout: profilesTimeout, ReadTimeout: profilesTimeout, WriteTimeout: maxProfile, IdleTimeout: profilesTimeout,
		MaxHeaderBytes: 4 << 10, ErrorLog: log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}}, nil
}

func profilesHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	places := make(chan struct{}, maxProfiles)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A web page can make a browser on this machine ask, under its own name or from its own site.
		host, _, err := net.SplitHostPort(r.Host)
		site := r.Header.Get("Sec-Fetch-Site")
		if ip := net.ParseIP(host); err != nil || host != "localhost" && !ip.IsLoopback() || site != "" && site != "none" && site != "same-origin" {
			http.Error(w, "profiles are for programs on this machine, which ask a loopback address", http.StatusForbidden)
			return
		}
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
			mux.ServeHTTP(w, r)
		default:
			http.Error(w, "another profile is being made", http.StatusTooManyRequests)
		}
	})
}

// serve answers until ctx ends; a profile that is being made is cut off.
func (p *profiles) serve(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = p.server.Close() })()
	if err := p.server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("profiles: %w", err)
	}
	return nil
}
