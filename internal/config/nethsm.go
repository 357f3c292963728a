package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// NetHSMScheme begins the reference of a key on a NetHSM.
const NetHSMScheme = "nethsm:"

// NetHSM has the settings of the section nethsm of the config file, each of which the environment may set after
// NOTATION_HSM_NETHSM_. PIN, PINSource and Timeout of Settings are for the operator.
type NetHSM struct {
	Instances []string // of one cluster, as https://HOST[:PORT]
	User      string   // the operator, or NAMESPACE~USER
	CAFile    string   // PEM; "" for the system's roots
	// SHA-256 of the certificates (DER) that are trusted, whoever issued them; none: CAFile decides
	Fingerprints [][32]byte
	Insecure     bool // trust any certificate
	Withheld     bool // with Insecure: a PIN for any token is set, and is not sent

	Administrator, AdministratorPINSource string // "" when none is named
	BackupUser, BackupPINSource           string
}

// The settings of the section nethsm only. It also has pin-source, certificate-chain and timeout.
const (
	nethsmInstances       = "instances"
	nethsmUser            = "user"
	nethsmCAFile          = "ca-file"
	nethsmFingerprints    = "fingerprints"
	nethsmInsecure        = "insecure"
	nethsmAdministrator   = "administrator"
	nethsmAdministratorIn = "administrator-pin-source"
	nethsmBackupUser      = "backup-user"
	nethsmBackupIn        = "backup-pin-source"
)

var (
	nethsmOwn = []string{
		nethsmInstances, nethsmUser, nethsmCAFile, nethsmFingerprints, nethsmInsecure,
		nethsmAdministrator, nethsmAdministratorIn, nethsmBackupUser, nethsmBackupIn,
	}
	nethsmSettings = append([]string{PINSource, CertificateChain, Timeout}, nethsmOwn...)
	nethsmLists    = []string{nethsmInstances, nethsmFingerprints}
)

// isNetHSMName reports whether text can be the ID of a key, user or namespace (the schema ID of the NetHSM's API).
func isNetHSMName(text string) bool {
	for i, c := range []byte(text) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			return false
		}
	}
	return 0 < len(text) && len(text) <= 128
}

// parseNetHSM parses the reference of a key on a NetHSM. Commands that list keys accept a pattern that ends with "*".
func parseNetHSM(text string) (URI, error) {
	id := strings.TrimPrefix(text, NetHSMScheme)
	if prefix := strings.TrimSuffix(id, "*"); id != "" && !isNetHSMName(prefix) {
		return URI{}, failure.New(failure.Invalid, "invalid key reference %q", redactMalformed(text)).
			WithHint(`write it like nethsm:release; a key ID has letters, digits and "_.-", and begins with a letter or digit`)
	}
	return URI{NetHSM: true, Object: id}, nil
}

// nethsmEntries reads the section nethsm. instances and fingerprints may be lists.
func (f *file) nethsmEntries(node *yaml.Node) (err error) {
	lists := map[string]string{}
	f.nethsm, err = f.section(node, "nethsm", nethsmSettings, func(name string, value *yaml.Node) (bool, error) {
		if value.Kind != yaml.SequenceNode || !slices.Contains(nethsmLists, name) {
			return false, nil
		}
		var all []string
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return true, f.notScalar(item, "an entry of "+name)
			}
			all = append(all, item.Value)
		}
		lists[name] = strings.Join(all, ",")
		return true, nil
	})
	for name, value := range lists {
		f.nethsm[name] = value
	}
	return err
}

// chooseNetHSM makes the setting token name the NetHSM ("nethsm:"), for commands that list or generate keys.
func (s *Settings) chooseNetHSM(token, where string) error {
	if s.Key.NetHSM || s.Key.Object != "" || len(s.Key.ID) > 0 {
		return failure.New(failure.Invalid, "the key %s is on another token than %s names", s.Key, where).
			WithHint("leave out the token or the key")
	}
	uri, err := parseNetHSM(token)
	s.Key = uri
	return err
}

