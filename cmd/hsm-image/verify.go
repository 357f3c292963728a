package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
)

func verifyCommand() *cobra.Command {
	var options gate.Options
	var scope, log string
	var timeout time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify IMAGE...",
		Short: "Verify that images are signed as Notation's trust policy demands",
		Long: `Verify the signatures of images under Notation's trust policy and trust stores, and say who signed, or why a signature does not
count. The answer is that of 'notation verify' for the same configuration. It exits with 0 only if every image passes.

An image is named by tag or digest. Short names are Docker Hub's: alpine is docker.io/library/alpine:latest. oci:DIR:TAG or
oci:DIR@DIGEST is one in an OCI layout; --scope says whose policy counts for it. A tag is looked up once, and what passes is the
digest that is printed. An index that is signed covers the images that it lists.`,
		Example: `  hsm-image verify registry.example.com/team/app:1.2
  hsm-image verify --trust-dir cluster/notation --json registry.example.com/team/app@sha256:...`,
		Args: func(c *cobra.Command, args []string) error {
			if err := cobra.MinimumNArgs(1)(c, args); err != nil {
				return cli.Usage(c, err)
			}
			return nil
		},
	}
	c.Flags().StringVar(&options.TrustDir, "trust-dir", "",
		"folder with trustpolicy.json and truststore, as 'notation-hsm trust export --to' writes it (default: Notation's own)")
	c.Flags().BoolVar(&options.PlainHTTP, "plain-http", false, "speak plain HTTP to the registries")
	c.Flags().StringVar(&scope, "scope", "", "repository whose trust policy counts for images in OCI layouts")
	addPluginFlag(c, &options)
	c.Flags().StringVar(&log, "log", "", "file to which each decision is added as a line of JSON")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "longest wait for one image")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, images []string) error {
		if err := refuseEmpty(c, "trust-dir", "scope", "log"); err != nil {
			return err
		}
		if timeout <= 0 {
			return cli.Usage(c, failure.New(failure.Invalid, "--timeout has to be more than 0"))
		}
		gate.LimitMemory()
		// this ends before a collection pays for itself: with ten images that is a twentieth of the time
		debug.SetGCPercent(400)
		g, err := gate.Open(options)
		if err != nil {
			return err
		}
		defer g.Close()
		results := g.Verify(c.Context(), images, scope, timeout)
		if log != "" {
			if err := keep(c.Context(), log, results); err != nil {
				return err
			}
		}
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), results)
		} else {
			err = printResults(c.OutOrStdout(), results)
		}
		if err != nil {
			return err
		}
		bad := 0
		for _, r := range results {
			if !r.Passed() {
				bad++
			}
		}
		if bad > 0 {
			return failure.New(failure.Denied, "%d of %d images did not pass", bad, len(results))
		}
		return nil
	}
	return c
}

// addPluginFlag gives a command the flag that lists plugins of Notation's which signatures may name.
func addPluginFlag(c *cobra.Command, options *gate.Options) {
	c.Flags().StringArrayVar(&options.VerificationPlugins, "verification-plugin", nil,
		"verification plugin of Notation's that may run when a signature names it; repeatable (default: none)")
}

// refuseEmpty refuses flags that are given with nothing in them, as by a variable of a script that was never set: their
// defaults would be taken without a word, such as another trust policy.
func refuseEmpty(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if c.Flags().Changed(name) && c.Flags().Lookup(name).Value.String() == "" {
			return cli.Usage(c, failure.New(failure.Invalid, "--%s is empty", name))
		}
	}
	return nil
}

func keep(ctx context.Context, path string, results []gate.Result) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	log := gate.NewLog(path)
	for _, r := range results {
		if err := log.Append(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// printResults prints a paragraph for each image.
func printResults(w io.Writer, results []gate.Result) error {
	for i, r := range results {
		if i > 0 {
			fmt.Fprintln(w)
		}
		rows := [][]string{{"  digest", cli.OrDash(r.Digest)}, {"  policy", cli.OrDash(r.Policy)}}
		if r.Policy != "" {
			rows[1][1] += " (" + r.Level + ")"
		}
		if s := r.Signature; s != nil {
			rows = append(rows, []string{"  signer", s.Subject}, []string{"  issuer", s.Issuer},
				[]string{"  fingerprint", "sha256:" + s.Fingerprint},
				[]string{"  signed", clock(s.SigningTime)}, []string{"  expires", clock(s.Expiry)},
				[]string{"  timestamp", timestamp(s.Timestamp)})
		}
		for _, s := range r.Refused {
			rows = append(rows, []string{"  refused", s.Digest + ": " + s.String()})
		}
		for _, warning := range r.Warnings {
			rows = append(rows, []string{"  warning", warning})
		}
		if r.Reason != "" {
			rows = append(rows, []string{"  reason", r.Reason})
		}
		if err := cli.PrintTable(w, []string{r.Reference + ": " + r.Verdict}, rows); err != nil {
			return err
		}
	}
	return nil
}

func clock(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format(time.RFC3339)
}

func timestamp(t *gate.Timestamp) string {
	switch {
	case t == nil:
		return "-"
	case t.Verified:
		return clock(&t.Time) + " (verified)"
	}
	return clock(&t.Time) + " (not verified: the trust policy does not ask for it)"
}
