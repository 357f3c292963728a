package brokerfile

import (
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v4"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// FirstApprover is a person of the file with the first approvers, with a public key, or with the link by which the
// person enrols a passkey.
type FirstApprover struct {
	Name       string
	Kind       approval.Kind
	Public     []byte // as approval.Credential has it; nil for a passkey
	Invitation string // sha256:HEX of the token in the link
}

// ceremony is the file with the first approvers. People review it before the broker starts for the first time, which
// enrols them without further approvals.
type ceremony struct {
	Version   int `yaml:"version"` // 1
	Approvers []struct {
		Name    string `yaml:"name"`    // in the policy
		SSH     string `yaml:"ssh"`     // public key, as a line of authorized_keys
		Key     string `yaml:"key"`     // PEM (PKIX) public key of a key in a module
		Passkey string `yaml:"passkey"` // sha256:HEX of the token in the link that 'hsm-broker init' has printed
	} `yaml:"approvers"`
}

// maxFirst is the largest number of first approvers.
const maxFirst = 1000

var tokenHash = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ReadApprovers reads the file with the first approvers. It fails with Invalid and all mistakes in it.
func ReadApprovers(path string) ([]FirstApprover, error) {
	data, err := bound.ReadFile(path, MaxFile)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the file with the first approvers: %w", err).
			WithHint("set approvers in the config file")
	}
	all, mistakes := parseApprovers(data)
	if len(mistakes) > 0 {
		return nil, failure.New(failure.Invalid, "the file with the first approvers, %s, has %d mistakes:\n%w", path,
			len(mistakes), mistakes).WithHint("see the page on approvals")
	}
	return all, nil
}

func parseApprovers(data []byte) (all []FirstApprover, mistakes Mistakes) {
	root, err := config.YAML(data, MaxFile)
	if err != nil {
		return nil, decodeMistakes(err)
	}
	if root == nil {
		return nil, Mistakes{{What: "it is empty", Hint: "list approvers"}}
	}
	var file ceremony
	for _, m := range config.Misnamed(root, &file) {
		mistakes = append(mistakes, Mistake(m))
	}
	if err := yaml.Load(data, &file, yaml.WithUniqueKeys()); err != nil {
		return nil, append(mistakes, decodeMistakes(err)...)
	}
	if file.Version != 1 {
		mistakes = append(mistakes, Mistake{What: fmt.Sprintf("version is %d", file.Version), Hint: "write version: 1"})
	}
	if len(file.Approvers) > maxFirst {
		return nil, append(mistakes, Mistake{What: fmt.Sprintf("it has more than %d approvers", maxFirst),
			Hint: "enrol the others later"})
	}
	seen := map[string]bool{}
	for i, one := range file.Approvers {
		refuse := func(hint, format string, args ...any) {
			mistakes = append(mistakes, Mistake{What: fmt.Sprintf("approvers[%d]: ", i) + fmt.Sprintf(format, args...),
				Hint: hint})
		}
		given := 0
		for _, text := range []string{one.SSH, one.Key, one.Passkey} {
			if text != "" {
				given++
			}
		}
		first := FirstApprover{Name: one.Name, Invitation: one.Passkey}
		switch {
		case one.Name == "":
			refuse("write the person's name in the policy", "it has no name")
			continue
		case given != 1:
			refuse("list the person once for each", "%s has %d of ssh, key and passkey", one.Name, given)
			continue
		case one.Passkey != "":
			if first.Kind = approval.Passkey; !tokenHash.MatchString(one.Passkey) {
				refuse("write what 'hsm-broker init' has printed", "%s has an invalid SHA-256 of a link", one.Name)
			}
		case one.SSH != "":
			first.Kind = approval.SSH
			first.Public, err = PublicKey(first.Kind, []byte(one.SSH))
		default:
			first.Kind = approval.Key
			first.Public, err = PublicKey(first.Kind, []byte(one.Key))
		}
		if err != nil {
			refuse("write an SSH public key, or a PEM public key", "%s: %v", one.Name, err)
			err = nil
		}
		id := string(first.Public) + first.Invitation
		if seen[id] {
			refuse("give each person a key of their own", "%s has the key or link of another one", one.Name)
		}
		seen[id] = true
		all = append(all, first)
	}
	return all, mistakes
}

// PublicKey reads a public key of a kind, as a line of authorized_keys or in PEM, and returns it as approval.Credential
// has it.
func PublicKey(kind approval.Kind, text []byte) ([]byte, error) {
	if kind == approval.SSH {
		key, _, _, rest, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			return nil, fmt.Errorf("cannot read the SSH public key: %w", err)
		}
		if len(rest) > 0 {
			return nil, errors.New("there is more than one SSH public key")
		}
		return key.Marshal(), approval.CheckPublic(kind, key.Marshal())
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
		return nil, errors.New("it is not one public key in PEM")
	}
	return block.Bytes, approval.CheckPublic(kind, block.Bytes)
}
