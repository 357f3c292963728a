package main

import (
	"crypto/rand"
	"regexp"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// firstApprover is a person whom init writes into the file with the first approvers.
type firstApprover struct {
	Name    string
	SSH     string // a line of authorized_keys
	Key     string // PEM, indented
	Passkey string // sha256:HEX of Token
	Token   string // in the link, which init prints
}

// Link returns where the person registers a passkey; "" for one with a key.
func (a *firstApprover) Link(url string) string {
	if a.Token == "" {
		return ""
	}
	return strings.TrimSuffix(url, "/") + brokerapi.EnrolPath(a.Token)
}

var personName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$`)

// readFirst reads a value of --approver: NAME for a passkey, or NAME=FILE with the file of a public key.
func readFirst(value string) (firstApprover, error) {
	name, path, hasFile := strings.Cut(value, "=")
	a := firstApprover{Name: name}
	if !personName.MatchString(name) {
		return a, failure.New(failure.Invalid, "%.100q is not a name of a person", name).
			WithHint("write --approver NAME, or NAME=FILE with the file of an SSH or PEM public key")
	}
	if !hasFile {
		a.Token = rand.Text()
		a.Passkey = approval.Hash([]byte(a.Token))
		return a, nil
	}
	data, err := bound.ReadFile(path, 16<<10)
	if err != nil {
		return a, failure.New(failure.FileKind(err), "cannot read the public key of %s: %w", name, err).
			WithHint("name a file with an SSH public key, or with a PEM public key")
	}
	text, kind := strings.TrimSpace(string(data)), approval.SSH
	if strings.HasPrefix(text, "-----BEGIN") {
		kind = approval.Key
	}
	if _, err := brokerfile.PublicKey(kind, []byte(text+"\n")); err != nil {
		return a, failure.New(failure.Invalid, "cannot read the public key of %s in %s: %w", name, path, err).
			WithHint("name a file with an SSH public key, or with a PEM public key")
	}
	if kind == approval.Key {
		a.Key = "    " + strings.ReplaceAll(text, "\n", "\n    ")
		return a, nil
	}
	fields := strings.Fields(text) // a comment can have any character
	a.SSH = strings.Join(fields[:min(2, len(fields))], " ")
	return a, nil
}
