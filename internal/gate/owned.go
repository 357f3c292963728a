package gate

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/notaryproject/notation-go/dir"
	"github.com/pelletier/go-toml/v2"

	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// CheckFiles verifies that nobody but root, and the user who runs containerd if that is another one, can change what
// decides which images a node runs: program, the trust directory, registry hosts, credentials with the helpers that
// they name, verification plugins, and the folder above the state directory. The state directory is of user owner, as
// whom the verifier runs. The error is of kind Denied and names what others can change.
//
// It is called when the verifier is installed and each time that it runs, before it gives up root's rights.
func (n Node) CheckFiles(program string, owner int) error {
	named := slices.DeleteFunc([]string{program, n.TrustDir, n.HostsDir, n.AuthFile},
		func(path string) bool { return path == "" })
	if err := checkTrees(named); err != nil {
		return err
	}
	// What those name in turn is read only now that nobody else can have written it.
	if err := checkTrees(slices.Concat(hostFiles(n.HostsDir), n.programs())); err != nil {
		return err
	}
	if err := ownership.Check(filepath.Dir(n.StateDir), os.Geteuid()); err != nil {
		return err
	}
	if err := ownership.Check(n.StateDir, os.Geteuid(), owner); err != nil {
		return err
	}
	if err := ownership.Check(n.LogFile(), os.Geteuid(), owner); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func checkTrees(paths []string) error {
	for _, path := range paths {
		if err := ownership.CheckTree(path, os.Geteuid()); err != nil {
			return err
		}
	}
	return nil
}

// hostFiles lists the certificates and keys that the hosts.toml files in a folder of registry hosts name, as far as
// they exist: they need not be in that folder. What can't be read or understood is left to the library that reads these
// files before a pull, which fails then.
func hostFiles(folder string) (files []string) {
	if folder == "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(folder, "*", "hosts.toml")) // the pattern is valid
	for _, file := range found {
		var content map[string]any
		data, err := os.ReadFile(file)
		if err != nil || toml.Unmarshal(data, &content) != nil {
			continue
		}
		sections := []any{content}
		if hosts, ok := content["host"].(map[string]any); ok {
			for _, host := range hosts {
				sections = append(sections, host)
			}
		}
		for _, section := range sections {
			if host, ok := section.(map[string]any); ok {
				files = append(append(files, texts(host["ca"])...), texts(host["client"])...)
			}
		}
		for i, path := range files {
			if !filepath.IsAbs(path) {
				files[i] = filepath.Join(filepath.Dir(file), path)
			}
		}
	}
	return slices.DeleteFunc(files, func(path string) bool {
		_, err := os.Lstat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
}

// texts returns a text, or all that are in a list, or in lists in that list, except empty ones.
func texts(value any) (found []string) {
	switch value := value.(type) {
	case string:
		if value != "" {
			return []string{value}
		}
	case []any:
		for _, v := range value {
			found = append(found, texts(v)...)
		}
	}
	return found
}

// programs returns all that the verifier may start: credential helpers, and the verification plugins that the operator
// lists. What is not installed is left out; it is refused where it is needed.
func (n Node) programs() []string {
	programs := n.helpers()
	if len(n.VerificationPlugins) > 0 {
		dir.UserConfigDir = n.TrustDir // as Open has it: plugins are below the trust directory
	}
	for _, name := range n.VerificationPlugins {
		path, err := pluginPath(name)
		if err != nil || !pluginName.MatchString(name) {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			programs = append(programs, path)
		}
	}
	return programs
}

// helpers returns the programs of the credential helpers that the auth file names, as far as they are installed. Where
// one is missing, or the file can't be read or understood, looking up the credentials fails.
func (n Node) helpers() (programs []string) {
	var content struct {
		Helpers map[string]string `json:"credHelpers"`
	}
	data, err := os.ReadFile(n.AuthFile)
	if err != nil || json.Unmarshal(data, &content) != nil {
		return nil
	}
	for _, name := range content.Helpers {
		if program, err := exec.LookPath("docker-credential-" + name); err == nil {
			programs = append(programs, program)
		}
	}
	return programs
}
