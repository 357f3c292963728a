package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/agent"
	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

func agentCommand() *cobra.Command {
	var socket, formats string
	var confirm bool
	c := &cobra.Command{
		Use:   "agent",
		Short: "Hold a token for the programs of this user: log in once, and sign for them",
		Long: `Log in to a token once, and sign for the programs of this user through a socket that only this user
can reach. Set NOTATION_HSM_BROKER=unix:PATH for them, with the path that the agent says.`,
		Example: `  hsm-broker agent --module-path /usr/lib/softhsm/libsofthsm2.so --token signing`,
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	c.Flags().StringVar(&socket, "socket", "", "path of the socket (default: notation-hsm/broker.sock in XDG_RUNTIME_DIR)")
	c.Flags().StringVar(&formats, "formats", string(payload.Notation),
		"what the keys may sign, separated by commas: notation, dsse, cosign, x509, tuf; or layer-key, to decrypt")
	c.Flags().BoolVar(&confirm, "confirm", false,
		"ask on the terminal, or by the program in SSH_ASKPASS, before each use of a key")
	c.RunE = func(c *cobra.Command, _ []string) error {
		allowed, err := payload.ParseFormats(formats)
		if err != nil {
			return cli.Usage(c, err)
		}
		if socket == "" {
			if socket, err = config.DefaultSocket(); err != nil {
				return err
			}
		}
		options := agent.Options{Formats: allowed, Open: opener(given())}
		if confirm {
			asking, err := agent.NewConfirmation()
			if err != nil {
				return err
			}
			options.Confirm = asking.Confirm
		}
		a := agent.New(options)
		defer a.Close()
		if err := a.Unlock(c.Context()); err != nil {
			return err
		}
		listener, err := listen(socket)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "listening on unix:%s\n", socket)
		return a.Serve(c.Context(), listener)
	}
	return c
}

// opener returns a function that opens the token that flags name, in a keystore of its own.
func opener(given map[string]string) func() (*keystore.Keystore, *keystore.Reference, error) {
	return func() (*keystore.Keystore, *keystore.Reference, error) {
		ks := backends.Service()
		token, err := ks.Direct().Resolve("", given, config.Flags)
		if err != nil {
			return nil, nil, err
		}
		if token.PINSource == "" && token.PIN == "" {
			token.PINSource = pin.Prompt
		}
		return ks, token, nil
	}
}

// listen listens to a socket that only this user can reach.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot make the folder of the socket: %w", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot listen to %s: %w", path, err)
	}
	return listener, nil
}
