// Package config answers one question: which key is meant, and how is it reached?
//
// Settings come, strongest first, from flags or plugin config, the attributes of the key's RFC 7512 URI, the
// environment and the config file (the key's entry, then its token's, then the rest). Anything unknown or malformed is
// an error.
package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// DefaultTimeout is the longest wait for the module when nothing else is set.
const DefaultTimeout = 30 * time.Second

// Settings says which key to use and how to reach it.
type Settings struct {
	Key              URI               // token and key, with every setting that names a token folded in
	ModulePath       string            // the PKCS#11 library; for a NetHSM, its URLs
	PINSource        string            // as internal/pin reads it; "" when none is given
	PIN              string            // a pin-value from the environment or the config file, which wins over PINSource
	CertificateChain string            // PEM file, or ""
	OwnChain         bool              // CertificateChain stands in the key's own entry of the config file
	Timeout          time.Duration     // longest wait for the module
	AllowFinalPINTry bool              // try the PIN even if a wrong one would lock the token
	Env              map[string]string // variables that the module wants to find in its environment
	NetHSM           *NetHSM           // set when Key.NetHSM is: how it is reached
}

const safePIN = `give the PIN through pin-source: env:NAME, file:/path, "exec:command args" or prompt; or set NOTATION_HSM_PIN`

const keyURI = "the key URI"

// A layer is one place that settings come from.
type layer struct {
	origin Origin
	values map[string]string
	dir    string // where relative paths in it start; "" is the current folder
	own    bool   // it is the key's own entry in the config file
	uri    bool   // it holds the attributes of the key's URI
}

// Resolve finds the settings for a key reference: an RFC 7512 URI or an alias of the config file. An empty reference
// means a token alone, for commands that list. The reference and given come from origin.
func Resolve(reference string, given map[string]string, origin Origin) (*Settings, error) {
	return resolve(reference, origin, nil, layer{origin: origin, values: given})
}

// ResolveStored does so for a reference that stands in data with settings of its own. Those from flags are stronger.
func ResolveStored(reference string, stored map[string]string, origin Origin, flags map[string]string) (*Settings, error) {
	return resolve(reference, origin, nil, layer{origin: Flags, values: flags}, layer{origin: origin, values: stored})
}

// resolve takes the layers above the key's URI, strongest first. If missing is set, it gets the programs that data
// names and the config file does not list, and these are no failures.
func resolve(reference string, origin Origin, missing *Programs, above ...layer) (*Settings, error) {
	var layers []layer
	for _, l := range above {
		for _, name := range slices.Sorted(maps.Keys(l.values)) {
			if looksLikePIN(name) {
				return nil, failure.New(failure.Invalid, "a PIN in %s (%q) would be stored and logged", l.origin.name, name).
					WithHint(safePIN)
			}
			if err := checkName(name, append([]string{NetHSMInsecure}, Names...), "setting", l.origin.name); err != nil {
				return nil, err
			}
		}
		l.values = maps.Clone(l.values)
		layers = append(layers, l)
	}
	f, err := loadFile()
	if err != nil {
		return nil, err
	}
	uri, entry, err := f.lookUp(reference, origin)
	if err != nil {
		return nil, err
	}
	inFile := Origin{name: f.path, namesPrograms: true}
	fromFile := func(values map[string]string) layer {
		return layer{origin: inFile, values: values, dir: filepath.Dir(f.path)}
	}
	fromURI := layer{origin: origin.uri(), values: uri.Query, uri: true}
	if entry != nil {
		fromURI.origin = inFile
	}
	own := fromFile(entry)
	own.own = true
	layers = append(layers, fromURI, layer{origin: environmentOrigin, values: environment()}, own)
	s := &Settings{Key: uri, Timeout: DefaultTimeout}
	if err := s.chooseToken(append(slices.Clone(layers), fromFile(f.settings))); err != nil {
		return nil, err
	}
	if s.Key.NetHSM {
		return s, s.applyNetHSM(f, append(layers, fromFile(f.nethsm), fromFile(f.settings)), origin, missing)
	}
	if len(f.tokens) == 1 && !s.Key.namesToken() {
		for label := range f.tokens { // the only one that the file knows
			s.Key.Token = label
		}
	}
	s.Env = f.env[s.Key.Token]
	return s, s.apply(f, append(layers, fromFile(f.tokens[s.Key.Token]), fromFile(f.settings)), missing)
}

