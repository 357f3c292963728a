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

// CheckFiles verifies that only root and the current user, who runs containerd, can change the files that decide which
// images a node runs: program, the trust directory, registry hosts, credentials and their helpers, verification
// plugins, and the folders above the state directory. The state directory, and what it remembers about tags, may belong
// to the user id owner, which the verifier runs as. An error of kind Denied names what others can change.
//
// It is called at the installation and each time that the verifier runs, before the process is confined.
func (n Node) CheckFiles(program string, owner int) error {
	named := slices.DeleteFunc([]string{program, n.TrustDir, n.HostsDir, n.AuthFile},
		func(path string) bool { return path == "" })
	if err := checkTrees(named); err != nil {
		return err
	}
	// The files that these name are read only after nobody else can have written the names.
	if err := checkTrees(slices.Concat(hostFiles(n.HostsDir), n.programPaths())); err != nil {
		return err
	}
	if err := ownership.Check(filepath.Dir(n.StateDir), os.Geteuid()); err != nil {
		return err
	}
	if err := ownership.Check(n.StateDir, os.Geteuid(), owner); err != nil {
		return err
	}
	if err := ownership.Check(n.LogFile(), os.Geteuid(), owner); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Whoever can change what is remembered can make the node forget that a tag went back.
	if err := ownership.CheckTree(n.tagsDir(), os.Geteuid(), owner); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// checkTrees verifies that only root and the current user can change the files and folders, and everything below them.
func checkTrees(paths []string) error {
	for _, path := range paths {
		if err := ownership.CheckTree(path, os.Geteuid()); err != nil {
			return err
		}
	}
	return nil
}

// hostFiles lists the certificates and keys that exist and that the hosts.toml files in a folder of registry hosts
// name, inside or outside of that folder. It ignores files that it cannot parse: containerd's library reads them before
// a pull, and fails.
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
				files = append(append(files, collectStrings(host["ca"])...), collectStrings(host["client"])...)
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

// collectStrings returns the strings in a value that is a string, a list of strings or a list of such lists, except
// empty ones.
func collectStrings(value any) (found []string) {
	switch value := value.(type) {
	case string:
		if value != "" {
			return []string{value}
		}
	case []any:
		for _, v := range value {
			found = append(found, collectStrings(v)...)
		}
	}
	return found
}

// programPaths returns the programs that the verifier may start: credential helpers and listed verification plugins. It
// leaves out those that are not installed; an image that needs one is refused.
func (n Node) programPaths() []string {
	programs := n.helperPaths()
	if len(n.VerificationPlugins) > 0 {
		dir.UserConfigDir = n.TrustDir // as in Open: plugins are below the trust directory
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

// helperPaths returns the installed credential helpers that the auth file names. If one is missing, or if the file
// cannot be parsed, looking up credentials fails later.
func (n Node) helperPaths() (programs []string) {
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
