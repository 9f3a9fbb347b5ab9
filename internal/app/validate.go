package app

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/revokd/revokd/token"
)

// ValidateConfig checks the settings of an agent and reads every file that they name. It returns all that is wrong, and the names of the issuers.
func ValidateConfig(cfg AgentConfig) (issuers []string, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	a := &agent{cfg: cfg}
	issuers, err = Validate(cfg.IssuersFile, cfg.KeyFile)
	problems := []error{err, a.loadTLS()}
	if _, err := a.readCredentials(); err != nil {
		problems = append(problems, err)
	}
	if path := cfg.Cluster.GossipKeyFile; path != "" {
		if _, err := readGossipKeys(path); err != nil {
			problems = append(problems, fmt.Errorf("--gossip-key-file: %w", err))
		}
	}
	_, err = cfg.Audit.config(filepath.Join(cfg.DataDir, cfg.NodeName))
	return issuers, errors.Join(append(problems, err)...)
}

// Validate reads the files that an agent would be started with and returns all that is wrong with them, and the names of the issuers. It asks
// nobody for keys and writes nothing. Errors name the flag and the file.
func Validate(issuersFile, keyFile string) (issuers []string, err error) {
	var problems []error
	if keyFile != "" {
		if _, err := readKey(keyFile); err != nil {
			problems = append(problems, fmt.Errorf("--key-file: %w", err))
		}
	}
	if issuersFile != "" {
		list, err := readIssuers(issuersFile)
		if err == nil {
			_, err = token.NewVerifier(token.Config{Issuers: list})
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("--issuers: %w", err))
		}
		for _, i := range list {
			issuers = append(issuers, i.Name)
		}
	}
	return issuers, errors.Join(problems...)
}
