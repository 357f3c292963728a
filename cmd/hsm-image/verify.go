package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
)

func verifyCommand() *cobra.Command {
	var options gate.Options
	var scope, logFile, stateDir string
	var timeout time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify IMAGE...",
		Short: "Verify that images are signed as Notation's trust policy demands",
		Long: `Verify the signatures of images under Notation's trust policy and trust stores. Print the signer of
each image, or why it is refused. Images pass as for 'notation verify' with the same configuration.
The exit code is 0 only if every image passes.

Name an image by tag or digest. Short names belong to Docker Hub: alpine is
docker.io/library/alpine:latest. An image in an OCI layout is oci:DIR:TAG or oci:DIR@DIGEST, with
the repository whose policy applies in --scope. A tag is resolved once: what passes is the digest
that is printed. The signature of an index covers the images that it lists.

Where the trust policy comes with a root for a repository's tags ('notation-hsm trust tags'), a tag
is what the TUF metadata in the registry say, and the role that signed it is printed. --state-dir
remembers their versions, so that no registry can go back to older ones: keep it.`,
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
		"folder with trustpolicy.json and truststore, written by 'notation-hsm trust export --to' (default: Notation's)")
	c.Flags().BoolVar(&options.PlainHTTP, "plain-http", false, "use plain HTTP for the registries")
	c.Flags().StringVar(&scope, "scope", "", "repository whose trust policy applies to images in OCI layouts")
	addPluginFlag(c, &options)
	c.Flags().StringVar(&stateDir, "state-dir", "",
		"folder that remembers the tag metadata that were seen (default: notation-hsm/state in the user's configuration "+
			"directory)")
	c.Flags().StringVar(&logFile, "log", "", "decision log, to which a line of JSON is added for each image")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "timeout for one image")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, images []string) error {
		if err := refuseEmpty(c, "trust-dir", "scope", "log", "state-dir"); err != nil {
			return err
		}
		if timeout <= 0 {
			return cli.Usage(c, failure.New(failure.Invalid, "--timeout has to be more than 0"))
		}
		if stateDir != "" {
			options.TagsDir = filepath.Join(stateDir, gate.TagsFolder)
		}
		gate.LimitMemory()
		// Few collections: they would take a twentieth of the time for ten images, and LimitMemory bounds the heap.
		debug.SetGCPercent(400)
		g, err := gate.Open(options)
		if err != nil {
			return err
		}
		defer g.Close()
		decisions := g.Verify(c.Context(), images, scope, timeout)
		if logFile != "" {
			if err := appendDecisions(c.Context(), logFile, decisions); err != nil {
				return err
			}
		}
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), decisions)
		} else {
			err = printDecisions(c.OutOrStdout(), decisions)
		}
		if err != nil {
			return err
		}
		return checkPassed(decisions)
	}
	return c
}

// checkPassed fails unless all images passed.
func checkPassed(decisions []gate.Decision) error {
	refused := 0
	for _, d := range decisions {
		if !d.Passed() {
			refused++
		}
	}
	if refused > 0 {
		return failure.New(failure.Denied, "%d of %d images did not pass", refused, len(decisions))
	}
	return nil
}

// addPluginFlag adds the flag that lists the verification plugins.
func addPluginFlag(c *cobra.Command, options *gate.Options) {
	c.Flags().StringArrayVar(&options.VerificationPlugins, "verification-plugin", nil,
		"Notation plugin that may run if a signature names it for its verification; can be repeated (default: none)")
}

// refuseEmpty fails for flags with an empty value, such as an unset variable of a script: their defaults would be used
// instead, for example another trust policy.
func refuseEmpty(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if c.Flags().Changed(name) && c.Flags().Lookup(name).Value.String() == "" {
			return cli.Usage(c, failure.New(failure.Invalid, "--%s is empty", name))
		}
	}
	return nil
}

// appendDecisions adds decisions to a log.
func appendDecisions(ctx context.Context, path string, decisions []gate.Decision) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	log := gate.NewLog(path)
	for _, d := range decisions {
		if err := log.Append(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// printDecisions prints a paragraph for each image.
func printDecisions(w io.Writer, decisions []gate.Decision) error {
	for i, d := range decisions {
		if i > 0 {
			fmt.Fprintln(w)
		}
		rows := [][]string{{"  digest", cli.OrDash(d.Digest)}, {"  policy", cli.OrDash(d.Policy)}}
		if d.Policy != "" {
			rows[1][1] += " (" + d.Level + ")"
		}
		if d.Tag != nil {
			rows = append(rows, []string{"  tag", d.Tag.String()})
		}
		if s := d.Signature; s != nil {
			rows = append(rows, []string{"  signer", s.Subject}, []string{"  issuer", s.Issuer},
				[]string{"  fingerprint", "sha256:" + s.Fingerprint},
				[]string{"  signed", formatTime(s.SigningTime)}, []string{"  expires", formatTime(s.Expiry)},
				[]string{"  timestamp", formatTimestamp(s.Timestamp)})
		}
		for _, s := range d.Refused {
			rows = append(rows, []string{"  refused", s.Digest + ": " + s.String()})
		}
		for _, warning := range d.Warnings {
			rows = append(rows, []string{"  warning", warning})
		}
		if d.Reason != "" {
			rows = append(rows, []string{"  reason", d.Reason})
		}
		if err := cli.PrintTable(w, []string{d.Reference + ": " + d.Verdict}, rows); err != nil {
			return err
		}
	}
	return nil
}

// formatTime returns a time in RFC 3339, or a dash for nil.
func formatTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format(time.RFC3339)
}

// formatTimestamp returns the time of a timestamp and whether it was verified, or a dash for nil.
func formatTimestamp(t *gate.Timestamp) string {
	switch {
	case t == nil:
		return "-"
	case t.Verified:
		return formatTime(&t.Time) + " (verified)"
	}
	return formatTime(&t.Time) + " (not verified: the trust policy does not ask for it)"
}
