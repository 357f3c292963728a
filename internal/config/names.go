package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// PluginName is the name of the plugin in Notation: users write --plugin hsm, and the file is called notation-hsm.
const PluginName = "hsm"

// The settings as flags, plugin config and the config file spell them. In the environment, names are in upper case with
// underscores, after NOTATION_HSM_.
const (
	ModulePath       = "module-path"
	Token            = "token"
	SlotID           = "slot-id"
	PINSource        = "pin-source"
	CertificateChain = "certificate-chain"
	Timeout          = "timeout"
	AllowFinalPINTry = "allow-final-pin-try"
	Broker           = "broker"
	BrokerCA         = "broker-ca"
	BrokerCert       = "broker-certificate"
	BrokerKey        = "broker-key"
	BrokerToken      = "broker-token"
	ApprovalWait     = "approval-wait"
	Repository       = "repository"
)

// pinValue is the attribute of a URI with the PIN itself.
const pinValue = "pin-value"

// InitArgs is the setting of a token with the parameters that its module gets in pReserved of C_Initialize. The config
// file alone has it, since a module may take names of files and libraries there.
const InitArgs = "init-args"

// NetHSMInsecure is the setting of one key, in plugin config or in its entry of the config file, that makes the plugin
// trust any certificate of the NetHSM. It is needed beside insecure, since Notation shows no warnings of a plugin.
const NetHSMInsecure = "nethsm-insecure"

// Names lists the settings of plugin config, flags and the environment.
var Names = append(slices.Clone(StoredNames), BrokerCredentials...)

// StoredNames are those that plugin config and other data may have.
var StoredNames = []string{ModulePath, Token, SlotID, PINSource, CertificateChain, Timeout, AllowFinalPINTry, Broker,
	ApprovalWait, Repository}

// BrokerCredentials say how an https broker is authenticated, and this process to it. Data may not have them.
var BrokerCredentials = []string{BrokerCA, BrokerCert, BrokerKey, BrokerToken}

// checkName fails if a name is not known. The hint has the nearest known name.
func checkName(name string, known []string, what, where string) error {
	if slices.Contains(known, name) {
		return nil
	}
	text, hint := Unknown(what, name, known)
	return failure.New(failure.Invalid, "%s in %s", text, where).WithHint(hint)
}

// Unknown returns the message for a name that is not known, and a hint with the nearest known name.
func Unknown(what, name string, known []string) (message, hint string) {
	hint = "known are: " + strings.Join(known, ", ")
	if near := nearest(name, known); near != "" {
		hint = "did you mean " + near + "? (" + hint + ")"
	}
	if mentions(name, "pinvalue", "pinsource") && len(name) > len(PINSource) { // it may contain the PIN
		name = "..."
	}
	return fmt.Sprintf("unknown %s %q", what, name), hint
}

// nearest returns the known name that a name is most likely a misspelling of, or "".
func nearest(name string, known []string) string {
	best, distance := "", 1+max(2, len(name)/3)
	for _, k := range known {
		if d := levenshtein.ComputeDistance(strings.ToLower(name), k); d < distance {
			best, distance = k, d
		}
	}
	return best
}
