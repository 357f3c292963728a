package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/remote"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// brokerSettings are the settings of commands that ask a broker.
var brokerSettings = append([]string{config.Broker, config.Timeout}, config.BrokerCredentials...)

// bundleWait is how long a command waits until the log of a broker covers a signature. Brokers take a second, and a
// minute while no witness cosigns.
const bundleWait = 90 * time.Second

// maxBundles is the number of requests whose bundles are taken for one image, newest first.
const maxBundles = 50

func approvalsAttachCommand(o *approvalsOptions) *cobra.Command {
	var request, file string
	c := &cobra.Command{
		Use:   "attach IMAGE",
		Short: "Put the approvals of an image's signatures into its registry",
		Long: `Take the bundle of approvals of each signature of an image from the broker that made the signature, and
put it into the registry beside the image, as a referrer of it. Run it after 'notation sign', with the
broker's settings of the key. The broker needs no access to the registry for this. A bundle that the
image has already is not added again.

Where no machine reaches both the broker and the registry, take the bundle to a file with 'hsm-image
approvals get', and give it with --file.

Everyone who can read the image can read the bundle. It has no names of people, but the reasons that they
gave, and the public keys of those who approved with SSH keys.`,
		Example: `  hsm-image approvals attach registry.example.com/team/app@sha256:... --broker https://broker.example.com
  hsm-image approvals attach registry.example.com/team/app:1.2 --file approvals.json`,
		Args: cli.Exactly(1),
	}
	o.add(c)
	given := cli.AddSettings(c, brokerSettings...)
	c.Flags().StringVar(&request, "request", "",
		"ID of the request that the image was signed with (default: all of the caller's for this image)")
	c.Flags().StringVar(&file, "file", "", "file with the bundle, instead of the broker's")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := cli.RefuseEmpty(c, "request", "file"); err != nil {
			return err
		}
		if file != "" && request != "" {
			return cli.Usage(c, failure.New(failure.Invalid, "--file and --request exclude each other"))
		}
		return o.withImage(c, args[0], func(ctx context.Context, i *approvedImage) error {
			if file != "" {
				bundle, err := readBundle(file)
				if err != nil {
					return err
				}
				return i.attach(ctx, c, []fetchedBundle{{file, bundle}})
			}
			return askBroker(given(), func(a brokerAsker) error {
				bundles, err := a.bundles(ctx, i.descriptor.Digest.String(), request)
				if err != nil {
					return err
				}
				return i.attach(ctx, c, bundles)
			})
		})
	}
	return c
}

// readBundle reads a bundle from a file.
func readBundle(path string) ([]byte, error) {
	data, err := bound.ReadFile(path, proof.MaxBundle)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the bundle of approvals in %s: %w", path, err).
			WithHint("give the file that 'hsm-image approvals get' has written")
	}
	if _, err := proof.Decode(data); err != nil {
		return nil, failure.New(failure.Invalid, "cannot attach %s: %w", path, err).
			WithHint("give the file that 'hsm-image approvals get' has written")
	}
	return data, nil
}

// fetchedBundle is a bundle and where it is from: the ID of a request, or a file.
type fetchedBundle struct {
	from string
	data []byte
}

// attach attaches bundles to the image, each for the signatures that it is of. It fails with NotFound if none is of a
// signature of the image.
func (i *approvedImage) attach(ctx context.Context, c *cobra.Command, bundles []fetchedBundle) error {
	shown := map[int]bool{}
	for _, b := range bundles {
		decoded, err := proof.Decode(b.data)
		if err != nil {
			return err
		}
		for n, s := range i.signatures {
			signed := attach.Signed(decoded, s.Payload)
			if signed == nil || signed.Signature != s.Signature.Signature {
				continue
			}
			d, added, err := attach.Push(ctx, i.repository, i.descriptor, b.data, s.Payload)
			if err != nil {
				return err
			}
			what := "has already"
			if added {
				what = "attached"
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: the approvals %s of the signature %s, from %s\n", what, d.Digest,
				s.manifest.Digest, b.from)
			shown[n] = true
		}
	}
	if len(shown) == 0 {
		return failure.New(failure.NotFound, "there are no approvals of a signature of %s", i.descriptor.Digest).
			WithHint("use the identity that asked for the signature, or name the request with --request; signatures that were " +
				"not made by the broker, or that nobody has to agree to, have none")
	}
	for n, s := range i.signatures {
		if !shown[n] {
			fmt.Fprintf(c.ErrOrStderr(), "warning: there are no approvals of the signature %s\n", s.manifest.Digest)
		}
	}
	return nil
}

// brokerAsker asks a broker of a team for bundles.
type brokerAsker struct {
	backend  *remote.Backend
	settings *config.Settings
}

// askBroker calls do with the broker that the settings name.
func askBroker(given map[string]string, do func(brokerAsker) error) error {
	s, err := config.Resolve(config.BrokerScheme, given, config.Flags)
	if err != nil {
		return err
	}
	if strings.TrimPrefix(s.Broker, "unix:") == "" {
		return failure.New(failure.Invalid, "no broker is named").
			WithHint("give --broker https://HOST[:PORT], or set NOTATION_HSM_BROKER")
	}
	backend := remote.New()
	defer backend.Close()
	return do(brokerAsker{backend, s})
}

// bundles returns the bundle of a request, or those of all requests of the caller for an artifact if it is "". Requests
// that nobody has to agree to have none.
func (a brokerAsker) bundles(ctx context.Context, digest, request string) (all []fetchedBundle, err error) {
	ids := []string{request}
	if request == "" {
		if ids, err = a.backend.SignedRequests(ctx, a.settings, digest); err != nil {
			return nil, err
		}
	}
	for _, id := range ids[:min(len(ids), maxBundles)] {
		data, err := a.bundle(ctx, id)
		switch {
		case err == nil:
			all = append(all, fetchedBundle{id, data})
		case request != "" || !failure.Is(err, failure.NotFound):
			return nil, err
		}
	}
	return all, nil
}

// bundle returns the bundle of a request. It waits until the log covers all entries of the request.
func (a brokerAsker) bundle(ctx context.Context, id string) ([]byte, error) {
	end := time.Now().Add(bundleWait)
	for {
		data, err := a.backend.Bundle(ctx, a.settings, id)
		if !failure.Is(err, failure.Unavailable) || time.Now().After(end) {
			return data, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
		}
	}
}

func approvalsGetCommand() *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "get ID --to FILE",
		Short: "Take the approvals of a request from the broker to a file",
		Long: `Take the bundle of approvals of a request from the broker to a file, for 'hsm-image approvals attach
--file' on a machine that reaches the registry and not the broker. The request has to be signed.`,
		Example: `  hsm-image approvals get 01J9ZK3V7Q --to approvals.json --broker https://broker.example.com`,
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, brokerSettings...)
	c.Flags().StringVar(&to, "to", "", "file for the bundle (required)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if to == "" {
			return cli.Required(c, "to", "approvals.json")
		}
		return askBroker(given(), func(a brokerAsker) error {
			data, err := a.bundle(c.Context(), args[0])
			if err != nil {
				return err
			}
			bundle, err := proof.Decode(data)
			if err != nil {
				return err
			}
			if !attach.HasSignature(bundle) {
				return failure.New(failure.NotFound, "the request %s has no signature yet", args[0]).
					WithHint("sign the image first, with 'notation sign'")
			}
			return state.Write(to, data, 0o644)
		})
	}
	return c
}
