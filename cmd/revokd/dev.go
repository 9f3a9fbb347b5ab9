package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	revokdv1 "github.com/revokd/revokd/proto/revokd/v1"
	"github.com/revokd/revokd/proto/revokd/v1/revokdv1connect"
)

func (c *cli) devCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Commands for trying things out with a node started with --dev",
		Args:  noArguments,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.tokenCommand())
	return cmd
}

func (c *cli) tokenCommand() *cobra.Command {
	var sub, sid string
	var claims []string
	var ttl duration
	iat := instant{now: time.Now, seconds: true}
	alg := choice{allowed: []string{"eddsa", "es256", "rs256", "hs256"}}
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Mint a token of the node's dev issuer",
		Long:  `Mint a signed token of the node's dev issuer and print nothing else. Only a node started with --dev does that.`,
		Example: `  T=$(revokd dev token --sub alice)
  T=$(revokd dev token --sub alice --sid s1 --ttl 15m --claim tenant_id=acme --claim token_version:=6)`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			extra, err := parseClaims(claims)
			if err != nil {
				return err
			}
			client, base, err := c.httpClient()
			if err != nil {
				return err
			}
			req := &revokdv1.MintTokenRequest{Sub: sub, Sid: sid, Iat: iat.proto(), Alg: algorithms[alg.value], Claims: extra}
			if ttl.set {
				req.Ttl = durationpb.New(ttl.d)
			}
			dev := revokdv1connect.NewDevServiceClient(client, base, connect.WithReadMaxBytes(maxAnswer))
			res, err := call(cmd.Context(), c, dev.MintToken, req)
			if connect.CodeOf(err) == connect.CodeUnimplemented {
				return fmt.Errorf("%s mints no tokens: only a node started with --dev does", base)
			}
			if err != nil {
				return err
			}
			return c.print(res, func(w io.Writer) { fmt.Fprintln(w, res.GetToken()) })
		},
	}
	cmd.Flags().StringVar(&sub, "sub", "", "subject")
	cmd.Flags().StringVar(&sid, "sid", "", "session")
	cmd.Flags().StringArrayVar(&claims, "claim", nil, "another claim: name=text, or name:=JSON for anything but text, such as token_version:=7 for --below; repeatable")
	cmd.Flags().Var(&iat, "iat", "when it was issued: RFC 3339, Unix seconds as in tokens, Unix milliseconds, or from now such as -1h (default now)")
	cmd.Flags().Var(&ttl, "ttl", "lifetime (default 1h)")
	choiceFlag(cmd, &alg, "alg", "signature algorithm (default EdDSA)")
	c.clientFlags(cmd)
	return cmd
}

// algorithms are the names of RFC 7518 and 8037 for what people type.
var algorithms = map[string]string{"": "", "eddsa": "EdDSA", "es256": "ES256", "rs256": "RS256", "hs256": "HS256"}

// parseClaims reads name=text and name:=JSON.
func parseClaims(list []string) (*structpb.Struct, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := &structpb.Struct{Fields: map[string]*structpb.Value{}}
	for _, s := range list {
		name, text, ok := strings.Cut(s, "=")
		name, isJSON := strings.CutSuffix(name, ":")
		if !ok || name == "" {
			return nil, usagef("--claim: malformed: want name=text or name:=JSON")
		}
		if _, twice := out.Fields[name]; twice {
			return nil, usagef("--claim: %s is named twice", name)
		}
		if !isJSON {
			out.Fields[name] = structpb.NewStringValue(text)
			continue
		}
		var v structpb.Value
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			return nil, usagef("--claim: %s: malformed: want JSON after :=", name)
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && int64(v.GetNumberValue()) != n {
			return nil, usagef("--claim: %s: out of range: integers up to 2^53", name)
		}
		out.Fields[name] = &v
	}
	return out, nil
}
