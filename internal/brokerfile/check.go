package brokerfile

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog/feed"
)

// check returns the mistakes that the values of a file have.
func (f *File) check() (all Mistakes) {
	add := func(path, hint, format string, args ...any) {
		all = append(all, Mistake{Line: f.line(path), What: path + ": " + fmt.Sprintf(format, args...), Hint: hint})
	}
	if f.Version != 1 {
		add("version", "write version: 1", "is %d", f.Version)
	}
	f.checkURL(add)
	f.checkListeners(add)
	f.checkStore(add)
	if !absolute(f.Policy) {
		add("policy", "name the file by its absolute path", "%q is not an absolute path", f.Policy)
	}
	for name, path := range map[string]string{"approvers": f.Approvers,
		"passkeys.attestation-roots": f.Passkeys.AttestationRoots} {
		if path != "" && !absolute(path) {
			add(name, "name the file by its absolute path", "%q is not an absolute path", path)
		}
	}
	f.checkWeb(add)
	f.checkModules(add)
	for name, k := range f.Keys {
		if k.CertificateChain != "" && !absolute(k.CertificateChain) {
			add("keys."+name+".certificate-chain", "name the file by its absolute path", "%q is not an absolute path",
				k.CertificateChain)
		}
	}
	f.checkLog(add)
	f.checkFollowers(add)
	f.checkWitnesses(add)
	f.checkTags(add)
	all = append(all, f.checkNotices()...)
	if len(f.Callers.OIDC) == 0 && f.Callers.MTLS == nil && f.Callers.Unix == nil {
		add("callers", "list oidc, mtls or unix", "nobody may call the broker")
	}
	if f.Callers.MTLS != nil && (f.Listen.HTTPS == nil || f.Listen.HTTPS.ClientCA == "") {
		add("callers.mtls", "set listen.https.client-ca to the CA of callers' certificates",
			"no CA issues their certificates")
	}
	for _, err := range append(f.Callers.Check(), identity.CheckAdministrators(f.Administrators)...) {
		all = append(all, f.locate(err))
	}
	for _, err := range (repository.Config{Registries: f.Registries}).Check() {
		all = append(all, f.locate(err))
	}
	return all
}

type adding func(path, hint, format string, args ...any)

