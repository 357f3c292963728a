package config

import (
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const environmentPrefix = "NOTATION_HSM_"

// Environment variables that are no settings.
const (
	pinVariable    = environmentPrefix + "PIN"
	configVariable = environmentPrefix + "CONFIG"
	logVariable    = environmentPrefix + "LOG"
)

// EnvironmentName returns the environment variable of a setting.
func EnvironmentName(setting string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

func nethsmEnvironment(name string) string { return EnvironmentName("nethsm-" + name) }

// environment returns the settings in the environment. It fails if there is an unknown variable of this program.
func environment() (map[string]string, error) {
	if err := checkEnvironment(os.Environ()); err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, name := range Names {
		if value := os.Getenv(EnvironmentName(name)); value != "" {
			values[name] = value
		}
	}
	if _, named := values[PINSource]; !named && os.Getenv(pinVariable) != "" {
		values[PINSource] = "env:" + pinVariable
	}
	return values, nil
}

// variables returns the names of the known environment variables, spelled as settings.
func variables() []string {
	known := append([]string{"pin", "config", "log", "ca-dir", "trust", "nethsm-" + PINSource}, Names...)
	for _, name := range nethsmOwn {
		known = append(known, "nethsm-"+name)
	}
	return known
}

// checkEnvironment refuses a variable of this program that is not known and not empty. Its value is not shown: it may
// be a PIN.
func checkEnvironment(environ []string) error {
	known := variables()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		rest, ours := strings.CutPrefix(name, environmentPrefix)
		setting := strings.ToLower(strings.ReplaceAll(rest, "_", "-"))
		if value == "" || !ours || ofKubernetes(name) ||
			slices.ContainsFunc(known, func(setting string) bool { return EnvironmentName(setting) == name }) {
			continue
		}
		hint := "unset it, or give it another name: those that begin with " + environmentPrefix + " are settings"
		if near := nearest(setting, known); looksLikePIN(setting) {
			hint = safePIN
		} else if near != "" {
			hint = "did you mean " + EnvironmentName(near) + "? If not, " + hint
		}
		return failure.New(failure.Invalid, "unknown environment variable %s", name).WithHint(hint)
	}
	return nil
}

// ofKubernetes reports whether Kubernetes sets a variable in every pod, for a Service whose name begins with
// notation-hsm.
func ofKubernetes(name string) bool {
	return regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$`).
		MatchString(name)
}
