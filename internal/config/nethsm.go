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

// NetHSMScheme starts the reference to a key on a NetHSM.
const NetHSMScheme = "nethsm:"

// NetHSM says how a NetHSM is reached: the section nethsm of the config file, each setting of which the environment may
// give as well, after NOTATION_HSM_NETHSM_. Who signs with it proves itself as ever: PIN, PINSource and Timeout of
// Settings are the operator's.
type NetHSM struct {
	Instances []string // of one cluster, as https://HOST[:PORT]
	User      string   // the operator, or NAMESPACE~USER
	CAFile    string   // PEM; "" for the system's roots
	// SHA-256 of the certificates (DER) that are trusted, whoever issued them; none: CAFile decides
	Fingerprints [][32]byte
	Insecure     bool // trust any certificate
	Withheld     bool // a PIN for any token is set, which is not sent to whoever answers (Insecure)

	Administrator, AdministratorPINSource string // "" when none is named
	BackupUser, BackupPINSource           string
}

// The settings of the section nethsm alone. Beside them stand pin-source, certificate-chain and timeout.
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

// isNetHSMName reports whether NetHSM takes text for the ID of a key, user or namespace (the schema ID of its API).
func isNetHSMName(text string) bool {
	for i, c := range []byte(text) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || !strings.ContainsRune("_.-", rune(c))) {
			return false
		}
	}
	return 0 < len(text) && len(text) <= 128
}

func parseNetHSM(text string) (URI, error) {
	id := strings.TrimPrefix(text, NetHSMScheme)
	if prefix := strings.TrimSuffix(id, "*"); id != "" && !isNetHSMName(prefix) { // with a star, for commands that list
		return URI{}, failure.New(failure.Invalid, "%q names no key on a NetHSM", redactMalformed(text)).
			WithHint(`name it like nethsm:release; a key ID has letters, digits and "_.-", and begins with a letter or digit`)
	}
	return URI{NetHSM: true, Object: id}, nil
}

