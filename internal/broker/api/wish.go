package api

import (
	"regexp"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// What a request beforehand can have at most. The broker keeps all of it.
const (
	maxMediaType   = 255               // characters
	maxAnnotations = 64 << 10          // bytes of their names and values
	maxExpiry      = 100 * 366 * 86400 // seconds
	maxReason      = 1000              // bytes
)

var digestFormat = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$`)

// checkWish fails for a request beforehand that no payload can fulfil.
func checkWish(n brokerapi.NewRequest) error {
	total := 0
	for name, value := range n.Artifact.Annotations {
		total += len(name) + len(value)
	}
	wrong := ""
	switch a := n.Artifact; {
	case !digestFormat.MatchString(a.Digest):
		wrong = "digest is not a SHA-256, SHA-384 or SHA-512 digest in lower case"
	case utf8.RuneCountInString(a.MediaType) > maxMediaType:
		wrong = "media_type is too long"
	case a.Size < 0:
		wrong = "size is negative"
	case total > maxAnnotations:
		wrong = "annotations are too long"
	case utf8.RuneCountInString(n.Rule) > maxName:
		wrong = "rule is too long"
	case len(n.Reason) > maxReason:
		wrong = "reason is too long"
	case utf8.RuneCountInString(n.Repository) > maxRepository:
		wrong = "repository is too long"
	case n.Expiry < 0 || n.Expiry > maxExpiry:
		wrong = "expiry is not between 0 and 100 years"
	}
	if wrong == "" {
		return nil
	}
	return failure.New(failure.Invalid, "cannot make the request: %s", wrong).WithHint("see the description of the API")
}
