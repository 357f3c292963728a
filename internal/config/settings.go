// Package config resolves which key is meant, and with which settings it is reached.
//
// Settings come, strongest first, from flags or plugin config, the attributes of the key's RFC 7512 URI, the
// environment and the config file (the entry of the key, then that of its token, then the top). An unknown or malformed
// setting is an error.
package config

import (
	"cmp"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// DefaultTimeout is the timeout when none is set.
const DefaultTimeout = 30 * time.Second

// Settings has the key, and the settings to reach it.
type Settings struct {
	Key              URI               // token and key, as all settings together name them
	ModulePath       string            // the PKCS#11 library; for a NetHSM, its URLs
	PINSource        string            // as internal/pin reads it; "" when none is given
	PIN              string            // a pin-value from the environment or the config file, stronger than PINSource
	CertificateChain string            // PEM file, or ""
	OwnChain         bool              // CertificateChain comes from the key's entry in the config file
	Timeout          time.Duration     // of one call of the module
	InitArgs         string            // pReserved of C_Initialize; "" is NULL
	AllowFinalPINTry bool              // try the PIN also when a wrong one would lock the token
	Env              map[string]string // environment variables for the module
	NetHSM           *NetHSM           // settings of the NetHSM if Key.NetHSM is set and Broker is not, else nil
	// Broker is the address of the broker that uses the key, unix:PATH or https://HOST[:PORT]; "" if this process does.
	Broker       string
	Credentials  *Credentials  // for an https broker, else nil
	ApprovalWait time.Duration // how long a signature waits for what a broker's rule demands
	Repository   string        // where the image is that is signed, without tag and digest; "" if nobody has said it
}

const safePIN = `set pin-source to env:NAME, file:/path, "exec:command args" or prompt; or set NOTATION_HSM_PIN`

const keyURI = "the key URI"

// A layer has the settings of one place.
type layer struct {
	origin Origin
	values map[string]string
	dir    string // folder of relative paths; "" is the working directory
	own    bool   // it is the key's entry in the config file
	uri    bool   // it has the attributes of the key's URI
}

// Resolve returns the settings for a key reference: an RFC 7512 URI or an alias in the config file. An empty reference
// means a token only, for commands that list. origin is the place of the reference and of the given settings.
func Resolve(reference string, given map[string]string, origin Origin) (*Settings, error) {
	return resolve(reference, origin, nil, layer{origin: origin, values: given})
}

// ResolveStored does the same for a reference that is stored with settings. Flags are stronger than these.
func ResolveStored(reference string, stored map[string]string, origin Origin,
	flags map[string]string) (*Settings, error) {
	return resolve(reference, origin, nil, layer{origin: Flags, values: flags}, layer{origin: origin, values: stored})
}

// resolve returns the settings, given the layers above the key's URI, strongest first. If missing is set, programs that
// data names and the config file does not list are added to it, and are no failures.
func resolve(reference string, origin Origin, missing *Programs, above ...layer) (*Settings, error) {
	var layers []layer
	for _, l := range above {
		for _, name := range slices.Sorted(maps.Keys(l.values)) {
			if looksLikePIN(name) {
				return nil, carriesPIN(l.origin.name, name, l.origin)
			}
			if err := checkName(name, append([]string{NetHSMInsecure}, Names...), "setting", l.origin.name); err != nil {
				return nil, err
			}
			if err := checkStored(name, l.origin); err != nil {
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
	variables, err := environment()
	if err != nil {
		return nil, err
	}
	layers = append(layers, fromURI, layer{origin: environmentOrigin, values: variables}, own)
	s := &Settings{Key: uri, Timeout: DefaultTimeout}
	if err := s.chooseToken(append(slices.Clone(layers), fromFile(f.settings))); err != nil {
		return nil, err
	}
	if err := s.chooseBroker(append(slices.Clone(layers), fromFile(f.settings)), origin); err != nil {
		return nil, err
	}
	if s.Key.NetHSM && s.Broker == "" {
		return s, s.applyNetHSM(f, append(layers, fromFile(f.nethsm), fromFile(f.settings)), origin, missing)
	}
	if len(f.tokens) == 1 && !s.Key.namesToken() {
		for label := range f.tokens { // the only one
			s.Key.Token = label
		}
	}
	s.Env, s.InitArgs = f.env[s.Key.Token], f.tokens[s.Key.Token][InitArgs]
	return s, s.apply(f, append(layers, fromFile(f.tokens[s.Key.Token]), fromFile(f.settings)), missing)
}

// lookUp returns the URI of a reference, and the entry of the config file for an alias.
func (f *file) lookUp(reference string, origin Origin) (URI, map[string]string, error) {
	switch {
	case reference == "":
		return URI{}, nil, nil
	case strings.HasPrefix(reference, Scheme), strings.HasPrefix(reference, NetHSMScheme),
		strings.HasPrefix(reference, BrokerScheme):
		uri, err := ParseURI(reference)
		if err == nil && uri.Query[pinValue] != "" {
			err = carriesPIN(keyURI, pinValue, origin)
		}
		return uri, nil, err
	}
	entry, ok := f.keys[reference]
	if !ok {
		known := slices.Sorted(maps.Keys(f.keys))
		hint := `write the key's URI, "pkcs11:token=...;object=...", "nethsm:KEYID" or "broker:NAME", or add an alias ` +
			`under "keys" in ` + f.path
		if near := nearest(reference, known); near != "" {
			hint = "did you mean " + near + "? Or " + hint
		} else if len(known) > 0 {
			hint = "known aliases: " + strings.Join(known, ", ") + "; or " + hint
		}
		return URI{}, nil, failure.New(failure.NotFound,
			"unknown key %q: it is neither a URI (pkcs11:, nethsm: or broker:) nor an alias", redactMalformed(reference)).
			WithHint(hint)
	}
	uri, err := ParseURI(entry[uriSetting])
	return uri, entry, err
}

// namesToken reports whether the URI names a token.
func (u URI) namesToken() bool {
	return u.NetHSM || u.Broker || u.Token != "" || u.Serial != "" || u.Manufacturer != "" || u.Model != "" ||
		u.SlotID != nil
}

// chooseToken takes the token from the strongest layer that names a token or slot, and nothing of it from other layers:
// parts of two names would be a third token. A token may be given as a URI, which may have more settings.
func (s *Settings) chooseToken(layers []layer) error {
	if s.Key.Broker {
		return nil // the broker knows
	}
	for _, l := range layers {
		if l.uri && s.Key.namesToken() {
			return nil
		}
		token, slot := l.values[Token], l.values[SlotID]
		if token == "" && slot == "" {
			continue
		}
		if token == BrokerScheme {
			return s.nameBroker(l.origin.name)
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
			if uri.Query[pinValue] != "" && l.origin.showsPIN != "" {
				return carriesPIN("the token URI in "+l.origin.name, pinValue, l.origin)
			}
			for name, value := range uri.Query {
				if _, stronger := l.values[name]; !stronger {
					l.values[name] = value
				}
			}
			named = uri
		} else if namesPIN(token) {
			return failure.New(failure.Invalid, "invalid token in %s: it has a pin-value or pin-source", l.origin.name).
				WithHint(`name the token by its label, or by a URI that begins with "pkcs11:"`)
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

// apply takes each setting from the first layer that has it. Programs from data have to be listed.
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
	// ours is the first layer that may name programs. Programs are looked for with missing set to list them for later
	// processes, whose environment may differ.
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
	givesPIN := func(l layer) bool { return l.values[pinValue] != "" || l.values[PINSource] != "" }
	from = first(givesPIN)
	s.PIN, s.PINSource = from.values[pinValue], from.values[PINSource]
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
			return invalidSetting(Timeout, text, from.origin.name).WithHint(`write it like "30s" or "2m"`)
		}
		s.Timeout = timeout
	}
	if text, from := find(AllowFinalPINTry); text != "" {
		allow, err := strconv.ParseBool(text)
		if err != nil {
			return invalidSetting(AllowFinalPINTry, text, from.origin.name).WithHint(booleanHint)
		}
		s.AllowFinalPINTry = allow
	}
	if err := s.applyRequest(find); err != nil {
		return err
	}
	if s.ModulePath == "" && s.Broker == "" { // looking for it takes a millisecond
		s.ModulePath = p11kitProxy()
	}
	return nil
}

// PINPlace returns where the PIN comes from, for people. It contains no PIN, and nothing that could be one.
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

// invalidSetting returns the failure for a malformed value of a setting.
func invalidSetting(name, value, where string) *failure.Error {
	return failure.New(failure.Invalid, "invalid %s %q in %s", name, value, where)
}

const booleanHint = "write true or false"

// carriesPIN returns the failure for a PIN that others could read. name is the setting or attribute, where has it, and
// origin shows it.
func carriesPIN(where, name string, origin Origin) error {
	return failure.New(failure.Invalid, "%s carries a PIN (%s), which %s would show to others", where, name,
		cmp.Or(origin.showsPIN, origin.name)).
		WithHint(safePIN)
}

// looksLikePIN reports whether a setting has a name that people use for a PIN.
func looksLikePIN(name string) bool {
	switch strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name)) {
	case "pin", "pinvalue", "userpin", "password", "passphrase", "passwd":
		return true
	}
	return false
}

// p11kitProxy returns the path of p11-kit's proxy module, which loads all modules that the system configures, or "".
func p11kitProxy() string {
	for _, pattern := range []string{"/usr/lib/*/p11-kit-proxy.so", "/usr/lib64/p11-kit-proxy.so",
		"/usr/lib/p11-kit-proxy.so", "/usr/local/lib/p11-kit-proxy.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	return ""
}
