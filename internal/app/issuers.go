package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/revokd/revokd/token"
)

const maxIssuersFile = 1 << 20

// issuersFile is the file that --issuers names. Durations are written as Go does: "30s", "24h".
type issuersFile struct {
	Issuers []issuerEntry `json:"issuers"`
}

type issuerEntry struct {
	Issuer             string       `json:"issuer"`               // the iss of its tokens
	JWKSURL            string       `json:"jwks_url,omitempty"`   // one of the three says where its keys are
	KeysFile           string       `json:"keys_file,omitempty"`  // relative to this file
	Discovery          bool         `json:"discovery,omitempty"`  // ask the issuer: OpenID Connect, RFC 8414
	Algorithms         []string     `json:"algorithms,omitempty"` // see token.Issuer for these and their defaults
	Types              []string     `json:"types,omitempty"`
	Audiences          []string     `json:"audiences,omitempty"`
	Leeway             jsonDuration `json:"leeway,omitempty"`
	Skew               jsonDuration `json:"skew,omitempty"`
	MaxTokenLifetime   jsonDuration `json:"max_token_lifetime,omitempty"`
	MaxSessionLifetime jsonDuration `json:"max_session_lifetime,omitempty"`
	SessionClaim       string       `json:"session_claim,omitempty"`
}

type jsonDuration time.Duration

func (d *jsonDuration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return errors.New(`a duration is a string such as "30s" or "24h"`)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return errors.New(`a duration is written as "30s" or "24h"`)
	}
	*d = jsonDuration(v)
	return nil
}

// readIssuers reads the file that --issuers names.
func readIssuers(path string) ([]token.Issuer, error) {
	b, err := readLimited(path, maxIssuersFile)
	if err != nil {
		return nil, err
	}
	return parseIssuers(b, path)
}

// parseIssuers reads what the file of a path holds.
func parseIssuers(b []byte, path string) ([]token.Issuer, error) {
	var file issuersFile
	if err := strictJSON(b, &file); err != nil {
		return nil, fmt.Errorf("%s: malformed: %w", path, err)
	}
	if len(file.Issuers) == 0 {
		return nil, fmt.Errorf(`%s: missing: at least one issuer, as in {"issuers":[{"issuer":"https://id.example","discovery":true}]}`, path)
	}
	out := make([]token.Issuer, 0, len(file.Issuers))
	for _, e := range file.Issuers {
		if e.KeysFile != "" && !filepath.IsAbs(e.KeysFile) {
			e.KeysFile = filepath.Join(filepath.Dir(path), e.KeysFile)
		}
		out = append(out, token.Issuer{
			Name: e.Issuer, JWKSURL: e.JWKSURL, KeysFile: e.KeysFile, Discovery: e.Discovery,
			Algorithms: e.Algorithms, Types: e.Types, Audiences: e.Audiences,
			Leeway: time.Duration(e.Leeway), Skew: time.Duration(e.Skew),
			MaxTokenLifetime: time.Duration(e.MaxTokenLifetime), MaxSessionLifetime: time.Duration(e.MaxSessionLifetime),
			SessionClaim: e.SessionClaim,
		})
	}
	return out, nil
}
