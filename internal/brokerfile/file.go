// Package brokerfile reads the config file of 'hsm-broker serve'. It finds every mistake at once, each with its line.
package brokerfile

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/notice"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/translog/feed"
)

// MaxFile is the size of the largest file, in bytes.
const MaxFile = 256 << 10

// maxBelieved is the size of the largest file of CAs or keys, in bytes.
const maxBelieved = 4 << 20

// File is the config file of a broker. A path in it is absolute.
type File struct {
	Version        int                      `yaml:"version"`    // 1
	PublicURL      string                   `yaml:"public-url"` // by which callers and people reach the broker
	RPID           string                   `yaml:"rp-id"`      // domain of passkeys (WebAuthn); it never changes
	Listen         Listen                   `yaml:"listen"`
	Store          string                   `yaml:"store"`          // sqlite:PATH, or postgres://...
	StorePassword  string                   `yaml:"store-password"` // file:PATH with the password of the store, or ""
	Replicas       *Replicas                `yaml:"replicas"`       // nil for a store that is not shared
	Keep           Period                   `yaml:"keep"`           // how long requests are kept; zero for ever
	Policy         string                   `yaml:"policy"`         // file of the policy that is proposed
	Approvers      string                   `yaml:"approvers"`      // file with the first approvers, or ""
	Passkeys       Passkeys                 `yaml:"passkeys"`
	Web            Web                      `yaml:"web"`
	Modules        []Module                 `yaml:"modules"` // where keys are
	Keys           map[string]Key           `yaml:"keys"`    // by their names in the policy: what the policy does not say
	Log            Log                      `yaml:"log"`
	Callers        identity.Config          `yaml:"callers"`
	Administrators []identity.Administrator `yaml:"administrators"`
	Registries     []repository.Registry    `yaml:"registries"`
	Tags           []Tags                   `yaml:"tags"`     // repositories whose signed tags the broker publishes
	Notices        []notice.Channel         `yaml:"notices"`  // who is told of requests
	Contacts       map[string]string        `yaml:"contacts"` // addresses of mail, by the names of people in the policy
	Traces         string                   `yaml:"traces"`   // URL of an OpenTelemetry collector (OTLP over HTTP), or ""

	root *yaml.Node
	path string
}

// Passkeys says which passkeys are attested.
type Passkeys struct {
	AttestationRoots string `yaml:"attestation-roots"` // PEM file of manufacturers' CAs, or ""
}

// Listen says where the broker listens.
type Listen struct {
	HTTPS   *HTTPS  `yaml:"https"`
	Unix    *Socket `yaml:"unix"`
	Metrics string  `yaml:"metrics"` // ADDRESS:PORT of Prometheus' metrics, without TLS; "" for none
}

// HTTPS is a listener for callers elsewhere. The certificate and its key are read again when they change, and ClientCA
// is not.
type HTTPS struct {
	Address     string `yaml:"address"`     // ADDRESS:PORT
	Certificate string `yaml:"certificate"` // PEM, leaf first
	Key         string `yaml:"key"`         // PEM
	ClientCA    string `yaml:"client-ca"`   // PEM; the issuers of callers' certificates; "" for none
}

// Socket is a listener for callers on the same machine.
type Socket struct {
	Path string `yaml:"path"`
}

// Module is a token and how it is reached: settings of docs/configuration.md by their names.
type Module map[string]string

// Key has what the policy does not say of a key.
type Key struct {
	CertificateChain string `yaml:"certificate-chain"` // file; "" for the certificates on the token
}

// Log says how the log is signed, and who follows it.
type Log struct {
	// Key is the URI of a key that signs nothing else, in each module that has it.
	Key            identity.Strings `yaml:"key"`
	Origin         string           `yaml:"origin"`          // name of the log: a URL without its scheme; it never changes
	CheckpointFile string           `yaml:"checkpoint-file"` // on another disk than the store, at best
	MaxUnpublished Unpublished      `yaml:"max-unpublished"`
	Feeds          []feed.Config    `yaml:"feeds"`     // who is told of the entries
	Witnesses      []Witness        `yaml:"witnesses"` // who cosigns the checkpoints
}

// Unpublished bounds how far the log may be ahead of its newest signed checkpoint.
type Unpublished struct {
	Time    time.Duration `yaml:"time"`    // default: 5m
	Entries int64         `yaml:"entries"` // default: 10000
}

// Mistake is a mistake in the file.
type Mistake struct {
	Line int // 0 if it belongs to no line
	What string
	Hint string
}

// String returns a mistake in one line.
func (m Mistake) String() string {
	text := m.What
	if m.Line > 0 {
		text = fmt.Sprintf("line %d: %s", m.Line, text)
	}
	if m.Hint != "" {
		text += " (" + m.Hint + ")"
	}
	return text
}

// Mistakes are all mistakes of a file, in the order of lines. It is the cause of the failure of Read.
type Mistakes []Mistake

// Error returns the mistakes, one a line.
func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, one := range m {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Read reads a config file. It fails with Invalid for a file with mistakes; their list is the cause.
func Read(path string) (*File, error) {
	data, err := bound.ReadFile(path, MaxFile)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the config file: %w", err).
			WithHint("name it with --config, or make one with 'hsm-broker init'")
	}
	f, mistakes := Parse(data)
	if len(mistakes) > 0 {
		return nil, failure.New(failure.Invalid, "the config file %s has %d mistakes:\n%w", path, len(mistakes), mistakes).
			WithHint("see the page on the broker's config file")
	}
	f.path = path
	return f, nil
}

