package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/agent"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// runningSocket says where commands look for the agent without --socket.
const runningSocket = "NOTATION_HSM_BROKER, or else notation-hsm/broker.sock in XDG_RUNTIME_DIR"

func statusCommand() *cobra.Command {
	var socket string
	var asJSON bool
	c := &cobra.Command{Use: "status", Short: "Show what the agent holds, and since when", Args: cli.Exactly(0)}
	addSocket(c, &socket, runningSocket)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		state, err := ask(c.Context(), socket, (*remote.Backend).Agent)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.PrintJSON(c.OutOrStdout(), state)
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"AGENT", "STATE"}, rows(state))
	}
	return c
}

// rows returns what people read of an agent.
func rows(a brokerapi.Agent) [][]string {
	login := "none yet"
	switch {
	case a.Locked:
		login = "locked: the next use of a key logs in"
	case !a.Unlocked.IsZero():
		login = "since " + local(a.Unlocked)
	}
	formats := make([]string, 0, len(a.Formats))
	for _, format := range a.Formats {
		formats = append(formats, string(format))
	}
	confirm := "no"
	if a.Confirm {
		confirm = "asks a person for each use of a key"
	}
	ends := "never by itself"
	if a.IdleLeft != nil {
		ends = "in " + (time.Duration(*a.IdleLeft) * time.Second).String() + ", without a use of a key"
	}
	all := [][]string{
		{"token", a.Token}, {"login", login}, {"formats", strings.Join(formats, ", ")}, {"confirm", confirm},
		{"started", local(a.Started)}, {"uses", fmt.Sprint(a.Uses)}, {"ends", ends},
	}
	if r := a.Refused; r != nil {
		text := "not tried again since " + local(r.Time) + ": " + r.Reason
		if r.CKR != "" {
			text += " (" + r.CKR + ")"
		}
		all = append(all, []string{"PIN", text})
	}
	return all
}

func local(t time.Time) string { return t.Local().Format(time.DateTime) }

func lockCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use: "lock", Short: "Have the agent forget the PIN and log out; the next use of a key reads the PIN again",
		Args: cli.Exactly(0),
	}
	addSocket(c, &socket, runningSocket)
	c.RunE = func(c *cobra.Command, _ []string) error {
		_, err := ask(c.Context(), socket, (*remote.Backend).LockAgent)
		return err
	}
	return c
}

func stopCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use: "stop", Short: "End the agent, once the requests in flight are answered", Args: cli.Exactly(0),
	}
	addSocket(c, &socket, runningSocket)
	c.RunE = func(c *cobra.Command, _ []string) error {
		_, err := ask(c.Context(), socket, (*remote.Backend).StopAgent)
		return err
	}
	return c
}

// ask makes a request to the agent at a socket, or else at the one that the settings name.
func ask(ctx context.Context, socket string,
	do func(*remote.Backend, context.Context, *config.Settings) (brokerapi.Agent, error)) (brokerapi.Agent, error) {
	given := map[string]string{}
	if socket != "" {
		path, err := filepath.Abs(socketPath(socket))
		if err != nil {
			return brokerapi.Agent{}, err
		}
		given[config.Broker] = "unix:" + path
	}
	settings, err := config.Resolve(config.BrokerScheme, given, config.Flags)
	if err != nil {
		return brokerapi.Agent{}, err
	}
	backend := remote.New()
	defer backend.Close()
	return do(backend, ctx, settings)
}

func clearCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "clear [TOKEN]",
		Short: "Let a PIN be tried again that the token has refused",
		Long: `Let a PIN be tried again that the token has refused, also by an agent that runs. Most tokens lock
after few wrong PINs, so put the right PIN into its source first.

TOKEN is the label of the token or its URI. It is needed when several tokens have refused a PIN.`,
		Args: cli.AtMost(1),
	}
	addSocket(c, &socket, runningSocket)
	c.RunE = func(c *cobra.Command, args []string) error {
		refusals, err := agent.NewRefusals()
		if err != nil {
			return err
		}
		all, err := refusals.List()
		if err != nil {
			return err
		}
		running, failed := ask(c.Context(), socket, (*remote.Backend).Agent)
		asked := failed == nil && running.Refused != nil // also a PIN that a person typed, which is in no file
		if asked && !slices.ContainsFunc(all, func(r brokerapi.RefusedPIN) bool {
			return refusals.Same(r,
				*running.Refused)
		}) {
			all = append(all, *running.Refused)
		}
		chosen, err := choose(c, all, args)
		if err != nil || chosen == nil {
			return err
		}
		if err := refusals.Clear(*chosen); err != nil {
			return err
		}
		if asked && refusals.Same(*chosen, *running.Refused) {
			if _, err := ask(c.Context(), socket, (*remote.Backend).LockAgent); err != nil {
				return err
			}
		}
		fmt.Fprintf(c.OutOrStdout(), "the PIN of token %q can be tried again\n", chosen.Name)
		return nil
	}
	return c
}

// choose returns the refused PIN that the arguments name, or the only one; nil if there is none.
func choose(c *cobra.Command, all []brokerapi.RefusedPIN, args []string) (*brokerapi.RefusedPIN, error) {
	var names []string
	var found []brokerapi.RefusedPIN
	for _, r := range all {
		names = append(names, r.Token)
		if len(args) == 0 || args[0] == r.Name || args[0] == r.Token {
			found = append(found, r)
		}
	}
	switch {
	case len(all) == 0 && len(args) == 0:
		fmt.Fprintln(c.OutOrStdout(), "no token has refused a PIN")
		return nil, nil
	case len(found) == 1:
		return &found[0], nil
	case len(all) == 0:
		return nil, failure.New(failure.NotFound, "no token has refused a PIN").WithHint("nothing has to be cleared")
	case len(found) == 0:
		return nil, failure.New(failure.NotFound, "the token %q has refused no PIN", args[0]).
			WithHint("name one of: " + strings.Join(names, " "))
	}
	return nil, failure.New(failure.Conflict, "%d tokens have refused a PIN", len(found)).
		WithHint("name one of: " + strings.Join(names, " "))
}
