package ca

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Plan is the file of a ceremony: the keys to generate, and what is then signed with them, in this order.
type Plan struct {
	Keys          []KeyPlan       `yaml:"keys"`
	Root          *AuthorityPlan  `yaml:"root"`
	Intermediates []AuthorityPlan `yaml:"intermediates"`
	Leaves        []LeafPlan      `yaml:"leaves"`
	CRLs          []CRLPlan       `yaml:"crls"`

	path     string
	digest   string             // SHA-256 of the file, in hex
	keystore *keystore.Keystore // reaches the keys it names
}

// KeyPlan is a key to generate.
type KeyPlan struct {
	Name       string `yaml:"name"` // within the file
	Token      string `yaml:"token"`
	Label      string `yaml:"label"`
	Spec       string `yaml:"spec"`
	ModulePath string `yaml:"module-path"`
	PINSource  string `yaml:"pin-source"`
}

// AuthorityPlan is a CA to make. Its key is a key of the plan, by name, or an existing key, by URI or alias.
type AuthorityPlan struct {
	Name   string `yaml:"name"`
	Key    string `yaml:"key"`
	Parent string `yaml:"parent"`
	Terms  `yaml:",inline"`
}

// LeafPlan is a signer's certificate to issue.
type LeafPlan struct {
	Name  string `yaml:"name"` // of the file it is written to
	CA    string `yaml:"ca"`
	Key   string `yaml:"key"`
	Terms `yaml:",inline"`

	// AllowSubjectOf is another key's certificate whose subject the leaf may have: a serial number, or the name of a leaf
	// of the plan.
	AllowSubjectOf string `yaml:"allow-subject-of"`
}

// CRLPlan is a CRL to sign.
type CRLPlan struct {
	CA         string `yaml:"ca"`
	NextUpdate string `yaml:"next-update"`
}

// ReadPlan reads a ceremony's file (YAML). It fails with Invalid for an unknown name.
func ReadPlan(ks *keystore.Keystore, path string) (*Plan, error) {
	data, err := bound.ReadFile(path, config.MaxFile)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the ceremony: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	sum := sha256.Sum256(data)
	p := &Plan{keystore: ks, path: path, digest: hex.EncodeToString(sum[:])}
	return p, config.Strict(path, data, p)
}

// origin returns the origin of the keys and settings in the plan. It is data: whoever reviews a ceremony does not
// review the programs of this machine.
func (p *Plan) origin() config.Origin { return config.Stored(p.path) }

// Part is one step of a ceremony, with its fields as name and value.
type Part struct {
	Title string
	Rows  [][]string
}

// Rehearse returns the steps of the ceremony, with the modules that each loads and the sources of its PINs. It opens no
// token and writes no file. It fails for every mistake that can be found without a module.
func (p *Plan) Rehearse(folder string) ([]Part, error) {
	r := rehearsal{
		keystore: p.keystore, folder: folder, origin: p.origin(), keys: map[string]KeyPlan{},
		settings: map[string]*keystore.Reference{}, issuers: map[string]issuer{}, files: map[string]bool{},
		owners: map[string]string{},
	}
	for _, k := range p.Keys {
		if err := r.key(k); err != nil {
			return nil, p.at("key", k.Name, err)
		}
	}
	if p.Root != nil {
		if p.Root.Parent != "" {
			return nil, p.at("root", p.Root.Name,
				failure.New(failure.Invalid, "a root has no parent").
					WithHint("move it to intermediates, or remove parent"))
		}
		if err := r.authority(*p.Root); err != nil {
			return nil, p.at("root", p.Root.Name, err)
		}
	}
	for _, c := range p.Intermediates {
		err := error(failure.New(failure.Invalid, "an intermediate needs a parent").
			WithHint("set parent to the CA that certifies it"))
		if c.Parent != "" {
			err = r.authority(c)
		}
		if err != nil {
			return nil, p.at("intermediate", c.Name, err)
		}
	}
	for _, l := range p.Leaves {
		if err := r.leaf(l); err != nil {
			return nil, p.at("leaf", l.Name, err)
		}
	}
	for _, c := range p.CRLs {
		if err := r.crl(c); err != nil {
			return nil, p.at("crl", c.CA, err)
		}
	}
	if len(r.parts) == 0 {
		return nil, failure.New(failure.Invalid, "the ceremony in %s has no step", p.path).
			WithHint("add keys, root, intermediates, leaves or crls")
	}
	return r.parts, nil
}

