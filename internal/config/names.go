package config

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// PluginName is the plugin's name to Notation: the file is called notation-hsm, and users write --plugin hsm.
const PluginName = "hsm"

// The settings, in the spelling of flags, plugin config and the config file. In the environment a name is upper case
// with underscores, after NOTATION_HSM_.
const (
	ModulePath       = "module-path"
	Token            = "token"
	SlotID           = "slot-id"
	PINSource        = "pin-source"
	CertificateChain = "certificate-chain"
	Timeout          = "timeout"
	AllowFinalPINTry = "allow-final-pin-try"
)

// NetHSMInsecure is the setting of one key, in plugin config or its entry of the config file, that has the plugin trust
// any certificate of the NetHSM: Notation shows no warning of a plugin's.
const NetHSMInsecure = "nethsm-insecure"

// Names lists every setting that plugin config, a flag or the environment may give.
var Names = []string{ModulePath, Token, SlotID, PINSource, CertificateChain, Timeout, AllowFinalPINTry}

const environmentPrefix = "NOTATION_HSM_"

// EnvironmentName returns the environment variable of a setting.
func EnvironmentName(setting string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

// checkName fails when name is not one of known, naming the nearest one that is.
func checkName(name string, known []string, what, where string) error {
	if slices.Contains(known, name) {
		return nil
	}
	hint := "known are: " + strings.Join(known, ", ")
	if near := nearest(name, known); near != "" {
		hint = "did you mean " + near + "? (" + hint + ")"
	}
	if mentions(name, "pinvalue", "pinsource") && len(name) > len(PINSource) { // more than the name stands in it
		name = "..."
	}
	return failure.New(failure.Invalid, "unknown %s %q in %s", what, name, where).WithHint(hint)
}

// nearest returns the known name that name is most likely a misspelling of, or "".
func nearest(name string, known []string) string {
	best, distance := "", 1+max(2, len(name)/3)
	for _, k := range known {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), k); d < distance {
			best, distance = k, d
		}
	}
	return best
}
