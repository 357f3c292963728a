package sshkey

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/crypto/ssh/agent"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// errNoAgentKey says that there is no agent that has the key.
var errNoAgentKey = errors.New("no agent has its private key")

// askAgent has the agent sign. It fails with errNoAgentKey if there is no agent, or it does not have the key. It
// returns when ctx ends, since an agent waits for its user.
func (k *Key) askAgent(ctx context.Context, document []byte, namespace string) ([]byte, error) {
	if k.options.Agent == "" {
		return nil, fmt.Errorf("%w: SSH_AUTH_SOCK is not set", errNoAgentKey)
	}
	connection, err := new(net.Dialer).DialContext(ctx, "unix", k.options.Agent)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoAgentKey, err)
	}
	defer connection.Close()
	defer context.AfterFunc(ctx, func() { connection.Close() })()
	signers, err := agent.NewClient(connection).Signers()
	if err != nil {
		return nil, k.agentFailed(ctx, err)
	}
	for _, signer := range signers {
		if !bytes.Equal(signer.PublicKey().Marshal(), k.Public.Marshal()) {
			continue
		}
		signature, err := armour(signer, document, namespace)
		if err != nil {
			return nil, k.agentFailed(ctx, err)
		}
		return signature, nil
	}
	return nil, errNoAgentKey
}

func (k *Key) agentFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return failure.New(failure.Denied, "cannot sign with the SSH key %s: the agent failed: %w", k.path, err).
		WithHint("confirm the use of the key where the agent asks, or unset SSH_AUTH_SOCK to use the file")
}
