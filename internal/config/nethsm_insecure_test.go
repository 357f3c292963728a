package config

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestInsecure lets the plugin trust any certificate only if the settings of the key itself allow it, and then uses a
// PIN only if it is set for the NetHSM.
func TestInsecure(t *testing.T) {
	const section = "nethsm: {instances: https://a.example.com, user: a, %}\n" +
		"keys: {test: {uri: 'nethsm:test', nethsm-insecure: true}, other: {uri: 'nethsm:other'}}\n"
	for name, c := range map[string]struct {
		section     string // of the file, for %
		top         string // of the file
		environment map[string]string
		reference   string
		given       map[string]string
		origin      Origin
		refused     bool
		source      string
		withheld    bool
	}{
		"the variable alone": {environment: map[string]string{"NETHSM_INSECURE": "true"},
			reference: "nethsm:other", origin: PluginConfig, refused: true},
		"the section alone": {section: "insecure: true", reference: "other", origin: PluginConfig, refused: true},
		"the key's entry": {section: "pin-source: env:A",
			reference: "test", origin: PluginConfig, source: "env:A"},
		"plugin config": {section: "insecure: true, pin-source: env:A",
			reference: "other", given: map[string]string{NetHSMInsecure: "true"}, origin: PluginConfig, source: "env:A"},
		"plugin config says no": {section: "insecure: true",
			reference: "test", given: map[string]string{NetHSMInsecure: "false"}, origin: PluginConfig, refused: true},
		"a command": {environment: map[string]string{"NETHSM_INSECURE": "true", "NETHSM_PIN_SOURCE": "env:A"},
			reference: "other", origin: Flags, source: "env:A"},
		"a PIN for any token": {environment: map[string]string{"NETHSM_INSECURE": "true", "PIN": "1234"},
			reference: "other", origin: Flags, withheld: true},
		"its source": {environment: map[string]string{"PIN_SOURCE": "env:TOKEN"},
			reference: "test", origin: PluginConfig, withheld: true},
		"its source in the file": {top: "pin-source: env:TOKEN", reference: "test", origin: PluginConfig, withheld: true},
		"one in a token's URI": {environment: map[string]string{"TOKEN": "pkcs11:token=a?pin-value=1234"},
			reference: "test", origin: PluginConfig},
		"both": {section: "pin-source: env:A", top: "pin-source: env:TOKEN", environment: map[string]string{"PIN": "1234"},
			reference: "test", origin: PluginConfig,
			source: "env:A", withheld: true},
		"one for this key": {environment: map[string]string{"PIN": "1234"},
			reference: "test", given: map[string]string{PINSource: "env:B"}, origin: PluginConfig, source: "env:B",
			withheld: true},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, c.top+"\n"+strings.Replace(section, "%", c.section, 1))
			for name, value := range c.environment {
				t.Setenv("NOTATION_HSM_"+name, value)
			}
			s, err := Resolve(c.reference, c.given, c.origin)
			if c.refused {
				if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "NOT verified") ||
					!strings.Contains(failure.From(err).Hint, NetHSMInsecure) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || !s.NetHSM.Insecure || s.PINSource != c.source || s.PIN != "" || s.NetHSM.Withheld != c.withheld {
				t.Errorf("%+v, %+v, %v", s, s.NetHSM, err)
			}
		})
	}
	// Plugin config, which is data, cannot turn verification off.
	configure(t, strings.Replace(section, "%", "pin-source: env:A", 1))
	for _, origin := range []Origin{PluginConfig, Stored("ca.json")} {
		_, err := Resolve("other", map[string]string{NetHSMInsecure: "true"}, origin)
		if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "the config file does not set insecure") {
			t.Errorf("%v", err)
		}
	}
	// With verification, a PIN for any token is used for the NetHSM too.
	configure(t, strings.Replace(section, "%", "", 1))
	t.Setenv("NOTATION_HSM_PIN", "1234")
	if s, err := Resolve("other", nil, PluginConfig); err != nil ||
		s.PINSource != "env:NOTATION_HSM_PIN" || s.NetHSM.Withheld {
		t.Errorf("%+v, %v", s, err)
	}
	t.Setenv("NOTATION_HSM_NETHSM_PIN_SOURCE", "env:A")
	if s, err := Resolve("other", nil, PluginConfig); err != nil || s.PINSource != "env:A" {
		t.Errorf("%+v, %v", s, err)
	}
}
