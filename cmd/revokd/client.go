package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/bearer"
	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
	"github.com/revokd/revokd/internal/transport"
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
	cmd.Flags().StringVar(&c.tls.ca, "tls-ca", "", "file with the cluster's authority: the node is called with TLS (env REVOKD_TLS_CA)")
	cmd.Flags().StringVar(&c.tls.cert, "tls-cert", "", "file with our certificate, whose role says what we may do (env REVOKD_TLS_CERT)")
	cmd.Flags().StringVar(&c.tls.key, "tls-key", "", "file with its key (env REVOKD_TLS_KEY)")
	cmd.Flags().StringVar(&c.bearer, "token-file", "", "file with a bearer token that says who we are, instead of a certificate (env REVOKD_TOKEN_FILE)")
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
	ca := c.tlsConfig().CA
	if !strings.Contains(addr, "://") && ca != "" {
		addr = "https://" + addr
	} else if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", usagef("%s: malformed: want a URL such as %s, or host:port", source, defaultAddr)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", usagef("%s: scheme %q: want http or https", source, u.Scheme)
	case u.Scheme == "https" && ca == "":
		return "", usagef("--tls-ca: missing: with https the file with the cluster's authority is needed (or REVOKD_TLS_CA)")
	case u.Scheme == "http" && c.tls != tlsFiles{}:
		return "", usagef("%s: conflict: http is without TLS; say https, or only host:port", source)
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

// tlsFiles are the flags of TLS.
type tlsFiles struct{ ca, cert, key string }

// tlsConfig returns the files of TLS: each flag over its variable.
func (c *cli) tlsConfig() pki.Config {
	return pki.Config{
		CA: cmp.Or(c.tls.ca, c.getenv("REVOKD_TLS_CA")), Cert: cmp.Or(c.tls.cert, c.getenv("REVOKD_TLS_CERT")),
		Key: cmp.Or(c.tls.key, c.getenv("REVOKD_TLS_KEY")), Clock: clock.System(),
	}
}

// httpClient returns a client and the URL of the node.
func (c *cli) httpClient() (client *http.Client, base string, err error) {
	if base, err = c.baseURL(); err != nil {
		return nil, "", err
	}
	var cfg *tls.Config
	if strings.HasPrefix(base, "https:") {
		source, err := pki.Load(c.tlsConfig())
		if err != nil {
			return nil, "", fmt.Errorf("--tls-ca, --tls-cert, --tls-key: %w", err)
		}
		cfg = source.ClientConfig("")
	}
	client = &http.Client{Transport: telling{transport.New(cfg, nil)}}
	if path := cmp.Or(c.bearer, c.getenv("REVOKD_TOKEN_FILE")); path != "" {
		token, err := bearer.ReadFile(path)
		if err != nil {
			return nil, "", fmt.Errorf("--token-file: %w", err)
		}
		client.Transport = &bearer.Transport{Base: client.Transport, Token: token}
	}
	return client, base, nil
}

// likely is a reason that was found out afterwards: the call that failed may have got further.
type likely struct{ error }

func (e *likely) Unwrap() error { return e.error }

// telling says of a call that fails when it is our certificate that the node refuses.
type telling struct{ *transport.Transport }

func (t telling) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := t.Transport.RoundTrip(r)
	if err != nil && r.Context().Err() == nil && !noHandshake(err) {
		if refused := t.Refused(r.Context(), r.URL.Host, err); refused != nil {
			return nil, &likely{refused}
		}
	}
	return res, err
}

func (c *cli) service() (revokdv1connect.RevocationServiceClient, error) {
	client, base, err := c.httpClient()
	if err != nil {
		return nil, err
	}
	return revokdv1connect.NewRevocationServiceClient(client, base, connect.WithReadMaxBytes(maxAnswer)), nil
}

func (c *cli) clusterService() (revokdv1connect.ClusterServiceClient, error) {
	client, base, err := c.httpClient()
	if err != nil {
		return nil, err
	}
	return revokdv1connect.NewClusterServiceClient(client, base, connect.WithReadMaxBytes(maxAnswer)), nil
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
		arrived = arrived || !connect.IsWireError(err) && !errors.Is(err, syscall.ECONNREFUSED) && (!noHandshake(err) || errors.As(err, new(*likely)))
		// A connection that the other side ends at once may look canceled: the next attempt tells why.
		ended := connect.CodeOf(err) == connect.CodeCanceled && ctx.Err() == nil
		again := (connect.CodeOf(err) == connect.CodeUnavailable || ended) && attempt < len(retries) && !noHandshake(err)
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

// noHandshake reports whether one side has refused the other's certificate: then no request was sent, or none was read.
func noHandshake(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return pki.IsRefusal(err) || errors.Is(err, bearer.ErrPlaintext) ||
		ok && op.Op == "remote error" // an alert of TLS
}

// rootCause is the text of an error without what the layers of HTTP have put before it.
func rootCause(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Error()
	}
	var remote *connect.Error
	if errors.As(err, &remote) {
		return remote.Message()
	}
	if request, ok := errors.AsType[*url.Error](err); ok {
		return request.Err.Error()
	}
	return err.Error()
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
	case errors.Is(err, bearer.ErrPlaintext):
		return fmt.Errorf("%s: --token-file: not allowed: %w (--tls-ca)", base, bearer.ErrPlaintext)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens at %s: is `revokd agent` running there? (--addr or REVOKD_ADDR names the node)", base)
	case noHandshake(err) && errors.As(err, new(*net.OpError)):
		return fmt.Errorf("%s does not accept the certificate of --tls-cert: is it from the node's authority and cluster, and not expired? (%s)", base, rootCause(err))
	case noHandshake(err):
		return fmt.Errorf("%s is not accepted as a node of the cluster of --tls-ca: %s", base, rootCause(err))
	case (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)) && strings.HasPrefix(base, "http:"):
		return fmt.Errorf("%s ends the connection: does it want TLS? (--tls-ca, --tls-cert, --tls-key)", base)
	case connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return fmt.Errorf("no answer from %s within %s (--timeout)", base, c.timeout)
	case connect.CodeOf(err) == connect.CodeCanceled:
		return errors.New("interrupted")
	case remote != nil:
		return fmt.Errorf("%s: %s", base, cmp.Or(remote.Message(), remote.Code().String()))
	}
	return fmt.Errorf("%s: %w", base, err)
}