// nethsmEntries reads the section; instances and fingerprints may be lists.
func (f *file) nethsmEntries(node *yaml.Node) (err error) {
	lists := map[string]string{}
	f.nethsm, err = f.section(node, "nethsm", nethsmSettings, func(name string, value *yaml.Node) (bool, error) {
		if value.Kind != yaml.SequenceNode || !slices.Contains(nethsmLists, name) {
			return false, nil
		}
		var all []string
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return true, failure.New(failure.Invalid, "%q in nethsm (%s:%d) holds more than values",
					name, f.path, item.Line).
					WithHint("give it values alone")
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

// chooseNetHSM lets the setting token name the NetHSM ("nethsm:"), for commands that list keys or make them.
func (s *Settings) chooseNetHSM(token, where string) error {
	if s.Key.NetHSM || s.Key.Object != "" || len(s.Key.ID) > 0 {
		return failure.New(failure.Invalid, "the key %s is not where %s has it", s.Key, where).
			WithHint("name the one or the other")
	}
	uri, err := parseNetHSM(token)
	s.Key = uri
	return err
}

// applyNetHSM takes each setting from the first layer that has it; those of the section alone come from the environment
// or the file.
func (s *Settings) applyNetHSM(f *file, layers []layer, origin Origin, missing *Programs) error {
	for _, l := range layers {
		if l.uri {
			break // what is weaker is for other keys as well
		}
		if path := l.values[ModulePath]; path != "" {
			return failure.New(failure.Invalid, "the key %s is on a NetHSM, and %s names the module %s",
				s.Key, l.origin.name, path).
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
			return failure.New(failure.Invalid, "%s %q of the NetHSM is no user ID", name,
				user).
				WithHint("write it as NAME or NAMESPACE~NAME")
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
	if stated && !n.Insecure && !by.namesPrograms { // data decides for which key, not whether
		return failure.New(failure.Denied,
			"%s has the TLS certificates of the NetHSM not verified (%s), which the config file does not", by.name,
			NetHSMInsecure).
			WithHint("for a NetHSM for tests, also write insecure: true under nethsm in " + f.path +
				"; else take " + NetHSMInsecure + " out")
	}
	if n.Insecure && !stated && origin == PluginConfig {
		return failure.New(failure.Denied,
			"the TLS certificates of the NetHSM are NOT verified (insecure), so whoever is on the network can read the "+
				"passphrase and answer in its place, and nothing says so for this key").
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
	if source := os.Getenv(nethsmEnvironment(PINSource)); source != "" { // more to the point than one for any token
		at := slices.IndexFunc(layers, isEnvironment)
		layers = slices.Insert(layers, at, layer{origin: environmentOrigin, values: map[string]string{PINSource: source}})
	}
	if err := s.apply(f, layers, missing); err != nil {
		return err
	}
	s.ModulePath = strings.Join(n.Instances, " ")
	return nil
}

func parseInsecure(text string) (bool, error) {
	if text == "" {
		return false, nil
	}
	insecure, err := strconv.ParseBool(text)
	if err != nil {
		return false, failure.New(failure.Invalid, "%s %q of the NetHSM is neither true nor false",
			nethsmInsecure, text).
			WithHint("write true or false")
	}
	return insecure, nil
}

// statedInsecure reports whether it is said of this very key, by what was given with it or by its entry of the config
// file, that any certificate is trusted, and who says so.
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

// withoutGeneralPIN takes away a PIN, or its source, that is set for any token, in the environment or at the top of the
// config file: it may be meant for a PKCS#11 token.
func withoutGeneralPIN(layers []layer) (rest []layer, withheld bool) {
	rest = slices.Clone(layers)
	for _, i := range []int{slices.IndexFunc(rest, isEnvironment), len(rest) - 1} {
		values := maps.Clone(rest[i].values)
		withheld = withheld || values[PINSource] != "" || values["pin-value"] != ""
		delete(values, PINSource)
		delete(values, "pin-value")
		rest[i].values = values
	}
	return rest, withheld
}

func nethsmEnvironment(name string) string { return EnvironmentName("nethsm-" + name) }

func values(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// instances reads URLs, of which only host and port may differ from the usual.
func instances(list, file string) ([]string, error) {
	all := values(list)
	if len(all) == 0 {
		return nil, failure.New(failure.Invalid, "the config file names no NetHSM").
			WithHint("write instances: https://HOST under nethsm in " + file + ", or set " + nethsmEnvironment(nethsmInstances))
	}
	for i, text := range all {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
			!slices.Contains([]string{"", "/", "/api/v1", "/api/v1/"}, u.Path) {
			return nil, failure.New(failure.Invalid, "the NetHSM instance %q is no https URL of one", redactURL(u, text)).
				WithHint("write it as https://HOST or https://HOST:PORT")
		}
		all[i] = "https://" + u.Host
	}
	return all, nil
}

// redactURL keeps a passphrase that someone has put into a URL out of an error.
func redactURL(u *url.URL, text string) string {
	if u != nil && u.User != nil {
		return u.Redacted()
	}
	if strings.Contains(text, "@") {
		return "...@" + text[strings.LastIndex(text, "@")+1:]
	}
	return text
}

func fingerprints(list string) ([][32]byte, error) {
	var all [][32]byte
	for _, text := range values(list) {
		raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(strings.ToLower(text), "sha256:"), ":", ""))
		if err != nil || len(raw) != sha256.Size {
			return nil, failure.New(failure.Invalid, "the fingerprint %q of the NetHSM is no SHA-256 digest", text).
				WithHint(fmt.Sprintf(
					"write it as sha256: and %d hex digits; get it from the NetHSM's owner, or from: openssl x509 -in cert.pem "+
						"-noout -fingerprint -sha256", 2*sha256.Size))
		}
		all = append(all, [32]byte(raw))
	}
	return all, nil
}
