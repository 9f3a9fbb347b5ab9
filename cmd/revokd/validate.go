package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/app"
)

// printValid says that files are valid.
func (c *cli) printValid(issuers []string) error {
	if c.output == "json" {
		return c.printJSON(struct {
			Valid   bool     `json:"valid"`
			Issuers []string `json:"issuers,omitempty"`
		}{true, issuers})
	}
	text := "valid\n"
	if len(issuers) > 0 {
		text = fmt.Sprintf("valid: issuers %s\n", strings.Join(issuers, ", "))
	}
	return c.write([]byte(text))
}

func (c *cli) validateCommand() *cobra.Command {
	var issuersFile, keyFile string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the files of an agent without starting it",
		Long: `Read the files that "revokd agent" would be started with and say all that is wrong with them. Nothing is started, asked or
written: whether an issuer's keys can be loaded shows when the agent runs. The exit code is 1 if something is wrong.`,
		Example: `  revokd validate --issuers issuers.json --key-file fingerprint.key`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if issuersFile == "" && keyFile == "" {
				return usagef("nothing to validate: --issuers or --key-file is needed")
			}
			issuers, err := app.Validate(issuersFile, keyFile)
			if err != nil {
				return err
			}
			return c.printValid(issuers)
		},
	}
	cmd.Flags().StringVar(&issuersFile, "issuers", "", "JSON file of the issuers")
	cmd.Flags().StringVar(&keyFile, "key-file", "", "file with the fingerprint key")
	c.outputFlag(cmd)
	return cmd
}