// applyNetHSM takes each setting from the first layer that has it. The settings of the section only come from the
// environment or the file.
func (s *Settings) applyNetHSM(f *file, layers []layer, origin Origin, missing *Programs) error {
	for _, l := range layers {
		if l.uri {
			break // weaker layers are for other keys as well
		}
		if path := l.values[ModulePath]; path != "" {
			return failure.New(failure.Invalid, "cannot use the module %s in %s: the key %s is on a NetHSM",
				path, l.origin.name, s.Key).
				WithHint("leave out " + ModulePath)
		}
	}
	own := func(name string) string { return cmp.Or(os.Getenv(nethsmEnvironment(name)), f.nethsm[name]) }
	n := &NetHSM{
		User: own(nethsmUser), CAFile: own(nethsmCAFile),
		Administrator: own(nethsmAdministrator), AdministratorPINSource: own(nethsmAdministratorIn),
		BackupUser: own(nethsmBackupUser), BackupPINSource: own(nethsmBackupIn),
	}
	if n.CAFile != "" && os.Getenv(nethsmEnvironment(nethsmCAFile)) == "" && !filepath.IsAbs(n.CAFile) {
		n.CAFile = filepath.Join(filepath.Dir(f.path), n.CAFile)
	}
	for name, user := range map[string]string{nethsmUser: n.User, nethsmAdministrator: n.Administrator,
		nethsmBackupUser: n.BackupUser} {
		first, second, in := strings.Cut(user, "~")
		if user != "" && (!isNetHSMName(first) || in && !isNetHSMName(second)) {
			return invalidSetting(name, user, theNetHSM).WithHint("write it as NAME or NAMESPACE~NAME")
		}
	}
	var err error
	if n.Insecure, err = parseInsecure(own(nethsmInsecure)); err != nil {
		return err
	}
	stated, by, err := statedInsecure(layers)
	if err != nil {
		return err
	}
	if stated && !n.Insecure && !by.namesPrograms { // data may say for which key, but not whether
		return failure.New(failure.Denied,
			"the TLS certificates of the NetHSM must be verified: %s sets %s, and the config file does not set %s", by.name,
			NetHSMInsecure, nethsmInsecure).
			WithHint("for a NetHSM for tests, also write insecure: true under nethsm in " + f.path +
				"; else remove " + NetHSMInsecure)
	}
	if n.Insecure && !stated && origin.name == PluginConfig.name {
		return failure.New(failure.Denied,
			"the TLS certificates of the NetHSM are NOT verified (insecure), and the settings of the key do not allow that").
			WithHint("set fingerprints or ca-file under nethsm; or, for a NetHSM for tests, write " +
				NetHSMInsecure +
				": true in the key's own entry of the config file, or add --plugin-config " + NetHSMInsecure + "=true")
	}
	n.Insecure = n.Insecure || stated
	if n.Instances, err = instances(own(nethsmInstances), f.path); err != nil {
		return err
	}
	if n.Fingerprints, err = fingerprints(own(nethsmFingerprints)); err != nil {
		return err
	}
	s.NetHSM = n
	if n.Insecure {
		layers, n.Withheld = withoutGeneralPIN(layers)
	}
	if source := os.Getenv(nethsmEnvironment(PINSource)); source != "" { // stronger than one for any token
		at := slices.IndexFunc(layers, isEnvironment)
		layers = slices.Insert(layers, at, layer{origin: environmentOrigin, values: map[string]string{PINSource: source}})
	}
	if err := s.apply(f, layers, missing); err != nil {
		return err
	}
	s.ModulePath = strings.Join(n.Instances, " ")
	return nil
}

// theNetHSM names the settings of the NetHSM in errors, which are in the config file or in the environment.
const theNetHSM = "the settings of the NetHSM"

// parseInsecure parses a boolean; "" is false.
func parseInsecure(text string) (bool, error) {
	if text == "" {
		return false, nil
	}
	insecure, err := strconv.ParseBool(text)
	if err != nil {
		return false, invalidSetting(nethsmInsecure, text, theNetHSM).WithHint(booleanHint)
	}
	return insecure, nil
}

// statedInsecure reports whether the settings of the key itself, those given with it or those of its entry in the
// config file, allow any certificate, and which of the two does.
func statedInsecure(layers []layer) (insecure bool, by Origin, err error) {
	given := true
	for _, l := range layers {
		given = given && !l.uri
		if text := l.values[NetHSMInsecure]; text != "" && (given || l.own) {
			insecure, err = parseInsecure(text)
			return insecure, l.origin, err
		}
	}
	return false, Origin{}, nil
}

func isEnvironment(l layer) bool { return l.origin == environmentOrigin }

// withoutGeneralPIN removes a PIN or a source that is set for any token, in the environment or at the top of the config
// file, since it may be the PIN of a PKCS#11 token.
func withoutGeneralPIN(layers []layer) (rest []layer, withheld bool) {
	rest = slices.Clone(layers)
	for _, i := range []int{slices.IndexFunc(rest, isEnvironment), len(rest) - 1} {
		values := maps.Clone(rest[i].values)
		withheld = withheld || values[PINSource] != "" || values[pinValue] != ""
		delete(values, PINSource)
		delete(values, pinValue)
		rest[i].values = values
	}
	return rest, withheld
}

// values splits a list at commas and spaces.
func values(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// instances parses URLs, which have a host and a port only, and perhaps the path of the API.
func instances(list, file string) ([]string, error) {
	all := values(list)
	if len(all) == 0 {
		return nil, failure.New(failure.Invalid, "no NetHSM is configured").
			WithHint("write instances: https://HOST under nethsm in " + file + ", or set " + nethsmEnvironment(nethsmInstances))
	}
	for i, text := range all {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
			!slices.Contains([]string{"", "/", "/api/v1", "/api/v1/"}, u.Path) {
			return nil, invalidSetting(nethsmInstances, redactURL(u, text), theNetHSM).
				WithHint("write it as https://HOST or https://HOST:PORT")
		}
		all[i] = "https://" + u.Host
	}
	return all, nil
}

// redactURL returns a URL without a passphrase in it.
func redactURL(u *url.URL, text string) string {
	if u != nil && u.User != nil {
		return u.Redacted()
	}
	if strings.Contains(text, "@") {
		return "...@" + text[strings.LastIndex(text, "@")+1:]
	}
	return text
}

// fingerprints parses SHA-256 digests in hex, with or without colons and "sha256:".
func fingerprints(list string) ([][32]byte, error) {
	var all [][32]byte
	for _, text := range values(list) {
		raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(text), "sha256:"), ":", ""))
		if err != nil || len(raw) != sha256.Size {
			return nil, invalidSetting(nethsmFingerprints, text, theNetHSM).
				WithHint(fmt.Sprintf(
					"write it as sha256: and %d hex digits; get it from the NetHSM's owner, or from: openssl x509 -in cert.pem "+
						"-noout -fingerprint -sha256", 2*sha256.Size))
		}
		all = append(all, [32]byte(raw))
	}
	return all, nil
}
