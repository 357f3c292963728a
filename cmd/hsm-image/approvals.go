package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

func approvalsCommand() *cobra.Command {
	var o approvalsOptions
	c := cli.Group("approvals", "Put the approvals of a signature beside its image, and show and verify them",
		approvalsAttachCommand(&o), approvalsGetCommand(), approvalsShowCommand(&o),
		approvalsVerifyCommand(&o))
	c.Long = `Take the bundle of approvals of a signature from the broker that made the signature, put it into the
registry beside the image, and show or verify it there. A bundle shows without the broker who agreed to
the signature, and that the broker's log has it.`
	return c
}

// approvalsOptions are the flags of commands that read an image in a registry.
type approvalsOptions struct {
	authFile  string
	plainHTTP bool
}

func (o *approvalsOptions) add(c *cobra.Command) {
	c.Flags().BoolVar(&o.plainHTTP, "plain-http", false, "use plain HTTP for the registry")
	c.Flags().StringVar(&o.authFile, "authfile", "",
		"file with the registry's credentials (default: those of 'notation login', else of Podman or Docker)")
}

// maxSignatures is the number of signatures of one image that are read.
const maxSignatures = 50

// approvedImage is an image in a registry with its signatures.
type approvedImage struct {
	name       string // of the repository
	descriptor ocispec.Descriptor
	repository *remote.Repository
	signatures []imageSignature
}

// imageSignature is a signature whose envelope is valid. Whether its signer is trusted is another matter.
type imageSignature struct {
	*attach.Claims
	manifest ocispec.Descriptor
}

// withImage calls do with an image and its valid signatures. It fails with NotFound if the image has none.
func (o *approvalsOptions) withImage(c *cobra.Command, text string, do func(context.Context, *approvedImage) error,
) error {
	n, err := parseTagName(text)
	if err != nil {
		return err
	}
	reference := n.tag
	if n.digest != "" {
		reference = n.digest.String()
	}
	if reference == "" {
		return failure.New(failure.Invalid, "%q names a repository, not an image", text).
			WithHint("name it as in registry.example.com/team/app:v1 or registry.example.com/team/app@sha256:...")
	}
	registries := registry.New(registry.Options{AuthFile: o.authFile, PlainHTTP: o.plainHTTP})
	defer registries.Close()
	i := &approvedImage{name: n.repository, repository: registries.Repository(n.repository)}
	if i.descriptor, err = i.repository.Resolve(c.Context(), reference); err != nil {
		return unreadImage(err, "cannot find the image %s: %w", text, err)
	}
	if err := i.read(c); err != nil {
		return err
	}
	return do(c.Context(), i)
}

// read reads the signatures of the image. Those that cannot be read are told, and left out.
func (i *approvedImage) read(c *cobra.Command) error {
	ctx := c.Context()
	listed, more, err := attach.Signatures(ctx, i.repository, i.descriptor, maxSignatures)
	if err != nil {
		return unreadImage(err, "cannot list the signatures of %s: %w", i.descriptor.Digest, err)
	}
	if more {
		fmt.Fprintf(c.ErrOrStderr(), "warning: the image has more than %d signatures\n", maxSignatures)
	}
	for _, d := range listed {
		mediaType, envelope, err := attach.FetchEnvelope(ctx, i.repository, d)
		if kind := registry.Kind(err); err != nil && (kind != failure.Invalid && kind != failure.NotFound ||
			registry.Exhausted(err)) {
			return unreadImage(err, "cannot read the signature %s: %w", d.Digest, err)
		}
		var claims *attach.Claims
		if err == nil {
			err = gate.CheckEnvelope(mediaType, envelope)
		}
		if err == nil {
			claims, err = attach.Verify(mediaType, envelope)
		}
		if err == nil && claims.Digest != i.descriptor.Digest.String() {
			err = fmt.Errorf("it is a signature of %.100q", claims.Digest)
		}
		if err != nil {
			fmt.Fprintf(c.ErrOrStderr(), "warning: the signature %s is left out: %.500q\n", d.Digest, err.Error())
			continue
		}
		i.signatures = append(i.signatures, imageSignature{claims, d})
	}
	if len(i.signatures) == 0 {
		return failure.New(failure.NotFound, "the image %s has no valid signature", i.descriptor.Digest).
			WithHint("sign it first, with 'notation sign'")
	}
	return nil
}

func unreadImage(cause error, format string, args ...any) error {
	err := failure.New(registry.Kind(cause), format, args...)
	if failure.Is(err, failure.Denied) {
		return err.WithHint("log in to the registry with 'notation login'")
	}
	if errors.Is(cause, http.ErrSchemeMismatch) {
		return err.WithHint("use --plain-http, if you trust the network between this machine and the registry")
	}
	return err.WithHint("check the name of the image, the registry and the network")
}
