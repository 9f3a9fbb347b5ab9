// Command revokd runs a node (revokd agent) and talks to one (every other command).
//
// Exit codes: 0 done, or the token is active; 1 an error; 2 wrong usage; 3 the token is revoked; 4 the node
// cannot judge the token.
package main

import (
	"os"

	// An image from scratch has no certificate authorities, and issuers' keys are fetched by https: Mozilla's then, as of the build. Those of the system win.
	_ "golang.org/x/crypto/x509roots/fallback"
)

func main() {
	os.Exit(run(os.Args[1:], &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, environ: os.Environ()}))
}
