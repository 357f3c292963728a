package notice

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

const maxSecret = 4096 // bytes of a file with a secret

// readSecret reads a file with a secret. Only root and the user of this process may be able to change it, and others
// may not read it.
func readSecret(path string) ([]byte, error) {
	if err := ownership.Check(path, os.Geteuid()); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the secret: %w", err).WithHint("check the path")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, failure.New(failure.Denied, "other users can read %s (mode %04o)", path, mode).
			WithHint("run: chmod 600 " + path)
	}
	data, err := bound.ReadFile(path, maxSecret)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the secret: %w", err).
			WithHint("check the path and its permissions")
	}
	return data, nil
}

// credentials are those of a mail server.
type credentials struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"`
}

// readCredentials reads a file with credentials, in YAML. Errors have no part of its content.
func readCredentials(path string) (c credentials, err error) {
	data, err := readSecret(path)
	if err != nil {
		return c, err
	}
	err = yaml.Load(data, &c, yaml.WithKnownFields())
	if err != nil || c.Username == "" || c.Password == "" || strings.ContainsAny(c.Username+c.Password, "\r\n\x00") {
		return c, failure.New(failure.Invalid, "%s does not have a username and a password", path).
			WithHint("write the lines username: NAME and password: PASSWORD")
	}
	return c, nil
}

// mistakeOf returns the mistake that a setting cannot be used.
func mistakeOf(field string, err error) mistake {
	hint := "see the page on notices"
	var known *failure.Error
	if errors.As(err, &known) && known.Hint != "" {
		hint = known.Hint
	}
	return mistake{field, hint, fmt.Errorf("cannot be used: %w", err)}
}
