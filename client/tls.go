package client

import (
	"crypto/tls"
	"fmt"

	"github.com/revokd/revokd/internal/clock"
	"github.com/revokd/revokd/internal/pki"
)

// LoadTLS reads what "revokd ca issue client" has written and returns a [Config.TLS] that shows this certificate, whose role says what the client may do, and
// believes nodes of the same cluster only, whatever the address they were reached at. The files are read once: open another Client when they have been
// renewed. Without certFile and keyFile no certificate is shown. Errors match [ErrConfig].
func LoadTLS(certFile, keyFile, caFile string) (*tls.Config, error) {
	source, err := pki.Load(pki.Config{CA: caFile, Cert: certFile, Key: keyFile, Clock: clock.System()})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return source.ClientConfig(""), nil
}
