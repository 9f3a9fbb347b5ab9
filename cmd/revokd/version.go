package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker in releases: see .goreleaser.yaml and the Makefile.
var (
	version = "" // such as v1.2.3
	commit  = ""
	date    = "" // of the commit, so that a release can be built again bit for bit
)

func init() {
	info, _ := debug.ReadBuildInfo()
	version, commit, date = stamp(version, commit, date, info)
}

// stamp completes what the linker was told by what the Go command has noted.
func stamp(version, commit, date string, info *debug.BuildInfo) (v, c, d string) {
	if info != nil {
		if version == "" && info.Main.Version != "(devel)" {
			version = info.Main.Version // of go install, or made of the repository
		}
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision" && commit == "":
				commit = s.Value
			case s.Key == "vcs.time" && date == "":
				date = s.Value
			}
		}
	}
	if version == "" {
		version = "dev"
	}
	return version, commit, date
}

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: `  revokd version --output json`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if c.output == "json" {
				return c.printJSON(struct {
					Version string `json:"version"`
					Commit  string `json:"commit,omitempty"`
					Date    string `json:"date,omitempty"`
					Go      string `json:"go"`
					OS      string `json:"os"`
					Arch    string `json:"arch"`
				}{version, commit, date, runtime.Version(), runtime.GOOS, runtime.GOARCH})
			}
			text := fmt.Sprintf("revokd %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			if commit != "" {
				text += fmt.Sprintf("commit %s %s\n", commit, date)
			}
			return c.write([]byte(text))
		},
	}
	c.outputFlag(cmd)
	return cmd
}
