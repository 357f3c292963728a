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

// parseBroker parses broker:NAME. An empty name means the broker alone, for commands that list.
func parseBroker(text string) (URI, error) {
	name, err := url.PathUnescape(strings.TrimPrefix(text, BrokerScheme))
	if err != nil || len(name) > maxBrokerName || strings.ContainsFunc(name, unicode.IsControl) ||
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
	if !filepath.IsAbs(dir) {
		return "", failure.New(failure.NotFound, "cannot find the broker's socket: XDG_RUNTIME_DIR is no absolute path").
			WithHint("set NOTATION_HSM_BROKER to unix:PATH, with the path that 'hsm-broker agent' says")
	}
	return filepath.Join(dir, "notation-hsm", "broker.sock"), nil
}

// chooseBroker takes the broker from the strongest layer that names one. A key broker:NAME without one is held by the
// agent at the default socket.
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
		if !ok || !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
			return invalidSetting(Broker, address, l.origin.name).WithHint("write it as unix:PATH, with a full path")
		}
		s.Broker = address
		return nil
	}
	if !s.Key.Broker {
		return nil
	}
	path, err := DefaultSocket()
	s.Broker = unixScheme + path
	return err
}

// BrokerSocket returns the path of the broker's socket.
func (s *Settings) BrokerSocket() string { return strings.TrimPrefix(s.Broker, unixScheme) }

// Scheme returns the scheme of the backend that reaches the key: that of its URI, or BrokerScheme if a broker is set.
func (s *Settings) Scheme() string {
	if s.Broker != "" {
		return BrokerScheme
	}
	return s.Key.Scheme()
}
