package sshkey

import (
	"bytes"
	"context"
	"os/exec"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// runKeygen has ssh-keygen sign with a security key: OpenSSH alone knows how to ask one. It is the program of that name
// in PATH, and no setting names another.
func (k *Key) runKeygen(ctx context.Context, document []byte, namespace string) ([]byte, error) {
	var signature bytes.Buffer
	program := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-n", namespace, "-f", k.path)
	program.Stdin, program.Stdout, program.Stderr = bytes.NewReader(document), &signature, k.options.Messages
	program.WaitDelay = time.Second // it may leave its helper behind, which has its descriptors
	if err := program.Run(); err != nil {
		return nil, failure.New(failure.Denied, "cannot sign with the security key of %s: ssh-keygen failed: %w", k.path,
			err).
			WithHint("plug the security key in, and touch it when it blinks")
	}
	return signature.Bytes(), nil
}
