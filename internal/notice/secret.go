package notice

import (
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// credentials are those of a mail server.
type credentials struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"`
}

// readCredentials reads a file with credentials, in YAML. Errors have no part of its content.
func readCredentials(path string) (c credentials, err error) {
	data, err := ownership.ReadSecret(path)
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
