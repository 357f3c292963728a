package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

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
	var idle time.Duration
	var confirm bool
	c := &cobra.Command{
		Use:   "agent",
		Short: "Hold a token for the programs of this user: log in once, and sign for them",
		Long: `Log in to a token once, and sign for the programs of this user through a socket that only this user
can reach. Set NOTATION_HSM_BROKER=unix:PATH for them, with the path that the agent says.

It asks for the PIN on the terminal, unless pin-source is set. SIGHUP, the lock of the user's session
and a suspend of the machine have the agent forget the PIN and log out; the next use of a key reads
the PIN again. SIGTERM ends it.`,
		Example: `  hsm-broker agent --module-path /usr/lib/softhsm/libsofthsm2.so --token signing`,
		Args:    noCommand,
	}
	given := cli.AddSettings(c, append(cli.TokenSettings, config.CertificateChain)...)
	addSocket(c, &socket, "notation-hsm/broker.sock in XDG_RUNTIME_DIR")
	c.Flags().StringVar(&formats, "formats", string(payload.Notation),
		"what the keys may sign, separated by commas: notation, dsse, cosign, x509, tuf; or layer-key, to decrypt")
	c.Flags().DurationVar(&idle, "idle", 0, "end after this time without a use of a key, such as 8h (default: never)")
	c.Flags().BoolVar(&confirm, "confirm", false,
		"ask on the terminal, or by the program in SSH_ASKPASS, before each use of a key")
	c.RunE = func(c *cobra.Command, _ []string) error {
		allowed, err := payload.ParseFormats(formats)
		if err != nil {
			return cli.Usage(c, err)
		}
		if idle < 0 {
			return cli.Usage(c, failure.New(failure.Invalid, "--idle is negative").WithHint("as in: --idle 8h"))
		}
		if err := protect(); err != nil {
			return err
		}
		// A job that has no terminal would be stopped when it asks for the PIN, with all who wait for it.
		signal.Ignore(syscall.SIGTTIN, syscall.SIGTTOU)
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		return serve(ctx, c, socketPath(socket), agent.Options{Formats: allowed, Idle: idle}, confirm, given())
	}
	c.AddCommand(statusCommand(), lockCommand(), stopCommand(), clearCommand())
	return c
}

// noCommand refuses the name of a command that the agent does not have.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return cli.Usage(c, failure.New(failure.Invalid, "unknown command %q", args[0]))
}

// addSocket gives a command the flag --socket.
func addSocket(c *cobra.Command, socket *string, otherwise string) {
	c.Flags().StringVar(socket, "socket", "", "path of the agent's socket (default: "+otherwise+")")
}

// socketPath returns the path in a value of --socket, which may be as the agent prints it and NOTATION_HSM_BROKER has
// it.
func socketPath(value string) string { return strings.TrimPrefix(value, "unix:") }

// serve runs an agent. One that the service manager starts by its socket logs in at the first use of a key, so that a
// failure reaches the one who waits for the key; any other logs in first.
func serve(ctx context.Context, c *cobra.Command, path string, o agent.Options, confirm bool,
	given map[string]string) (err error) {
	service := agent.NewNotifier()
	listener, inherited, err := agent.Inherited()
	if err != nil {
		return err
	}
	if listener != nil && path != "" {
		return cli.Usage(c, failure.New(failure.Invalid, "--socket excludes the socket of the service manager").
			WithHint("set the path in the socket unit (ListenStream) alone"))
	}
	if o.Refusals, err = agent.NewRefusals(); err != nil {
		return err
	}
	var token *keystore.Reference
	if o.Open, token, err = opener(given, o.Refusals.Guard); err != nil {
		return err
	}
	o.Token = token.Key.String()
	if confirm {
		asking, err := agent.NewConfirmation(withoutPIN(token.PINSource))
		if err != nil {
			return err
		}
		o.Confirm = asking.Confirm
	}
	a := agent.New(o)
	defer a.Close()
	if listener == nil {
		if listener, inherited, err = unlock(ctx, a, path); err != nil {
			return err
		}
	}
	service.Notify("READY=1")
	defer service.Notify("STOPPING=1")
	fmt.Fprintf(c.OutOrStdout(), "listening on unix:%s\n", inherited)
	return errors.Join(a.Run(ctx, listener), a.Close())
}

// unlock reserves a socket, logs in, and listens.
func unlock(ctx context.Context, a *agent.Agent, path string) (net.Listener, string, error) {
	if path == "" {
		var err error
		if path, err = config.DefaultSocket(); err != nil {
			return nil, "", failure.From(err).WithHint("name the socket with --socket, in a folder that is yours alone")
		}
	}
	socket, err := agent.Reserve(path)
	if err != nil {
		return nil, "", err
	}
	if err := a.Unlock(ctx); err != nil {
		socket.Release()
		return nil, "", err
	}
	listener, err := socket.Listen()
	if err != nil {
		socket.Release()
		return nil, "", err
	}
	return listener, socket.Path, nil
}

// opener returns a function that opens the token that flags name, in a keystore of its own, and the token. It fails
// if the flags name none.
func opener(given map[string]string, guard pin.Guard) (func() (*keystore.Keystore, *keystore.Reference, error),
	*keystore.Reference, error) {
	open := func() (*keystore.Keystore, *keystore.Reference, error) {
		ks := backends.GuardedService(guard)
		token, err := ks.Direct().Resolve("", given, config.Flags)
		if err != nil {
			return nil, nil, err
		}
		if token.PINSource == "" && token.PIN == "" {
			token.PINSource = pin.Prompt
		}
		return ks, token, nil
	}
	ks, token, err := open()
	if err != nil {
		return nil, nil, err
	}
	return open, token, ks.Close()
}

// withoutPIN returns the environment for a program that asks a person: without the variable that the PIN comes from,
// and without settings, since a URI may have the PIN.
func withoutPIN(source string) []string {
	return slices.DeleteFunc(pin.Environ(source), func(variable string) bool {
		return strings.HasPrefix(variable, config.EnvironmentName(""))
	})
}