func (f *File) checkURL(add adding) {
	u, err := url.Parse(f.PublicURL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		u.Path != "" && u.Path != "/" {
		add("public-url", "write it like https://broker.example.com", "%q is not an https URL without a path", f.PublicURL)
		return
	}
	if host := u.Hostname(); f.RPID != host && !strings.HasSuffix(host, "."+f.RPID) || f.RPID == "" {
		add("rp-id", "use the host of public-url, or a domain above it", "%q is no domain of %s", f.RPID, host)
	}
}

const maxSocketPath = 107 // bytes, of Linux

func (f *File) checkListeners(add adding) {
	if f.Listen.HTTPS == nil && f.Listen.Unix == nil {
		add("listen", "add https or unix", "the broker listens nowhere")
	}
	if h := f.Listen.HTTPS; h != nil {
		if !isAddress(h.Address) {
			add("listen.https.address", "write it like 0.0.0.0:8443", "%q is not ADDRESS:PORT", h.Address)
		}
		for _, one := range []struct{ name, path string }{{"certificate", h.Certificate}, {"key", h.Key}} {
			if !absolute(one.path) {
				add("listen.https."+one.name, "name the PEM file by its absolute path", "%q is not an absolute path", one.path)
			}
		}
		if h.ClientCA != "" && !absolute(h.ClientCA) {
			add("listen.https.client-ca", "name the PEM file by its absolute path", "%q is not an absolute path", h.ClientCA)
		}
	}
	if s := f.Listen.Unix; s != nil && !absolute(s.Path) {
		add("listen.unix.path", "write it like /run/hsm-broker/broker.sock", "%q is not an absolute path", s.Path)
	}
	if s := f.Listen.Unix; s != nil && len(s.Path) > maxSocketPath {
		add("listen.unix.path", "use a shorter path", "has %d bytes, and the path of a socket at most %d", len(s.Path),
			maxSocketPath)
	}
	if f.Listen.Metrics != "" && !isAddress(f.Listen.Metrics) {
		add("listen.metrics", "write it like 127.0.0.1:9464", "%q is not ADDRESS:PORT", f.Listen.Metrics)
	}
}

// isAddress reports whether text is ADDRESS:PORT, with a port from 1 to 65535.
func isAddress(text string) bool {
	_, port, err := net.SplitHostPort(text)
	number, notNumber := strconv.ParseUint(port, 10, 16)
	return err == nil && notNumber == nil && number > 0
}

// settings are those of a module in the file.
var settings = []string{config.Token, config.ModulePath, config.SlotID, config.PINSource, config.Timeout,
	config.AllowFinalPINTry, config.NetHSMInsecure}

func (f *File) checkModules(add adding) {
	if len(f.Modules) == 0 {
		add("modules", "list the tokens that have the keys of the policy", "there is none")
	}
	seen := map[string]int{}
	for i, m := range f.Modules {
		at := fmt.Sprintf("modules[%d]", i)
		for name, value := range m {
			checkSetting(add, at, name, value)
		}
		token := m[config.Token]
		u, err := config.ParseURI(token)
		if err != nil || u.Broker || u.Object != "" || len(u.ID) > 0 {
			add(at+".token", "write it like pkcs11:token=prod, or nethsm:", "it is not the URI of a token")
			continue
		}
		if len(u.Query) > 0 { // the URI is in the log
			add(at+".token", "write module-path and pin-source as settings of their own", "it has a query")
			continue
		}
		if first, exists := seen[token]; exists {
			add(at+".token", "list each token once", "%q is modules[%d], too", token, first)
			continue
		}
		seen[token] = i
	}
}

// checkSetting checks a setting of the module at a path.
func checkSetting(add adding, at, name, value string) {
	path := at + "." + name
	switch name {
	case config.ModulePath:
		if strings.Contains(value, "/") && !absolute(value) {
			add(path, "name the library by its absolute path, or without a folder", "%q is not an absolute path", value)
		}
	case config.SlotID:
		if _, err := strconv.ParseUint(value, 10, 64); err != nil {
			add(path, "use a slot number that 'notation-hsm token list' shows", "%q is not a number", value)
		}
	case config.Timeout:
		if timeout, err := time.ParseDuration(value); err != nil || timeout <= 0 {
			add(path, "write it like 30s", "%q is not a time above 0", value)
		}
	case config.AllowFinalPINTry, config.NetHSMInsecure:
		if _, err := strconv.ParseBool(value); err != nil {
			add(path, "write true or false", "%q is neither", value)
		}
	case config.PINSource:
		if !isPINSource(value) { // it may be the PIN
			add(path, `write it like file:/run/pin, env:NAME or "exec:command args"`, "it names no source")
		}
	default:
		if !slices.Contains(settings, name) {
			_, hint := config.Unknown("setting", name, settings)
			add(path, hint, "unknown setting")
		}
	}
}

// isPINSource reports whether text begins like a source of a PIN.
func isPINSource(text string) bool {
	scheme, rest, found := strings.Cut(text, ":")
	return found && rest != "" && slices.Contains([]string{"env", "file", "exec"}, scheme) ||
		strings.HasPrefix(text, "|") || absolute(text) || text == "prompt" || text == "none"
}

// ModuleOf returns the module that has a key, by its URI: the first whose token attributes the key's URI repeats.
func (f *File) ModuleOf(key config.URI) (Module, error) {
	for _, m := range f.Modules {
		token, err := config.ParseURI(m[config.Token])
		if err == nil && within(key, token) {
			return m, nil
		}
	}
	return nil, failure.New(failure.Invalid, "no module of the config file has the token of %s", key).
		WithHint("list its token under modules, or name it in the key's URI as it is there")
}

// within reports whether a key's URI has all attributes of a token's.
func within(key, token config.URI) bool {
	same := func(key, token string) bool { return token == "" || key == token }
	return key.NetHSM == token.NetHSM && !key.Broker && !token.Broker && same(key.Token, token.Token) &&
		same(key.Serial, token.Serial) && same(key.Manufacturer, token.Manufacturer) && same(key.Model, token.Model)
}

// maxLogKeys is in how many modules the log's key can be.
const maxLogKeys = 16

func (f *File) checkLogKey(add adding) {
	if n := len(f.Log.Key); n > maxLogKeys {
		add("log.key", "", "it has %d URIs, more than %d", n, maxLogKeys)
		return
	}
	const like, no = "write it like pkcs11:token=prod;object=log, without a query", "it is not the URI of a key"
	if len(f.Log.Key) == 0 {
		add("log.key", like, no)
	}
	seen := map[string]bool{}
	for i, uri := range f.Log.Key {
		at := "log.key"
		if len(f.Log.Key) > 1 {
			at = fmt.Sprintf("log.key[%d]", i)
		}
		u, err := config.ParseURI(uri)
		if err != nil || u.Object == "" && len(u.ID) == 0 || u.Broker || len(u.Query) > 0 { // the URI is in the log
			add(at, like, no)
			continue
		}
		if _, err := f.ModuleOf(u); err != nil {
			add(at, "list its token under modules", "no module has its token")
		}
		if seen[u.String()] {
			add(at, "list each URI once", "%s is there twice", u)
		}
		seen[u.String()] = true
	}
}

func (f *File) checkLog(add adding) {
	f.checkLogKey(add)
	if f.Log.Origin == "" || strings.ContainsAny(f.Log.Origin, " +\t\n") || strings.Contains(f.Log.Origin, "://") {
		add("log.origin", "write it like broker.example.com/log", "%q is not a name of a log", f.Log.Origin)
	}
	if !absolute(f.Log.CheckpointFile) {
		add("log.checkpoint-file", "name a file outside of the store's folder by its absolute path",
			"%q is not an absolute path", f.Log.CheckpointFile)
	}
	if t := f.Log.MaxUnpublished.Time; t < time.Second || t > 24*time.Hour {
		add("log.max-unpublished.time", "use a time from 1s to 24h", "is %s", t)
	}
	if n := f.Log.MaxUnpublished.Entries; n < 100 || n > 1_000_000 {
		add("log.max-unpublished.entries", "use a number from 100 to 1000000", "is %d", n)
	}
}

// checkFollowers checks the feeds of the log, and the collector of traces.
func (f *File) checkFollowers(add adding) {
	seen := map[string]int{}
	for i, c := range f.Log.Feeds {
		at := fmt.Sprintf("log.feeds[%d]", i)
		if _, err := feed.New(c, feed.Log{}, ""); err != nil {
			e := failure.From(err)
			add(at, e.Hint, "%s", e.What)
		}
		target := c.File + c.Syslog + c.Webhook
		if first, exists := seen[target]; exists {
			add(at, "list each target once", "its target is that of log.feeds[%d], too", first)
		}
		seen[target] = i
	}
	if f.Traces != "" {
		if _, err := telemetry.Endpoint(f.Traces); err != nil {
			e := failure.From(err)
			add("traces", e.Hint, "%s", e.What)
		}
	}
}

var (
	pathOf   = regexp.MustCompile(`^([a-z-]+(?:\.[a-z-]+|\[\d+\])*): `)
	registry = regexp.MustCompile(`^registry (\d+) `)
)

// locate returns a mistake that another room has found, with the line of the path that its message begins with.
func (f *File) locate(err error) Mistake {
	e := failure.From(err)
	m := Mistake{What: e.What, Hint: e.Hint}
	if match := pathOf.FindStringSubmatch(e.What); match != nil {
		m.Line = f.line(match[1])
	} else if match := registry.FindStringSubmatch(e.What); match != nil {
		var n int
		_, _ = fmt.Sscan(match[1], &n)
		m.Line = f.line(fmt.Sprintf("registries[%d]", n-1))
	}
	return m
}
