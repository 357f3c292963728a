package gate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/notaryproject/notation-go"
	notationplugin "github.com/notaryproject/notation-go/plugin"
	"github.com/notaryproject/notation-go/verifier"
	framework "github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
)

// plugins lists the names of the verification plugins that the operator allows. It implements Notation's plugin
// manager.
//
// A signature can name a plugin for its verification, and Notation's verifier runs the plugin for its metadata before
// it has authenticated the signature. Therefore a name in a signature is only compared with the list, and the path of
// the program is built from the operator's setting.
type plugins []string

var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkPlugins returns the list of plugins. It fails unless each is a file in Notation's folder of plugins, under a
// name without path elements.
func checkPlugins(names []string) (plugins, error) {
	for _, name := range names {
		if !pluginName.MatchString(name) {
			return nil, failure.New(failure.Invalid, "%q is not the name of a verification plugin", name).
				WithHint("use a name from 'notation plugin list'")
		}
		path, err := pluginPath(name)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, failure.New(fileKind(err), "cannot find the verification plugin %q: %w", name, err).
				WithHint("install the plugin, or remove it from the list")
		}
		if !info.Mode().IsRegular() {
			return nil, failure.New(failure.Invalid, "the verification plugin %s is not a regular file", path).
				WithHint("install the plugin, or remove it from the list")
		}
	}
	return names, nil
}

// pluginPath returns the path of a plugin's program.
func pluginPath(name string) (string, error) {
	folder, err := folders.NotationPlugins()
	return filepath.Join(folder, name, "notation-"+name), err
}

// Get returns a listed plugin, and fails for all others.
func (p plugins) Get(ctx context.Context, name string) (framework.Plugin, error) {
	i := slices.Index(p, name)
	if i < 0 {
		return nil, fmt.Errorf("%q is not a listed verification plugin", name)
	}
	path, err := pluginPath(p[i])
	if err != nil {
		return nil, err
	}
	return notationplugin.NewCLIPlugin(ctx, p[i], path)
}

// List returns the names of the listed plugins.
func (p plugins) List(context.Context) ([]string, error) { return p, nil }

// refusal returns why a signature is refused that names a verification plugin which is not listed, and "" for all other
// signatures.
func (p plugins) refusal(outcome *notation.VerificationOutcome) string {
	if outcome.EnvelopeContent == nil {
		return ""
	}
	attribute, err := outcome.EnvelopeContent.SignerInfo.ExtendedAttribute(verifier.HeaderVerificationPlugin)
	if err != nil {
		return ""
	}
	name, ok := attribute.Value.(string)
	switch {
	case !ok || slices.Contains(p, name):
		return ""
	case !pluginName.MatchString(name):
		return fmt.Sprintf("it names the verification plugin %.100q, which is not the name of a plugin", name)
	}
	return fmt.Sprintf("it names the verification plugin %q, which --verification-plugin does not list", name)
}