// Parse parses a config file, and returns all mistakes in it.
func Parse(data []byte) (*File, Mistakes) {
	root, err := config.YAML(data, MaxFile)
	if err != nil {
		return nil, decodeMistakes(err)
	}
	if root == nil {
		return nil, Mistakes{{What: "it is empty", Hint: "make one with 'hsm-broker init'"}}
	}
	f := &File{root: root}
	var mistakes Mistakes
	for _, m := range config.Misnamed(root, f) {
		mistakes = append(mistakes, Mistake(m))
	}
	if err := yaml.Load(data, f, yaml.WithUniqueKeys()); err != nil {
		mistakes = append(mistakes, decodeMistakes(err)...)
	}
	f.setDefaults()
	mistakes = append(mistakes, f.check()...)
	slices.SortFunc(mistakes, func(a, b Mistake) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.What, b.What))
	})
	return f, mistakes
}

// decodeMistakes returns what the YAML library says, line by line.
func decodeMistakes(err error) (all Mistakes) {
	var several *yaml.LoadErrors
	if errors.As(err, &several) {
		for _, one := range several.Errors {
			all = append(all, Mistake{Line: one.Mark.Line, What: one.Message})
		}
		return all
	}
	var one *yaml.LoadError
	if errors.As(err, &one) {
		return Mistakes{{Line: one.Mark.Line, What: "it is not YAML: " + one.Message}}
	}
	return Mistakes{{What: err.Error()}}
}

func (f *File) setDefaults() {
	if f.Log.MaxUnpublished.Time == 0 {
		f.Log.MaxUnpublished.Time = 5 * time.Minute
	}
	if f.Log.MaxUnpublished.Entries == 0 {
		f.Log.MaxUnpublished.Entries = 10_000
	}
}

// step is a part of a path such as callers.oidc[0].issuer.
var step = regexp.MustCompile(`^([^.\[\]]+)((?:\[\d+\])*)$`)

// line returns the line of the value at a path, or of what it would be in.
func (f *File) line(path string) int {
	node := f.root
	for _, part := range strings.Split(path, ".") {
		match := step.FindStringSubmatch(part)
		if match == nil {
			return node.Line
		}
		next := child(node, match[1])
		if next == nil {
			return node.Line
		}
		node = next
		for _, number := range strings.FieldsFunc(match[2], func(r rune) bool { return r == '[' || r == ']' }) {
			i, err := strconv.Atoi(number)
			if err != nil || node.Kind != yaml.SequenceNode || i >= len(node.Content) {
				return node.Line
			}
			node = node.Content[i]
		}
	}
	return node.Line
}

func child(node *yaml.Node, name string) *yaml.Node {
	if node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			return node.Content[i+1]
		}
	}
	return nil
}

// Decisive returns what of the file decides who may do what, as canonical JSON: a change of it is proposed like a
// change of the policy. Of files that say whom to believe, their SHA-256 is in it. Addresses, PINs, timeouts, and the
// certificates of keys and of the server are not. Who is told of requests is not either: a notice decides nothing, and
// nobody acts on one without the broker's page or commands. Witnesses allow nothing: verifiers say which they demand.
// The store and the replicas that share it are not either: each replica has a name of its own, and whoever has their
// key has it from its file, not from the config. It fails for a file that cannot be read.
func (f *File) Decisive() ([]byte, error) {
	files := map[string]string{}
	believed := []string{}
	if h := f.Listen.HTTPS; h != nil {
		believed = append(believed, h.ClientCA)
	}
	for _, issuer := range f.Callers.OIDC {
		believed = append(believed, issuer.CA, issuer.JWKSFile)
	}
	for _, r := range f.Registries {
		believed = append(believed, r.CA)
	}
	for _, t := range f.Tags {
		believed = append(believed, t.Root)
	}
	believed = append(believed, f.Passkeys.AttestationRoots)
	if f.Web.OIDC != nil {
		believed = append(believed, f.Web.OIDC.CA)
	}
	for _, path := range believed {
		if path == "" {
			continue
		}
		data, err := bound.ReadFile(path, maxBelieved)
		if err != nil {
			return nil, failure.New(failure.FileKind(err), "cannot read a file of the config: %w", err).
				WithHint("let the broker read it, or name another")
		}
		files[path] = fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	}
	modules := make([]Module, 0, len(f.Modules))
	for _, m := range f.Modules {
		kept := Module{}
		for name, value := range m {
			if name != config.PINSource && name != config.Timeout {
				kept[name] = value
			}
		}
		modules = append(modules, kept)
	}
	var logKey any = f.Log.Key
	if len(f.Log.Key) == 1 { // as it was in force before there could be several
		logKey = f.Log.Key[0]
	}
	all := map[string]any{
		"modules": modules, "callers": f.Callers, "administrators": f.Administrators, "registries": f.Registries,
		"files": files, "rp-id": f.RPID, "public-url": f.PublicURL,
		"log": map[string]any{"key": logKey, "origin": f.Log.Origin},
	}
	if len(f.Tags) > 0 { // a broker without any has the config in force that it had before there were tags
		all["tags"] = f.Tags
	}
	if f.Passkeys.AttestationRoots != "" {
		all["passkeys"] = f.Passkeys
	}
	if o := f.Web.OIDC; o != nil {
		all["web"] = map[string]any{"oidc": map[string]string{"issuer": o.Issuer, "client-id": o.ClientID}}
	}
	return translog.Canonical(all)
}

// absolute reports whether a path is one that does not depend on the folder where the broker starts.
func absolute(path string) bool { return filepath.IsAbs(path) && !bytes.ContainsRune([]byte(path), 0) }
