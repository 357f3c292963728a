package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/migrate"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

// importFlags are the flags of import-dct.
type importFlags struct {
	server, serverCA, folder, gun string
	pins                          []string
	keys                          keyFlags
	threshold                     int
	signers, certificates         []string // NAME=KEY and NAME=FILE
	to                            string
	apply, asJSON                 bool
	wait                          *time.Duration
}

func tagImportCommand(ks *keystore.Keystore, o *tagOptions) *cobra.Command {
	var f importFlags
	c := &cobra.Command{
		Use:   "import-dct REPO (--server URL | --trust-folder DIR) --pin ROOT",
		Short: "Move the tags of a repository here from Docker Content Trust (Notary v1)",
		Long: `Read the trust data of a repository from a Notary v1 server, or from a trust folder such as
~/.docker/trust; verify them from a root that you pin; and print a plan: what Notary has, and what
becomes of it here. Without --apply nothing is changed.

With --apply, the plan is printed and then done: the first metadata of the repository, a delegation for
each --signer with its paths and threshold, its signer in the trust manifest, a Notation signature of
each image by the signer of its tag, and the signed tags. The keys are new ones, in a module. Each
signer signs images with its first key, whose certificate is beside the key or in --signer-cert.

Run the same command again after an interruption: it goes on. It changes nothing when all is done.`,
		Example: `  hsm-image tag import-dct registry.example.com/team/app --server https://notary.example.com \
    --pin root-ca.pem
  hsm-image tag import-dct registry.example.com/team/app --trust-folder ~/.docker/trust --pin root.json --apply \
    --root "pkcs11:token=root-1;object=root" --targets "pkcs11:token=signing;object=targets" \
    --snapshot "pkcs11:token=online;object=snapshot" --timestamp "pkcs11:token=online;object=timestamp" \
    --signer alice="pkcs11:token=signing;object=alice"`,
		Args: cli.Exactly(1),
	}
	c.Flags().StringVar(&f.server, "server", "", "URL of the Notary server, as in https://notary.docker.io")
	c.Flags().StringVar(&f.serverCA, "server-ca", "",
		"PEM file with the CA of the Notary server (default: the system's CAs)")
	c.Flags().StringVar(&f.folder, "trust-folder", "", "trust folder of Docker or Notary, as in ~/.docker/trust")
	c.Flags().StringVar(&f.gun, "gun", "", "name of the repository in Notary (default: REPO as Docker spells it)")
	c.Flags().StringArrayVar(&f.pins, "pin", nil,
		"root of the repository in Notary: the ID of a root key, or a file with root certificates in PEM or a root.json; "+
			"can be repeated")
	c.Flags().BoolVar(&f.apply, "apply", false, "do what the plan says")
	c.Flags().BoolVar(&f.asJSON, "json", false, "print the plan as JSON")
	c.Flags().StringArrayVar(&f.keys.root, "root", nil, "new root key, as for 'tag init'; can be repeated")
	c.Flags().IntVar(&f.threshold, "threshold", 0, "how many root keys have to sign a root (default: as in Notary)")
	f.keys.addTargets(c)
	f.keys.addOnline(c)
	c.Flags().StringArrayVar(&f.signers, "signer", nil,
		"delegation to make and its new key, as NAME=KEY; repeated with the same NAME, it gets several keys")
	c.Flags().StringArrayVar(&f.certificates, "signer-cert", nil,
		"PEM file with the certificate of a signer's first key and its issuers, as NAME=FILE; targets is the name of the "+
			"targets key")
	c.Flags().StringVar(&f.to, "to", "", "file for the root (default: root-NAME.json, of the repository's last part)")
	f.wait = addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error { return o.importDCT(c, ks, args[0], &f) }
	return c
}

