package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

// defaultAddr is where a node listens unless told otherwise.
const defaultAddr = "http://127.0.0.1:7950"

// maxAnswer bounds what is read of one answer.
const maxAnswer = 16 << 20

// clientFlags adds what every command that talks to a node takes.
func (c *cli) clientFlags(cmd *cobra.Command) {
	cmd.Flags().SortFlags = false // in the order in which they were added
	cmd.Flags().StringVar(&c.addr, "addr", "", "node to talk to: URL or host:port (env REVOKD_ADDR, default "+defaultAddr+")")
	cmd.Flags().DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for the answer, retries included")
	c.outputFlag(cmd)
}

// baseURL returns the address of the node: the flag over REVOKD_ADDR over the default.
func (c *cli) baseURL() (string, error) {
	addr, source := c.addr, "--addr"
	if addr == "" {
		if addr = c.getenv("REVOKD_ADDR"); addr == "" {
			addr = defaultAddr
		}
		source = "REVOKD_ADDR"
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", usagef("%s: malformed: want a URL such as %s, or host:port", source, defaultAddr)
	case u.Scheme != "http":
		return "", usagef("%s: scheme %q: only http is supported so far", source, u.Scheme)
	case u.Port() == "":
		u.Host = net.JoinHostPort(u.Hostname(), "7950")
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}

func (c *cli) getenv(name string) string {
	for _, kv := range c.environ {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// httpClient speaks HTTP/2 without TLS, which streams in both directions need, and notices a dead connection.
func httpClient() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{
		Protocols:   protocols,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}}
}

func (c *cli) service() (revokdv1connect.RevocationServiceClient, error) {
	base, err := c.baseURL()
	if err != nil {
		return nil, err
	}
	return revokdv1connect.NewRevocationServiceClient(httpClient(), base, connect.WithReadMaxBytes(maxAnswer)), nil
}

// retries are the pauses before another attempt when the node is unavailable.
var retries = []time.Duration{50 * time.Millisecond, 200 * time.Millisecond, 800 * time.Millisecond}

// method is a unary method of a generated client.
type method[Req, Res any] func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error)

// call calls a method and repeats it a bounded number of times, with the same request, while the node is
// unavailable. A write carries an idempotency key, so repeating it changes nothing.
func call[Req, Res any](ctx context.Context, c *cli, m method[Req, Res], req *Req) (*Res, error) {
	if c.timeout <= 0 {
		return nil, usagef("--timeout: out of range: more than 0")
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	arrived := false // perhaps
	for attempt := 0; ; attempt++ {
		res, err := m(ctx, connect.NewRequest(req))
		if err == nil {
			return res.Msg, nil
		}
		arrived = arrived || !connect.IsWireError(err) && !errors.Is(err, syscall.ECONNREFUSED)
		again := connect.CodeOf(err) == connect.CodeUnavailable && attempt < len(retries)
		if again {
			select {
			case <-time.After(retries[attempt]):
				continue
			case <-ctx.Done():
			}
		}
		err = c.explainFailure(err)
		if arrived {
			err = &lostAnswer{err}
		}
		return nil, err
	}
}

// lostAnswer: nobody here can know whether the call was carried out.
type lostAnswer struct{ error }

func (e *lostAnswer) Unwrap() error { return e.error }

// explainFailure says what to do about failures that happen before a node answers.
func (c *cli) explainFailure(err error) error {
	base, baseErr := c.baseURL()
	if baseErr != nil {
		return baseErr
	}
	var remote *connect.Error
	switch {
	case errors.As(err, &remote) && connect.IsWireError(err):
		return err
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: is `revokd agent` running there? (--addr or REVOKD_ADDR names the node)", base)
	case connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return fmt.Errorf("no answer from %s within %s (--timeout)", base, c.timeout)
	case connect.CodeOf(err) == connect.CodeCanceled:
		return errors.New("interrupted")
	case remote != nil:
		return fmt.Errorf("%s: %s", base, cmp.Or(remote.Message(), remote.Code().String()))
	}
	return fmt.Errorf("%s: %w", base, err)
}
