package app

import (
	"context"
	"fmt"
	"time"

	"github.com/revokd/revokd/token"
)

// reloadTimeout bounds how long the disk may take to keep the issuers' settings.
const reloadTimeout = 30 * time.Second

// reload reads the settings (of which the rates and levels of the log can change), the file of issuers, that of credentials and those of TLS again, and takes all of them or none.
func (a *agent) reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	defer cancel()
	rates, apply := a.cfg.Rates, func() {}
	if a.cfg.Reread != nil {
		var err error
		if rates, apply, err = a.cfg.Reread(); err != nil {
			return err
		}
		if err := rates.validate(); err != nil {
			return err
		}
	}
	issuers, err := a.issuers()
	if err != nil {
		return err
	}
	next, err := token.NewVerifier(token.Config{Issuers: issuers, Logger: a.cfg.Logger})
	if err != nil {
		return fmt.Errorf("--issuers: %w", err)
	}
	if a.tls != nil {
		if err := a.tls.Check(); err != nil {
			return fmt.Errorf("--tls-cert, --tls-key, --tls-ca: %w", err)
		}
	}
	known, err := a.readCredentials()
	if err != nil {
		return err
	}
	if err := a.node.SetPolicy(ctx, next.Policy()); err != nil {
		return fmt.Errorf("the settings of the issuers: %w", err)
	}
	a.verifier.Replace(next)
	a.server.SetCredentials(known)
	a.server.SetRates(rates.Writer, rates.Bulk, rates.Issuer)
	apply()
	if a.tls != nil {
		// They were good a moment ago; if not any more, whoever follows them says so and tries again.
		return a.tls.Reload()
	}
	return nil
}

// issuers are those of the file, and that of a dev node.
func (a *agent) issuers() ([]token.Issuer, error) {
	var list []token.Issuer
	if a.cfg.IssuersFile != "" {
		var err error
		if list, err = readIssuers(a.cfg.IssuersFile); err != nil {
			return nil, fmt.Errorf("--issuers: %w", err)
		}
	}
	if a.dev != nil {
		list = append(list, a.dev.TokenIssuer())
	}
	return list, nil
}

// reloads reloads at each signal until ctx ends.
func (a *agent) reloads(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.cfg.Reload:
		}
		if err := a.reload(ctx); err != nil {
			a.cfg.Logger.Error("nothing was reloaded; what was there stays in force", "error", err)
			continue
		}
		a.cfg.Logger.Info("reloaded", "issuers", len(a.verifier.Keys()), "tls", a.tls != nil)
	}
}
