package config

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestUnknownVariable refuses a variable that would do nothing, and shows no value: it may be a PIN.
func TestUnknownVariable(t *testing.T) {
	t.Parallel()
	for variable, hint := range map[string]string{
		"NOTATION_HSM_PIN_VALUE":      "set NOTATION_HSM_PIN",
		"NOTATION_HSM_PASSWORD":       "set NOTATION_HSM_PIN",
		"NOTATION_HSM_TIMEOT":         "did you mean NOTATION_HSM_TIMEOUT?",
		"NOTATION_HSM_PINSOURCE":      "did you mean NOTATION_HSM_PIN_SOURCE?",
		"NOTATION_HSM_NETHSM_TIMEOUT": "unset it",
		"NOTATION_HSM_RELEASE_PIN":    "give it another name",
		"NOTATION_HSM_pin":            "set NOTATION_HSM_PIN",
		"NOTATION_HSM_BROKRE":         "did you mean NOTATION_HSM_BROKER?",
		"NOTATION_HSM_":               "unset it",
	} {
		err := checkEnvironment([]string{"HOME=/root", variable + "=" + marker})
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), variable) ||
			!strings.Contains(failure.From(err).Hint, hint) {
			t.Errorf("%s: %v, hint %q", variable, err, failure.From(err).Hint)
		}
		showsNot(t, variable, err)
	}
}

// TestKnownVariables accepts every variable of the documentation, empty ones, those of others, and those that
// Kubernetes sets in a pod for a Service notation-hsm.
func TestKnownVariables(t *testing.T) {
	t.Parallel()
	environ := []string{"NOTATION_CONFIG=x", "NOTATION_HSMX=x", "NOTATION_HSM_EMPTY=", "=x", "x"}
	for _, name := range []string{"PIN", "PIN_SOURCE", "CONFIG", "LOG", "CA_DIR", "TRUST", "MODULE_PATH", "TOKEN",
		"SLOT_ID", "CERTIFICATE_CHAIN", "TIMEOUT", "ALLOW_FINAL_PIN_TRY", "BROKER", "NETHSM_INSTANCES", "NETHSM_USER",
		"NETHSM_PIN_SOURCE",
		"NETHSM_FINGERPRINTS", "NETHSM_CA_FILE", "NETHSM_INSECURE", "NETHSM_ADMINISTRATOR",
		"NETHSM_ADMINISTRATOR_PIN_SOURCE", "NETHSM_BACKUP_USER", "NETHSM_BACKUP_PIN_SOURCE", "SERVICE_HOST", "SERVICE_PORT",
		"SERVICE_PORT_HTTPS", "PORT", "PORT_443_TCP", "PORT_443_TCP_PROTO", "BROKER_SERVICE_HOST"} {
		environ = append(environ, "NOTATION_HSM_"+name+"=x")
	}
	if err := checkEnvironment(environ); err != nil {
		t.Error(err)
	}
}

// TestEnvironmentChecked refuses to resolve a key with an unknown variable set.
func TestEnvironmentChecked(t *testing.T) {
	configure(t, "")
	t.Setenv("NOTATION_HSM_PIN_VALUE", "1234")
	if _, err := Resolve("pkcs11:object=release", nil, PluginConfig); !failure.Is(err, failure.Invalid) ||
		!strings.Contains(err.Error(), "NOTATION_HSM_PIN_VALUE") {
		t.Error(err)
	}
}
