package config

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// BrokerScheme begins the reference of a key that a broker holds. The name follows, percent-encoded.
const BrokerScheme = "broker:"

// maxBrokerName is the length of the longest name of a key, in bytes.
const maxBrokerName = 255

const (
	unixScheme  = "unix:"
	httpsScheme = "https://"
)

// maxSocket is the length of the longest path of a socket, in bytes: sun_path without its zero byte (unix(7)).
const maxSocket = 107

// parseBroker parses broker:NAME. An empty name means the broker alone, for commands that list.
func parseBroker(text string) (URI, error) {
	name, err := url.PathUnescape(strings.TrimPrefix(text, BrokerScheme))
	if err != nil || len(name) > maxBrokerName || strings.ContainsFunc(name, unicode.IsControl) ||
		name == "." || name == ".." || // which are no names in the path of a URL
		strings.Contains(text, "?") || namesPIN(name) {
		return URI{}, failure.New(failure.Invalid, "invalid key reference %q", redactMalformed(text)).
			WithHint("write it like broker:release, with the label of the key; percent-encode other characters than letters, " +
				`digits and "_.-"`)
	}
	return URI{Broker: true, Object: name}, nil
}

// DefaultSocket returns the path of the agent's socket in the user's runtime directory. It fails with NotFound if the
// environment names no such directory.
func DefaultSocket() (string, error) {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	const hint = "set NOTATION_HSM_BROKER to unix:PATH, with the path that 'hsm-broker agent' says"
	switch {
	case dir == "":
		return "", failure.New(failure.NotFound, "cannot find the broker's socket: XDG_RUNTIME_DIR is not set").WithHint(hint)
	case !filepath.IsAbs(dir):
		return "", failure.New(failure.NotFound, "cannot find the broker's socket: XDG_RUNTIME_DIR is no absolute path").
			WithHint(hint)
	}
	return filepath.Join(dir, "notation-hsm", "broker.sock"), nil
}

// nameBroker makes the setting token name the broker ("broker:"), for commands that list keys.
func (s *Settings) nameBroker(where string) error {
	if s.Key.NetHSM || s.Key.Object != "" || len(s.Key.ID) > 0 {
		return failure.New(failure.Invalid, "the key %s is on another token than %s names", s.Key, where).
			WithHint("leave out the token or the key")
	}
	s.Key = URI{Broker: true}
	return nil
}

// chooseBroker takes the broker from the strongest layer that names one. A key broker:NAME without one is held by the
// agent at the default socket; Broker is then "unix:" alone if there is no such socket, which fails where it is used.
//
// Data may name a socket: the process behind it has to be this user's or root's, and signs with keys of its own. An
// https broker gets a token or proof of a certificate, so data may only name the one that the environment or the config
// file names for this key as well.
func (s *Settings) chooseBroker(layers []layer, origin Origin) error {
	if origin.direct {
		if s.Key.Broker {
			return failure.New(failure.Unsupported, "cannot change %s: a broker lets keys be used, not changed", s.Key).
				WithHint("name the key by the URI that it has in its module (pkcs11: or nethsm:)")
		}
		return nil
	}
	for i, l := range layers {
		address := l.values[Broker]
		if address == "" {
			continue
		}
		if err := checkBroker(address, l.origin.name); err != nil {
			return err
		}
		s.Broker = address
		if !strings.HasPrefix(address, httpsScheme) {
			return nil
		}
		if !l.origin.namesPrograms && trusted(layers[i:], Broker) != address {
			return failure.New(failure.Denied,
				"cannot use the broker %s that %s names: neither the environment nor the config file names it", address,
				l.origin.name).
				WithHint("if you trust it, set NOTATION_HSM_BROKER=" + address + ", or write broker: " + address +
					" into the config file")
		}
		return s.chooseCredentials(layers)
	}
	if s.Key.Broker {
		path, _ := DefaultSocket()
		s.Broker = unixScheme + path
	}
	return nil
}

// trusted returns the value of a setting in the strongest layer that is no data, or "".
func trusted(layers []layer, name string) string {
	for _, l := range layers {
		if value := l.values[name]; value != "" && l.origin.namesPrograms {
			return value
		}
	}
	return ""
}

// checkBroker fails unless an address is unix:PATH or https://HOST[:PORT].
func checkBroker(address, where string) error {
	if strings.HasPrefix(address, httpsScheme) {
		u, err := url.Parse(address)
		if err != nil || address != httpsScheme+u.Host || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") ||
			strings.ToLower(address) != address || u.Port() == "443" {
			return invalidSetting(Broker, address, where).
				WithHint("write it as https://HOST or https://HOST:PORT, in lower case, without a path and without :443")
		}
		return nil
	}
	path, ok := strings.CutPrefix(address, unixScheme)
	if !ok || !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsControl) {
		return invalidSetting(Broker, address, where).
			WithHint("write it as unix:PATH, with an absolute path, or as https://HOST[:PORT]")
	}
	if len(path) > maxSocket {
		return invalidSetting(Broker, address, where).
			WithHint("use a path of at most 107 bytes, the limit of the operating system")
	}
	return nil
}

// BrokerSocket returns the path of the socket of a broker without https. It fails as DefaultSocket does.
func (s *Settings) BrokerSocket() (string, error) {
	if path := strings.TrimPrefix(s.Broker, unixScheme); path != "" {
		return path, nil
	}
	return DefaultSocket()
}

// Scheme returns the scheme of the backend that reaches the key: that of its URI, or BrokerScheme if a broker is set.
func (s *Settings) Scheme() string {
	if s.Broker != "" {
		return BrokerScheme
	}
	return s.Key.Scheme()
}
