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

// plugins are the names of the verification plugins that the operator listed. It is Notation's plugin manager.
//
// A signature can name a plugin for its own verification, and Notation's verifier runs that plugin for its metadata
// before it knows whether anyone trusts the signature. So a name in a signature is only compared with the list. The
// path of the program is made of the operator's own word.
type plugins []string

var pluginName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// checkPlugins verifies that each listed plugin is installed under a plain name.
func checkPlugins(names []string) (plugins, error) {
	for _, name := range names {
		if !pluginName.MatchString(name) {
			return nil, failure.New(failure.Invalid, "%q is not the name of a verification plugin", name).
				WithHint("give the name of a plugin, as 'notation plugin list' has it")
		}
		path, err := pluginPath(name)
		if err != nil {
			return nil, err
		}
		if info, err := os.Stat(path); err != nil {
			return nil, failure.New(failure.Invalid, "cannot find the verification plugin %q: %w", name, err).
				WithHint("install the plugin there, or leave it out")
		} else if !info.Mode().IsRegular() {
			return nil, failure.New(failure.Invalid, "the verification plugin %s is not a regular file", path).
				WithHint("install the plugin there, or leave it out")
		}
	}
	return names, nil
}

func pluginPath(name string) (string, error) {
	folder, err := folders.NotationPlugins()
	return filepath.Join(folder, name, "notation-"+name), err
}

// Get returns a listed plugin.
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

// refusal says why a signature does not count that names a verification plugin that is not listed. It returns "" for
// any other.
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
	return fmt.Sprintf(
		"it names the verification plugin %q, and only those are run that the operator lists with --verification-plugin",
		name)
}