// importDCT plans a migration, prints the plan, and applies it if that is asked for.
func (o *tagOptions) importDCT(c *cobra.Command, ks *keystore.Keystore, text string, f *importFlags) error {
	name, err := parseRepository(text)
	if err != nil {
		return err
	}
	if (f.server == "") == (f.folder == "") {
		return cli.Usage(c, failure.New(failure.Invalid, "give one of --server and --trust-folder").
			WithHint("as in --server https://notary.example.com, or --trust-folder ~/.docker/trust"))
	}
	if len(f.pins) == 0 {
		return cli.Required(c, "pin", "root.json")
	}
	signers, err := named(f.signers, "--signer")
	if err != nil {
		return err
	}
	certificates, err := named(f.certificates, "--signer-cert")
	if err != nil {
		return err
	}
	registries := registry.New(registry.Options{AuthFile: o.authFile, PlainHTTP: o.plainHTTP, Limits: tufstore.Round})
	defer registries.Close()
	from, err := f.read(c.Context(), registries, text, name)
	if err != nil {
		return err
	}
	pin, err := o.pinned(name)
	if err != nil {
		return err
	}
	plan, err := o.plan(c.Context(), from, name, registries, pin, f.given(signers))
	if err != nil {
		return err
	}
	if f.asJSON {
		err = cli.PrintJSON(c.OutOrStdout(), plan)
	} else {
		err = printPlan(c.OutOrStdout(), plan)
	}
	if err != nil || !f.apply {
		return err
	}
	if err := o.apply(c, ks, plan, pin, f, signers, certificates); err != nil {
		return err
	}
	if n := plan.Lost(); n > 0 {
		return failure.New(failure.NotFound, "%d of the tags in Notary are not signed here", n).
			WithHint("the plan lists them under LEFT OUT, each with the reason")
	}
	return nil
}

// given returns the keys that are given.
func (f *importFlags) given(signers map[string][]string) migrate.Given {
	g := migrate.Given{Threshold: f.threshold, Top: map[string][]string{tuf.Root: f.keys.root,
		tuf.Targets: f.keys.targets, tuf.Snapshot: f.keys.snapshot, tuf.Timestamp: f.keys.timestamp}}
	if f.apply || len(signers) > 0 {
		g.Signers = signers
	}
	return g
}

// named reads NAME=VALUE; a name may have several values.
func named(texts []string, flag string) (map[string][]string, error) {
	all := map[string][]string{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" {
			return nil, failure.New(failure.Invalid, "%q is not a name and its value, for %s", text, flag).
				WithHint("as in " + flag + " alice=...")
		}
		all[name] = append(all[name], value)
	}
	return all, nil
}

// read reads and verifies the trust data in Notary.
func (f *importFlags) read(ctx context.Context, registries *registry.Registries, text, name string) (
	*notaryv1.Repository, error) {
	pin, err := readNotaryPin(f.pins)
	if err != nil {
		return nil, err
	}
	gun := f.gun
	if gun == "" {
		parsed, err := reference.ParseNormalizedNamed(strings.TrimPrefix(text, "docker://"))
		if err != nil {
			return nil, err
		}
		gun = parsed.Name()
	}
	if f.folder != "" {
		return notaryv1.FromFolder(ctx, f.folder, gun, pin)
	}
	_, path, _ := strings.Cut(name, "/")
	server := notaryv1.Server{URL: f.server, Credential: registries.Credentials(path)}
	if f.serverCA != "" {
		list, err := certs.ReadFile(f.serverCA)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		for _, cert := range list {
			pool.AddCert(cert)
		}
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		server.Client = &http.Client{Transport: transport}
	}
	return notaryv1.FromServer(ctx, server, gun, pin)
}

const maxNotaryPin = 1 << 20 // bytes of a file

var notaryKeyID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// readNotaryPin reads what --pin names: IDs of keys, and files.
func readNotaryPin(texts []string) (notaryv1.Pin, error) {
	var pin notaryv1.Pin
	for _, text := range texts {
		if notaryKeyID.MatchString(text) {
			pin.KeyIDs = append(pin.KeyIDs, text)
			continue
		}
		data, err := bound.ReadFile(text, maxNotaryPin)
		if err != nil {
			return pin, failure.New(failure.FileKind(err), "cannot read the pinned root: %w", err).
				WithHint("pin the ID of a root key (64 hex digits), a root certificate in PEM, or a root.json")
		}
		one, err := notaryv1.ReadPin(data)
		if err != nil {
			return pin, err
		}
		if one.Root != nil && len(texts) > 1 {
			return pin, failure.New(failure.Invalid, "%s is a root.json, which pins all root keys by itself", text).
				WithHint("give no other --pin beside it")
		}
		pin.Root, pin.Certificates = one.Root, append(pin.Certificates, one.Certificates...)
	}
	return pin, nil
}

// pinned returns the root of a repository in the trust manifest, or nil.
func (o *tagOptions) pinned(name string) (*trust.Tags, error) {
	path, err := trust.Path(o.manifest)
	if err != nil {
		return nil, err
	}
	pin, err := trust.Pin(path, name)
	if err != nil && failure.From(err).Kind == failure.NotFound {
		return nil, nil //nolint:nilnil // none is an answer
	}
	return pin, err
}