// lookUp returns the URI that a reference names and the config file's entry for it.
func (f *file) lookUp(reference string, origin Origin) (URI, map[string]string, error) {
	switch {
	case reference == "":
		return URI{}, nil, nil
	case strings.HasPrefix(reference, Scheme), strings.HasPrefix(reference, NetHSMScheme):
		uri, err := ParseURI(reference)
		if err == nil && uri.Query["pin-value"] != "" {
			err = failure.New(failure.Invalid,
				"the key URI carries a PIN (pin-value), which %s would show to others", origin.showsPIN).
				WithHint(safePIN)
		}
		return uri, nil, err
	}
	entry, ok := f.keys[reference]
	if !ok {
		known := slices.Sorted(maps.Keys(f.keys))
		hint := `name the key by its URI, "pkcs11:token=...;object=..." or "nethsm:KEYID", or give it an alias under "keys" in ` + f.path
		if near := nearest(reference, known); near != "" {
			hint = "did you mean " + near + "? Or " + hint
		} else if len(known) > 0 {
			hint = "aliases there are: " + strings.Join(known, ", ") + "; or " + hint
		}
		return URI{}, nil, failure.New(failure.Invalid,
			"unknown key %q: neither a URI (pkcs11: or nethsm:) nor an alias", redactMalformed(reference)).
			WithHint(hint)
	}
	uri, err := ParseURI(entry[uriSetting])
	return uri, entry, err
}

func (u URI) namesToken() bool {
	return u.NetHSM || u.Token != "" || u.Serial != "" || u.Manufacturer != "" || u.Model != "" || u.SlotID != nil
}

func environment() map[string]string {
	values := map[string]string{}
	for _, name := range Names {
		if value := os.Getenv(EnvironmentName(name)); value != "" {
			values[name] = value
		}
	}
	if _, named := values[PINSource]; !named && os.Getenv(environmentPrefix+"PIN") != "" {
		values[PINSource] = "env:" + environmentPrefix + "PIN"
	}
	return values
}

// chooseToken lets the strongest place that names a token or slot decide alone: half a name from one place and half
// from another would be a token nobody meant. A token may be given as a URI, which may then carry more settings.
func (s *Settings) chooseToken(layers []layer) error {
	for _, l := range layers {
		if l.uri && s.Key.namesToken() {
			return nil
		}
		token, slot := l.values[Token], l.values[SlotID]
		if token == "" && slot == "" {
			continue
		}
		if strings.HasPrefix(token, NetHSMScheme) || s.Key.NetHSM {
			return s.chooseNetHSM(token, l.origin.name)
		}
		named := URI{Token: token}
		if strings.HasPrefix(token, Scheme) {
			uri, err := ParseURI(token)
			if err != nil {
				return err
			}
			if uri.Query["pin-value"] != "" && l.origin.showsPIN != "" {
				return failure.New(failure.Invalid, "the token URI in %s carries a PIN (pin-value)", l.origin.name).
					WithHint(safePIN)
			}
			for name, value := range uri.Query {
				if _, stronger := l.values[name]; !stronger {
					l.values[name] = value
				}
			}
			named = uri
		} else if namesPIN(token) {
			return failure.New(failure.Invalid,
				"the token in %s is not a label: a pin-value or pin-source stands in it", l.origin.name).
				WithHint(`a token is named by its label, or by a URI that starts with "pkcs11:"`)
		}
		if slot != "" {
			id, err := parseSlot(slot)
			if err != nil {
				return err
			}
			named.SlotID = &id
		}
		s.Key.Token, s.Key.Serial, s.Key.Manufacturer, s.Key.Model, s.Key.SlotID =
			named.Token, named.Serial, named.Manufacturer, named.Model, named.SlotID
		return nil
	}
	return nil
}

