// Package verification is what the commands that verify images share: their flags, one call of the gate, and how
// decisions are printed.
package verification

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

// Flags are the flags of a command that verifies images.
type Flags struct {
	command  *cobra.Command
	options  gate.Options
	stateDir string
	logFile  string
	timeout  time.Duration
}

// AddFlags adds the flags to a command.
func AddFlags(c *cobra.Command) *Flags {
	f := &Flags{command: c}
	c.Flags().StringVar(&f.options.TrustDir, "trust-dir", "",
		"folder with trustpolicy.json and truststore, written by 'notation-hsm trust export --to' (default: Notation's)")
	c.Flags().BoolVar(&f.options.PlainHTTP, "plain-http", false, "use plain HTTP for the registries")
	AddPluginFlag(c, &f.options)
	c.Flags().StringVar(&f.stateDir, "state-dir", "",
		"folder that remembers the tag metadata that were seen (default: notation-hsm/state in the user's configuration "+
			"directory)")
	c.Flags().StringVar(&f.logFile, "log", "", "decision log, to which a line of JSON is added for each image")
	c.Flags().DurationVar(&f.timeout, "timeout", time.Minute, "timeout for one image")
	return f
}

// AddPluginFlag adds the flag that lists the verification plugins.
func AddPluginFlag(c *cobra.Command, options *gate.Options) {
	c.Flags().StringArrayVar(&options.VerificationPlugins, "verification-plugin", nil,
		"Notation plugin that may run if a signature names it for its verification; can be repeated (default: none)")
}

// Verify verifies images as the flags say, and returns their decisions in the order of images. scope is the repository
// whose trust policy applies to images in OCI layouts. It fails if the flags are wrong, the trust policy cannot be used
// or the decisions cannot be logged. A refusal is a decision, not a failure.
func (f *Flags) Verify(ctx context.Context, images []string, scope string) ([]gate.Decision, error) {
	if err := cli.RefuseEmpty(f.command, "trust-dir", "log", "state-dir"); err != nil {
		return nil, err
	}
	if f.timeout <= 0 {
		return nil, cli.Usage(f.command, failure.New(failure.Invalid, "--timeout has to be more than 0"))
	}
	if f.stateDir != "" {
		f.options.TagsDir = filepath.Join(f.stateDir, gate.TagsFolder)
	}
	gate.LimitMemory()
	// Few collections: they would take a twentieth of the time for ten images, and LimitMemory bounds the heap.
	debug.SetGCPercent(400)
	g, err := gate.Open(f.options)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	decisions := g.Verify(ctx, images, scope, f.timeout)
	if f.logFile != "" {
		if err := appendDecisions(ctx, f.logFile, decisions); err != nil {
			return nil, err
		}
	}
	return decisions, nil
}

// Pin verifies an image in a registry and returns it as REPOSITORY@DIGEST: what is pulled by this name is what was
// verified, whatever the tag becomes. It writes a line to warnings for each check that failed and that the policy's
// level only logs, and if the image passes without a verified signature. It fails for an image that is refused.
func (f *Flags) Pin(ctx context.Context, image string, warnings io.Writer) (string, error) {
	repository, err := gate.Repository(image)
	if err != nil {
		return "", err
	}
	decisions, err := f.Verify(ctx, []string{image}, "")
	if err != nil {
		return "", err
	}
	d := decisions[0]
	if !d.Passed() {
		return "", failure.New(failure.Denied, "no valid trust data for %s: %s", d.Reference, d.Reason)
	}
	if d.Reason != "" {
		fmt.Fprintf(warnings, "warning: %s: %s\n", d.Reference, d.Reason)
	}
	for _, warning := range d.Warnings {
		fmt.Fprintf(warnings, "warning: %s: %s\n", d.Reference, warning)
	}
	return repository + "@" + d.Digest, nil
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
