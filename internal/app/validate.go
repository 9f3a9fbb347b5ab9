package app

import (
	"errors"
	"fmt"

	"github.com/revokd/revokd/token"
)

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