// plan plans a migration, with what the registry has and what is signed here already.
func (o *tagOptions) plan(ctx context.Context, from *notaryv1.Repository, name string, registries *registry.Registries,
	pin *trust.Tags, given migrate.Given) (*migrate.Plan, error) {
	plan, err := migrate.New(from, name, given)
	if err != nil {
		return nil, err
	}
	if pin != nil {
		r, closeAll, err := o.openWith(name, pin.Root)
		if err != nil {
			return nil, err
		}
		defer closeAll()
		v, _, err := r.View(ctx, true)
		if err == nil {
			err = plan.AddState(ctx, v)
		} else if failure.From(err).Kind == failure.NotFound {
			err = nil // it was interrupted before the first metadata
		}
		if err != nil {
			return nil, err
		}
	}
	return plan, plan.CheckImages(ctx, registries)
}

// apply applies a plan.
func (o *tagOptions) apply(c *cobra.Command, ks *keystore.Keystore, plan *migrate.Plan, pin *trust.Tags, f *importFlags,
	signers, certificates map[string][]string) error {
	ring := newKeyring(ks)
	defer ring.Close()
	a := &migrate.Apply{Signers: map[string]migrate.Signer{}, Wait: *f.wait}
	out := c.OutOrStdout()
	if f.asJSON {
		out = c.ErrOrStderr()
	}
	a.Tell = func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }
	if err := ring.roles(c.Context(), a, f.keys.targets, signers, certificates); err != nil {
		return err
	}
	var err error
	if a.Manifest, err = trust.Path(o.manifest); err != nil {
		return err
	}
	var root []byte
	if pin != nil {
		root = pin.Root
		if a.Root, err = tuf.ParseRoot(root, nil); err != nil {
			return err
		}
		keys := f.keys
		if a.Others, err = ring.open(c.Context(), private(keys.all())); err != nil {
			return err
		}
	} else {
		if root, err = o.newImportRoot(c, ring, plan, a, f); err != nil {
			return err
		}
	}
	r, closeAll, err := o.openWith(plan.Repository, root)
	if err != nil {
		return err
	}
	defer closeAll()
	a.Repository = r
	if err := a.Run(c.Context(), plan); err != nil {
		return err
	}
	a.Tell("done: %d tags of %s are signed here, %d are left out\nnext: notation-hsm trust export", len(plan.Tags),
		plan.Repository, plan.Lost())
	return nil
}

// newImportRoot makes the first root, writes it to a file and pins it. It is pinned before anything is published, so
// that the command can go on after an interruption.
func (o *tagOptions) newImportRoot(c *cobra.Command, ring *keyring, plan *migrate.Plan, a *migrate.Apply,
	f *importFlags) (
	[]byte, error) {
	for flag, given := range map[string][]string{"root": f.keys.root, "targets": f.keys.targets,
		"snapshot": f.keys.snapshot, "timestamp": f.keys.timestamp} {
		if len(given) == 0 {
			return nil, cli.Required(c, flag, "pkcs11:token=signing;object="+flag)
		}
	}
	if err := a.Check(plan); err != nil {
		return nil, err
	}
	threshold, targetsThreshold := plan.Threshold(tuf.Root), plan.Threshold(tuf.Tags)
	if len(f.keys.root) < threshold {
		return nil, failure.New(failure.Invalid, "the root needs %d keys, and %d are given", threshold, len(f.keys.root)).
			WithHint("name as many with --root, or give --threshold")
	}
	root, signers, err := ring.newRoot(c.Context(), f.keys, threshold, targetsThreshold)
	if err != nil {
		return nil, err
	}
	if err := root.SignAny(c.Context(), signers); err != nil {
		return nil, err
	}
	if n := root.Lacking(); n > 0 {
		return nil, failure.New(failure.Invalid, "the root lacks the signatures of %d keys elsewhere", n).
			WithHint("make it first: hsm-image tag init, tag root sign and tag root push; then run this again")
	}
	a.Root, a.Others = root, signers
	data, err := root.Encode()
	if err != nil {
		return nil, err
	}
	to := f.to
	if to == "" {
		to = "root-" + path.Base(plan.Repository) + ".json"
	}
	if err := state.Write(to, data, 0o644); err != nil {
		return nil, err
	}
	if _, err := trust.Init(c.Context(), a.Manifest); err != nil {
		return nil, err
	}
	pin, err := trust.AddTags(c.Context(), a.Manifest, trust.Tags{Scope: plan.Repository, Root: data}, false)
	if err != nil {
		return nil, err
	}
	a.Tell("wrote the root to %s, and pinned it in %s, fingerprint %s", to, a.Manifest, pin.Fingerprint)
	return data, nil
}