// at adds the part of the file to a failure.
func (p *Plan) at(kind, name string, err error) error {
	f := *failure.From(err)
	f.What, f.Err = fmt.Sprintf("%s, %s %q: %s", p.path, kind, name, f.What), err
	return &f
}

type rehearsal struct {
	keystore *keystore.Keystore
	folder   string
	origin   config.Origin
	keys     map[string]KeyPlan
	settings map[string]*keystore.Reference // of these keys
	issuers  map[string]issuer              // the CAs so far, by name
	files    map[string]bool
	owners   map[string]string // the certificate of a key
	parts    []Part

	leaves []plannedLeaf
}

type plannedLeaf struct {
	LeafPlan
	subject identity
}

// issuer is a CA that signs in the ceremony.
type issuer struct {
	cert     *x509.Certificate
	settings *keystore.Reference // of its key
}

// uses returns the rows for the module that a step loads and the source of the PIN.
func uses(module, pin string, s *keystore.Reference) [][]string {
	path := s.ModulePath
	if path == "" {
		path = "not set"
	}
	return [][]string{{module, path}, {pin, s.PINPlace()}}
}

func (r *rehearsal) key(k KeyPlan) error {
	if err := checkName(k.Name); err != nil {
		return err
	}
	spec, err := key.ParseSpec(k.Spec)
	if err != nil {
		return err
	}
	if k.Token == "" || k.Label == "" {
		return failure.New(failure.Invalid, "a key needs a token and a label").
			WithHint("set both, as in: token: vault, label: root")
	}
	for _, other := range r.keys {
		if other.Name == k.Name || (other.Token == k.Token && other.Label == k.Label) {
			return failure.New(failure.Invalid, "two keys have this name, or this label on this token").
				WithHint("use a name and a label only once")
		}
	}
	s, err := r.keystore.Resolve("", k.settings(), r.origin)
	if err != nil {
		return err
	}
	r.keys[k.Name], r.settings[k.Name] = k, s
	rows := [][]string{{"Spec:", string(spec.Name)}, {"Label:", k.Label}, {"Token:", k.Token}}
	rows = append(rows, uses("Module:", "PIN from:", s)...)
	rows = append(rows, []string{"Attributes:", "sensitive, not extractable, signing only"})
	r.parts = append(r.parts, Part{"Key " + k.Name, rows})
	return nil
}

func (k KeyPlan) settings() map[string]string {
	given := map[string]string{}
	for name, value := range map[string]string{config.Token: k.Token, config.ModulePath: k.ModulePath,
		config.PINSource: k.PINSource} {
		if value != "" {
			given[name] = value
		}
	}
	return given
}

// describeKey returns a description of a key of the plan, or of an existing key, and its settings.
func (r *rehearsal) describeKey(reference string) (string, *keystore.Reference, error) {
	if reference == "" {
		return "", nil, failure.New(failure.Invalid, "it has no key").
			WithHint("set key to a name under keys, or to the URI or alias of an existing key")
	}
	if k, made := r.keys[reference]; made {
		return fmt.Sprintf("%s (%s, generated in this ceremony)", k.Name, k.Spec), r.settings[reference], nil
	}
	s, err := r.keystore.Resolve(reference, nil, r.origin)
	if err != nil {
		return "", nil, err
	}
	return s.Key.String() + " (exists)", s, nil
}

// issuer returns a CA of the ceremony, or an existing one.
func (r *rehearsal) issuer(name string) (issuer, error) {
	if made, ok := r.issuers[name]; ok {
		return made, nil
	}
	a, err := Open(r.keystore, r.folder, name)
	if err != nil {
		return issuer{}, err
	}
	s, err := a.resolve(nil)
	return issuer{a.Certificate(), s}, err
}

func (r *rehearsal) file(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if r.files[name] {
		return failure.New(failure.Invalid, "the name is used twice").WithHint("use each name only once")
	}
	r.files[name] = true
	return nil
}

func (r *rehearsal) authority(c AuthorityPlan) error {
	if err := r.file(c.Name); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(r.folder, c.Name, description)); !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Conflict, "there is already a CA of this name").
			WithHint("choose another name; see 'notation-hsm ca list'")
	}
	var parent issuer
	title, signer := "Root "+c.Name, c.Key
	if c.Parent != "" {
		var err error
		if parent, err = r.issuer(c.Parent); err != nil {
			return err
		}
		title, signer = "Intermediate "+c.Name, "the key of "+c.Parent
	}
	template, err := certs.CATemplate(c.Terms, parent.cert)
	if err != nil {
		return err
	}
	s, err := r.certificate(title, c.Key, signer, c.Days, template, parent)
	if err != nil {
		return err
	}
	// Time passes between two certificates of a ceremony. Here each CA ends a day early, so that a certificate that is
	// rehearsed does not outlive its issuer when it is issued.
	early := *template
	early.NotAfter = early.NotAfter.Add(-24 * time.Hour)
	r.issuers[c.Name] = issuer{&early, s}
	return nil
}

