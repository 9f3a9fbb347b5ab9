package main

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/revokd/revokd/internal/atomicfile"
	"github.com/revokd/revokd/internal/devissuer"
	"github.com/revokd/revokd/internal/pki"
)

// Names of what setup makes for each node, beside its certificate.
const (
	setupGossipKey      = "gossip.key"
	setupFingerprintKey = "fingerprint.key"
	setupIssuers        = "issuers.json"
	setupJWKS           = "jwks.json"
)

const maxSetupNodes = 64

func (c *cli) setupCommand() *cobra.Command {
	var cluster, out, issuers string
	var nodes []string
	var ifMissing bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make every secret of a new cluster in one go",
		Long: `Make every secret of a new cluster: a private authority, a certificate for each node and one for an admin, the key of the gossip, the
fingerprint key, and a file of issuers. What a node needs is in a directory of its own, to be copied there:

  OUT/ca/            the authority; keep its key off the nodes
  OUT/admin/         the certificate of an admin
  OUT/nodes/NAME/    NAME.crt NAME.key ca.crt gossip.key fingerprint.key issuers.json

The fingerprint key makes the journal readable: without it every revocation is lost. Without --issuers the file names an example
issuer, to try things out. Nothing is overwritten.`,
		Example: `  revokd setup --cluster prod --node n1=10.0.0.1 --node n2=10.0.0.2 --node n3=10.0.0.3 --issuers issuers.json
  revokd agent --node-name n1 --data-dir /var/lib/revokd --api-addr 10.0.0.1:7950 --gossip-addr 10.0.0.1:7956 \
    --tls-cert n1.crt --tls-key n1.key --tls-ca ca.crt --gossip-key-file gossip.key --key-file fingerprint.key --issuers issuers.json \
    --bootstrap-expect 3 --join 10.0.0.2:7956 --join 10.0.0.3:7956`,
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case cluster == "":
				return usagef("--cluster: missing: the name of the cluster, such as prod")
			case len(nodes) == 0 || len(nodes) > maxSetupNodes:
				return usagef("--node: 1 to %d nodes, each as NAME or NAME=HOST,HOST", maxSetupNodes)
			}
			if _, err := os.Stat(out); err == nil {
				if ifMissing {
					return c.write([]byte(out + " is there already: nothing was made\n"))
				}
				return fmt.Errorf("--out: %s is there already: nothing is overwritten", out)
			}
			// Made aside and renamed, so that an interrupted call leaves nothing that looks complete.
			aside := strings.TrimSuffix(out, string(filepath.Separator)) + ".tmp"
			if err := os.RemoveAll(aside); err != nil {
				return err
			}
			names, err := makeSetup(aside, cluster, nodes, issuers, time.Now())
			if err != nil {
				return errors.Join(caFailure(err), os.RemoveAll(aside))
			}
			if err := os.Rename(aside, out); err != nil {
				return err
			}
			r := struct {
				Out     string   `json:"out"`
				Cluster string   `json:"cluster"`
				Nodes   []string `json:"nodes"`
			}{out, cluster, names}
			return c.printValue(r, func(w io.Writer) {
				fmt.Fprintf(w, "cluster %s in %s\n", cluster, out)
				for _, n := range names {
					fmt.Fprintf(w, "  node   %s  %s\n", n, filepath.Join(out, "nodes", n))
				}
				fmt.Fprintf(w, "  admin  %s\n  keep   %s off the nodes\n", filepath.Join(out, "admin"), filepath.Join(out, "ca", pki.AuthorityKey))
			})
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&cluster, "cluster", "", "name of the cluster: lower-case letters, digits, dashes")
	cmd.Flags().StringArrayVar(&nodes, "node", nil, "name of a node, and the addresses under which it is reached: NAME or NAME=HOST,HOST; may be repeated")
	cmd.Flags().StringVar(&issuers, "issuers", "", "JSON file of the issuers, copied to each node (default an example)")
	cmd.Flags().StringVar(&out, "out", "cluster", "directory to make")
	cmd.Flags().BoolVar(&ifMissing, "if-missing", false, "succeed and do nothing if the directory is there")
	c.outputFlag(cmd)
	return cmd
}

// makeSetup makes the files and returns the names of the nodes.
func makeSetup(dir, cluster string, nodes []string, issuers string, now time.Time) (names []string, err error) {
	files, err := setupFiles(issuers)
	if err != nil {
		return nil, err
	}
	authority, err := pki.Create(filepath.Join(dir, "ca"), cluster, pki.AuthorityLifetime, false, now)
	if err != nil {
		return nil, err
	}
	for _, text := range nodes {
		name, list, _ := strings.Cut(text, "=")
		hosts := []string{name}
		if list != "" {
			hosts = append(hosts, strings.Split(list, ",")...)
		}
		at := filepath.Join(dir, "nodes", name)
		if _, err := authority.Issue(at, pki.Request{Role: pki.RoleNode, Name: name, Hosts: hosts}, false, now); err != nil {
			return nil, fmt.Errorf("--node %s: %w", name, err)
		}
		for file, content := range files {
			if err := atomicfile.Create(filepath.Join(at, file), content); err != nil {
				return nil, err
			}
		}
		names = append(names, name)
	}
	_, err = authority.Issue(filepath.Join(dir, "admin"), pki.Request{Role: pki.RoleAdmin, Name: "admin"}, false, now)
	return names, err
}

// setupFiles are what all nodes share.
func setupFiles(issuers string) (map[string][]byte, error) {
	var gossip [32]byte
	var fingerprint [16]byte
	rand.Read(gossip[:])
	rand.Read(fingerprint[:])
	files := map[string][]byte{
		setupGossipKey:      []byte(base64.StdEncoding.EncodeToString(gossip[:]) + "\n"),
		setupFingerprintKey: []byte(hex.EncodeToString(fingerprint[:]) + "\n"),
	}
	if issuers != "" {
		b, err := os.ReadFile(issuers)
		if err != nil {
			return nil, fmt.Errorf("--issuers: %w", err)
		}
		files[setupIssuers] = b
		return files, nil
	}
	example, err := devissuer.New()
	if err != nil {
		return nil, err
	}
	files[setupJWKS] = example.JWKS()
	files[setupIssuers] = fmt.Appendf(nil, "{\"issuers\":[{\"issuer\":%q,\"keys_file\":%q}]}\n", example.TokenIssuer().Name, setupJWKS)
	return files, nil
}