// apply takes each setting from the first layer that has it. Programs that it takes from data have to be listed.
func (s *Settings) apply(f *file, layers []layer, missing *Programs) error {
	first := func(has func(layer) bool) layer {
		if i := slices.IndexFunc(layers, has); i >= 0 {
			return layers[i]
		}
		return layer{}
	}
	find := func(name string) (string, layer) {
		l := first(func(l layer) bool { return l.values[name] != "" })
		return l.values[name], l
	}
	// ours is the first place that may name programs. What is missing from the lists has to be there without this
	// environment as well.
	ours := func(has func(layer) bool) layer {
		return first(func(l layer) bool {
			return l.origin.namesPrograms && (missing == nil || l.origin != environmentOrigin) && has(l)
		})
	}
	path, from := find(ModulePath)
	if s.NetHSM == nil {
		other := ours(func(l layer) bool { return l.values[ModulePath] != "" })
		if err := f.checkModule(path, from.origin, other.values[ModulePath], missing); err != nil {
			return err
		}
	}
	s.ModulePath = path
	givesPIN := func(l layer) bool { return l.values["pin-value"] != "" || l.values[PINSource] != "" }
	from = first(givesPIN)
	s.PIN, s.PINSource = from.values["pin-value"], from.values[PINSource]
	if err := f.checkPINSource(s.PINSource, from.origin, ours(givesPIN).values[PINSource], missing); err != nil {
		return err
	}
	chain, from := find(CertificateChain)
	if chain != "" && !filepath.IsAbs(chain) {
		chain = filepath.Join(from.dir, chain)
	}
	s.CertificateChain, s.OwnChain = chain, from.own
	if text, from := find(Timeout); text != "" {
		timeout, err := time.ParseDuration(text)
		if err != nil || timeout <= 0 {
			return failure.New(failure.Invalid, "timeout %q in %s is not a length of time", text, from.origin.name).
				WithHint(`write it like "30s" or "2m"`)
		}
		s.Timeout = timeout
	}
	if text, from := find(AllowFinalPINTry); text != "" {
		allow, err := strconv.ParseBool(text)
		if err != nil {
			return failure.New(failure.Invalid,
				"%s %q in %s is neither true nor false", AllowFinalPINTry, text, from.origin.name).
				WithHint("write true or false")
		}
		s.AllowFinalPINTry = allow
	}
	if s.ModulePath == "" {
		s.ModulePath = p11kitProxy()
	}
	return nil
}

// PINPlace says where the PIN comes from. It shows no PIN, and nothing that could be one.
func (s *Settings) PINPlace() string {
	if s.PIN != "" {
		return "pin-value in the environment or the config file"
	}
	if s.PINSource == "" {
		return "the token's own PIN pad: no pin-source is set"
	}
	if _, runs := commandOf(s.PINSource); runs || runsNothing(s.PINSource) {
		return s.PINSource
	}
	return "a malformed pin-source"
}

// looksLikePIN reports whether a setting is named as a PIN would be.
func looksLikePIN(name string) bool {
	switch strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name)) {
	case "pin", "pinvalue", "userpin", "password", "passphrase", "passwd":
		return true
	}
	return false
}

// p11kitProxy returns p11-kit's proxy module, which stands for all modules the system has configured, or "".
func p11kitProxy() string {
	for _, pattern := range []string{"/usr/lib/*/p11-kit-proxy.so", "/usr/lib64/p11-kit-proxy.so", "/usr/lib/p11-kit-proxy.so", "/usr/local/lib/p11-kit-proxy.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}