func (r *rehearsal) leaf(l LeafPlan) error {
	if err := r.file(l.Name); err != nil {
		return err
	}
	parent, err := r.issuer(l.CA)
	if err != nil {
		return err
	}
	template, err := certs.LeafTemplate(l.Terms, parent.cert)
	if err != nil {
		return err
	}
	if l.Subject == "" {
		return failure.New(failure.Invalid, "it has no subject").
			WithHint(`set it, as in: subject: "CN=release,O=Example,C=CH,ST=Zurich"`)
	}
	if err := r.subject(l, template, parent.cert); err != nil {
		return err
	}
	_, err = r.certificate("Leaf "+l.Name, l.Key, "the key of "+l.CA, l.Days, template, parent)
	return err
}

// subject fails when a leaf has the subject of another leaf of the plan, or of a certificate of an existing CA. Whether
// an existing key is the holder of that certificate is not known before the ceremony.
func (r *rehearsal) subject(l LeafPlan, template, issuer *x509.Certificate) error {
	id, err := identityOf(template)
	if err != nil {
		return err
	}
	if above, err := identityOf(issuer); err != nil || above.contains(id) {
		return failure.New(failure.Invalid, "the subject %q belongs to the CA %q", template.Subject, l.CA).
			WithHint("set a subject of the signer's own")
	}
	for _, other := range r.leaves {
		if other.CA == l.CA && other.subject.contains(id) && l.AllowSubjectOf != other.Name {
			return failure.New(failure.Denied, "the leaf %q has this subject", other.Name).
				WithHint("set another subject; or, if both keys are the same signer's, add allow-subject-of: " + other.Name)
		}
	}
	r.leaves = append(r.leaves, plannedLeaf{l, id})
	if _, made := r.issuers[l.CA]; made {
		return nil
	}
	if _, made := r.keys[l.Key]; !made {
		return nil
	}
	a, err := Open(r.keystore, r.folder, l.CA)
	if err != nil {
		return err
	}
	ledger, err := a.read()
	if err != nil {
		return err
	}
	return ledger.checkSubject(template, "", AllowSubjectOf(l.AllowSubjectOf))
}

// certificate adds the part of a certificate, and returns the settings of its key. The zero issuer makes it
// self-signed.
func (r *rehearsal) certificate(
	title, reference, signer string, days int, template *x509.Certificate, parent issuer,
) (*keystore.Reference, error) {
	described, s, err := r.describeKey(reference)
	if err != nil {
		return nil, err
	}
	if owner, taken := r.owners[described]; taken {
		return nil, failure.New(failure.Invalid, "the key %s is already used for %s", described, owner).
			WithHint("use each key for one certificate")
	}
	r.owners[described] = title
	name := template.Subject.String()
	rows := append([][]string{{"Key:", described}}, uses("Module:", "PIN from:", s)...)
	rows = append(rows, []string{"Signed by:", signer})
	if parent.cert != nil {
		rows = append(rows, uses("Issuer's module:", "Issuer's PIN from:", parent.settings)...)
	}
	rows = append(rows, []string{"Serial:", "20 octets, 158 random bits"})
	rows = append(rows, []string{"Valid:",
		fmt.Sprintf("%d days, from a minute before it is issued; if issued now:", days)})
	if parent.cert != nil {
		name = parent.cert.Subject.String()
	}
	rows = append(rows, certs.Describe(template, name)...)
	rows = append(rows, []string{"Subject key identifier:", "the first 160 bits of the SHA-256 of its public key"})
	if parent.cert != nil {
		rows = append(rows, []string{"Authority key identifier:", "the same of the issuer's public key"})
	}
	r.parts = append(r.parts, Part{title, rows})
	return s, nil
}

func (r *rehearsal) crl(c CRLPlan) error {
	signer, err := r.issuer(c.CA)
	if err != nil {
		return err
	}
	if _, err := parsePeriod(c.NextUpdate); err != nil {
		return err
	}
	rows := append([][]string{{"Signed by:", "the key of " + c.CA}}, uses("Module:", "PIN from:", signer.settings)...)
	rows = append(rows, []string{"Next update:", c.NextUpdate + " after it is signed"})
	r.parts = append(r.parts, Part{"CRL of " + c.CA, rows})
	return nil
}
