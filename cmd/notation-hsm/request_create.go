package main

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// maxReason is the length of the longest reason, in bytes.
const maxReason = 1000

func requestCreateCommand() *cobra.Command {
	var key, image, rule, reason string
	var metadata []string
	var expiry, limit time.Duration
	var wait, platforms, asJSON bool
	c := &cobra.Command{
		Use:   "create",
		Short: "Ask for a signature of an image by 'notation sign'",
		Long: `Ask for a signature of an image, which 'notation sign' makes afterwards with the same key, image,
--user-metadata and --expiry. The broker fetches the image's manifest from its registry, and its rules
see the repository that it comes from.

A rule for emergencies (break-glass in the policy) is used only when --rule names it, with a --reason,
which is in the log for ever and which all approvers are told.`,
		Example: `  notation-hsm request create --key broker:release --image registry.example.com/team/app@sha256:... --wait
  notation-hsm request create --key broker:release --image registry.example.com/team/app@sha256:... \
    --rule emergency --reason "fixes the outage of 1 May"`,
		Args: cli.Exactly(0),
	}
	given := cli.AddSettings(c, requestSettings...)
	c.Flags().StringVar(&key, "key", "", "key, such as broker:release, or its alias (required)")
	c.Flags().StringVar(&image, "image", "", "image with its digest: registry.example.com/team/app@sha256:... (required)")
	c.Flags().StringArrayVar(&metadata, "user-metadata", nil, "KEY=VALUE that notation gets as well (can be repeated)")
	c.Flags().DurationVar(&expiry, "expiry", 0, "validity of the signature, as notation gets it (default: for ever)")
	c.Flags().BoolVar(&platforms, "platforms", false,
		"for an index: ask for the signatures of the images of its platforms as well, in one request")
	c.Flags().StringVar(&rule, "rule", "", "rule of the policy for emergencies that is to be used")
	c.Flags().StringVar(&reason, "reason", "",
		"why you ask, for those who approve: it can be published with the approvals, so name no people "+
			"(required with --rule)")
	c.Flags().BoolVar(&wait, "wait", false, "wait until it is approved or has ended otherwise")
	addWait(c, &limit)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		switch {
		case key == "":
			return cli.Required(c, "key", "broker:release")
		case image == "":
			return cli.Required(c, "image", "registry.example.com/team/app@sha256:...")
		case rule != "" && reason == "":
			return cli.Required(c, "reason", `"fixes the outage of 1 May"`)
		case len(reason) > maxReason:
			return cli.Usage(c, failure.New(failure.Invalid, "--reason has %d bytes, and %d are the most", len(reason),
				maxReason))
		}
		n, err := newRequest(image, metadata, expiry)
		if err != nil {
			return cli.Usage(c, err)
		}
		n.Platforms, n.Rule, n.Reason = platforms, rule, reason
		return ask(c, key, given(), func(ctx context.Context, a asker) error {
			if n.Key, err = remote.NameOf(a.settings.Key); err != nil {
				return err
			}
			r, err := a.backend.CreateRequest(ctx, a.settings, n)
			if err != nil {
				return err
			}
			if wait && !r.State.Settled() {
				notifier(c)("waiting for %s", remote.Place(r))
				if r, err = a.backend.WaitRequest(ctx, a.settings, r.ID, limit); err != nil {
					return err
				}
			}
			if !wait && !r.State.Settled() {
				return printRequest(c, r, asJSON)
			}
			return finish(c, r, asJSON)
		})
	}
	return c
}

// newRequest returns the request for an image, without its key. Media type and size are left to the broker, which
// fetches the manifest.
func newRequest(image string, metadata []string, expiry time.Duration) (n brokerapi.NewRequest, err error) {
	repository, digest, hasDigest := strings.Cut(image, "@")
	if !hasDigest {
		return n, failure.New(failure.Invalid, "the image %q has no digest: a tag can be moved", image).
			WithHint("name it by the digest that your push printed, or that 'crane digest " + image +
				"' or 'oras resolve " + image + "' prints")
	}
	if at := strings.LastIndex(repository, ":"); at > strings.LastIndex(repository, "/") { // REPOSITORY:TAG@DIGEST
		repository = repository[:at]
	}
	if !config.IsRepository(repository) || !isDigest(digest) {
		return n, failure.New(failure.Invalid, "invalid image %q", image).
			WithHint("write it like registry.example.com/team/app@sha256:..., with 64 hex digits")
	}
	if expiry < 0 || expiry%time.Second != 0 {
		return n, failure.New(failure.Invalid, "invalid --expiry %s", expiry).
			WithHint("write it in whole seconds, minutes or hours, as in: --expiry 720h")
	}
	n = brokerapi.NewRequest{Repository: repository, Expiry: int64(expiry / time.Second),
		Artifact: brokerapi.Target{Format: payload.Notation, Digest: digest}}
	for _, pair := range metadata {
		name, value, ok := strings.Cut(pair, "=")
		if _, twice := n.Artifact.Annotations[name]; !ok || name == "" || twice {
			return n, failure.New(failure.Invalid, "invalid or repeated --user-metadata %q", pair).
				WithHint("write it as KEY=VALUE, each KEY once")
		}
		if n.Artifact.Annotations == nil {
			n.Artifact.Annotations = map[string]string{}
		}
		n.Artifact.Annotations[name] = value
	}
	return n, nil
}

// isDigest reports whether a text is a digest that OCI registers, in its one form.
func isDigest(text string) bool {
	return regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$`).MatchString(text)
}
