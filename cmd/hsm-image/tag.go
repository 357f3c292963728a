package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/scope"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

func tagCommand(ks *keystore.Keystore) *cobra.Command {
	var o tagOptions
	c := cli.Group("tag", "Sign what tags are, so that a registry can neither move them nor take them back",
		tagInitCommand(ks, &o), tagSignCommand(ks, &o), tagRemoveCommand(ks, &o), tagListCommand(&o), tagShowCommand(&o),
		tagDelegateCommand(ks, &o), tagRotateCommand(ks, &o), tagRootCommand(ks, &o), tagRefreshCommand(ks, &o),
		tagStatusCommand(&o), tagExportCommand(&o), tagImportCommand(ks, &o))
	c.Long = `Sign what the tags of a repository are, with The Update Framework (TUF). A verifier that pins the
repository's root learns from the signed metadata, and not from the registry, which digest a tag is.
The metadata expire, and verifiers remember the versions that they saw.

Five kinds of keys: root (offline; several of them sign together), targets (the repository's own
tags, and who else may sign which), delegations (one per signer), snapshot and timestamp (of the one
publisher, which signs often).

The pinned root of each repository is in the trust manifest.`
	c.PersistentFlags().StringVar(&o.manifest, "manifest", "",
		"trust manifest with the pinned roots (default: NOTATION_HSM_TRUST, else notation-hsm/trust.yaml in the "+
			"user's configuration directory)")
	c.PersistentFlags().BoolVar(&o.plainHTTP, "plain-http", false, "use plain HTTP for the registry")
	c.PersistentFlags().StringVar(&o.authFile, "authfile", "",
		"file with the registry's credentials (default: those of 'notation login', else of Podman or Docker)")
	return c
}

// tagOptions are the flags of all commands of tag.
type tagOptions struct {
	manifest, authFile string
	plainHTTP          bool
}

// tagName is the name of a repository, with what follows it.
type tagName struct {
	repository string // HOST/PATH, for connections
	tag        string
	digest     digest.Digest
}

// parseTagName reads REPO, REPO:TAG, REPO@DIGEST or REPO:TAG@DIGEST.
func parseTagName(text string) (tagName, error) {
	named, err := reference.ParseNormalizedNamed(strings.TrimPrefix(text, "docker://"))
	var n tagName
	if err == nil {
		n.repository, err = scope.Name(named.Name())
	}
	if err != nil {
		return n, failure.New(failure.Invalid, "%q is not the name of an image: %w", text, err).
			WithHint("name it as in registry.example.com/team/app:v1")
	}
	if tagged, ok := named.(reference.Tagged); ok {
		n.tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		n.digest = digested.Digest()
	}
	return n, nil
}

// parseRepository reads the name of a repository without tag and digest.
func parseRepository(text string) (string, error) {
	n, err := parseTagName(text)
	if err == nil && (n.tag != "" || n.digest != "") {
		err = failure.New(failure.Invalid, "%q names an image, not a repository", text).
			WithHint("leave the tag and the digest out, as in registry.example.com/team/app")
	}
	return n.repository, err
}

// parseTag reads REPO:TAG, with a digest only if that is allowed.
func parseTag(text string, digestAllowed bool) (tagName, error) {
	n, err := parseTagName(text)
	if err == nil && (n.tag == "" || n.digest != "" && !digestAllowed) {
		err = failure.New(failure.Invalid, "%q does not name a tag", text).
			WithHint("name it as in registry.example.com/team/app:v1")
	}
	return n, err
}

// open returns a repository whose root is pinned in the trust manifest. close ends its connections.
func (o *tagOptions) open(name string) (r *tags.Repository, closeAll func(), err error) {
	path, err := trust.Path(o.manifest)
	if err != nil {
		return nil, nil, err
	}
	pin, err := trust.Pin(path, name)
	if err != nil {
		return nil, nil, err
	}
	return o.openWith(name, pin.Root)
}

// openWith returns a repository with a root.
func (o *tagOptions) openWith(name string, root []byte) (*tags.Repository, func(), error) {
	dir, err := folders.Tags()
	if err != nil {
		return nil, nil, err
	}
	registries := registry.New(registry.Options{AuthFile: o.authFile, PlainHTTP: o.plainHTTP, Limits: tufstore.Round})
	waiting := func() { fmt.Fprintln(os.Stderr, "proposed; waiting for the publisher") }
	return &tags.Repository{Name: name, OnWait: waiting, Registries: registries, Root: root, Dir: tuf.Folder(dir, name)},
		registries.Close, nil
}

// withRepository calls do with the repository of a name.
func (o *tagOptions) withRepository(name string, do func(*tags.Repository) error) error {
	r, closeAll, err := o.open(name)
	if err != nil {
		return err
	}
	defer closeAll()
	return do(r)
}

// addWait adds the flag for how long a command waits for the publisher.
func addWait(c *cobra.Command) *time.Duration {
	return c.Flags().Duration("wait", time.Minute, "how long to wait until the publisher has published; 0: not at all")
}

// tellResult prints what became of a change. It fails with Timeout if the publisher has not published it in time.
func tellResult(w io.Writer, what, repository string, r *tags.Result, wait time.Duration) error {
	switch {
	case r.Published:
		fmt.Fprintf(w, "%s: published\n", what)
	case r.Lacking > 0:
		fmt.Fprintf(w, "%s: proposed; the role %s lacks %d signatures: run the same command with another of its keys\n", what,
			r.Role, r.Lacking)
	case wait == 0:
		fmt.Fprintf(w, "%s: proposed\n", what)
	default:
		return failure.New(failure.Timeout, "not published within %s, but proposed: %s", wait, what).
			WithHint("start the publisher, or run: hsm-image tag refresh " + repository +
				" --snapshot KEY --timestamp KEY; to see what waits, and why: hsm-image tag status " + repository)
	}
	return nil
}
