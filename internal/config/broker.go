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

const unixScheme = "unix:"

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
// Data may name a socket: the process behind it has to be this user's or root's, and signs with keys of its own.
func (s *Settings) chooseBroker(layers []layer, origin Origin) error {
	if origin.direct {
		if s.Key.Broker {
			return failure.New(failure.Unsupported, "cannot change %s: a broker lets keys be used, not changed", s.Key).
				WithHint("name the key by the URI that it has in its module (pkcs11: or nethsm:)")
		}
		return nil
	}
	for _, l := range layers {
		address := l.values[Broker]
		if address == "" {
			continue
		}
		path, ok := strings.CutPrefix(address, unixScheme)
		if !ok || !filepath.IsAbs(path) || strings.ContainsFunc(path, unicode.IsControl) {
			return invalidSetting(Broker, address, l.origin.name).WithHint("write it as unix:PATH, with an absolute path")
		}
		if len(path) > maxSocket {
			return invalidSetting(Broker, address, l.origin.name).
				WithHint("use a path of at most 107 bytes, the limit of the operating system")
		}
		s.Broker = address
		return nil
	}
	if s.Key.Broker {
		path, _ := DefaultSocket()
		s.Broker = unixScheme + path
	}
	return nil
}

// BrokerSocket returns the path of the broker's socket. It fails as DefaultSocket does.
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
