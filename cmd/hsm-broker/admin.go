package main

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// adminSettings are the settings of commands that ask a running broker.
var adminSettings = append([]string{config.Broker, config.Timeout}, config.BrokerCredentials...)

// An asker makes calls to the broker that the settings name.
type asker struct {
	*remote.Backend
	settings *config.Settings
	given    map[string]string // flags for settings
	signer   *signer           // nil unless flags name a key of an approver
	expires  time.Time         // when the session ends; zero without one
}

// asking gives a command the settings of a broker, and has it ask there, in the name of the owner of a key if --ssh or
// --key names one.
func asking(c *cobra.Command, do func(context.Context, *cobra.Command, *asker, []string) error) *cobra.Command {
	return askingAs(c, "", "by which you sign in", do)
}

// askingAs is asking with another prefix of the flags that name a key of an approver, and what the key is for.
func askingAs(c *cobra.Command, prefix, what string, do func(context.Context, *cobra.Command, *asker,
	[]string) error) *cobra.Command {
	given := cli.AddSettings(c, append([]string{config.ModulePath, config.PINSource}, adminSettings...)...)
	key := addKey(c, prefix, what)
	c.RunE = func(c *cobra.Command, args []string) error {
		all := given()
		named := maps.Clone(all)
		maps.DeleteFunc(named, func(name, _ string) bool { return name == config.ModulePath || name == config.PINSource })
		s, err := config.Resolve(config.BrokerScheme, named, config.Flags)
		if err != nil {
			return err
		}
		if strings.TrimPrefix(s.Broker, "unix:") == "" {
			return failure.New(failure.Invalid, "no broker is named").
				WithHint("set NOTATION_HSM_BROKER=unix:PATH, with the socket of its config (listen.unix), or https://HOST")
		}
		if anonymous(s) && !key.given() {
			return failure.New(failure.Denied, "cannot call the broker at %s: nothing says who you are", s.Broker).
				WithHint("give --" + prefix + "ssh or --" + prefix + "key with a key that is enrolled, or set broker-token, or " +
					"broker-certificate and broker-key")
		}
		a := &asker{Backend: remote.New(), settings: s, given: all}
		defer a.Close()
		if key.given() {
			if a.signer, err = key.open(c.Context(), c, all); err != nil {
				return err
			}
			defer a.signer.close()
			if err := a.signIn(c.Context()); err != nil {
				return err
			}
		}
		return do(c.Context(), c, a, args)
	}
	return c
}

// addJSON adds the flag for output that programs read.
func addJSON(c *cobra.Command) *cobra.Command {
	c.Flags().Bool("json", false, "print JSON")
	return c
}

// asJSON reports whether a command writes JSON.
func asJSON(c *cobra.Command) bool {
	is, err := c.Flags().GetBool("json")
	return err == nil && is
}

// printChange says what became of a change.
func printChange(c *cobra.Command, r brokerapi.Request, inForce string) error {
	if asJSON(c) {
		return cli.PrintJSON(c.OutOrStdout(), r)
	}
	if r.State == brokerapi.Signed {
		fmt.Fprintf(c.OutOrStdout(), "%s (rule %s, request %s)\n", inForce, r.Rule, r.ID)
		return nil
	}
	fmt.Fprintf(c.OutOrStdout(), "request %s is %s: %s\n", r.ID, r.State, r.Reason)
	if r.URL != "" {
		fmt.Fprintln(c.OutOrStdout(), r.URL)
	}
	return nil
}

func policyApplyCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use:   "apply FILE",
		Short: "Propose a policy to a running broker, under the rules for modify of the policy in force",
		Long: `Propose a policy to a running broker. The rules for modify of the policy in force decide who may change
it. A policy counts once it is in the log, under a signed checkpoint; the file that the config names is
read only when the broker starts with an empty log.`,
		Example: "  hsm-broker policy apply policy.yaml",
		Args:    cli.Exactly(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		if _, err := readPolicy(args[0]); err != nil {
			return err
		}
		data, err := bound.ReadFile(args[0], policy.MaxFile)
		if err != nil {
			return err
		}
		r, err := a.ProposePolicy(ctx, a.settings, data)
		if err != nil {
			return err
		}
		return printChange(c, r, "the policy "+r.Policy+" is in force")
	}))
}

func policyShowCommand() *cobra.Command {
	return asking(&cobra.Command{
		Use: "show", Short: "Print the policy in force of a running broker", Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		p, err := a.Policy(ctx, a.settings)
		if err != nil {
			return err
		}
		fmt.Fprint(c.OutOrStdout(), p.Policy)
		return nil
	})
}

func configCommand() *cobra.Command {
	apply := addJSON(asking(&cobra.Command{
		Use:   "apply",
		Short: "Put into force the config that a running broker was started with",
		Long: `A broker that is started with other modules, callers, administrators, registries or another log key than
those in force signs nothing until they are put into force, under the rules for modify of the policy.`,
		Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		r, err := a.Propose(ctx, a.settings, brokerapi.ConfigPath)
		if err != nil {
			return err
		}
		return printChange(c, r, "the config is in force")
	}))
	return cli.Group("config", "Change the config that is in force", apply)
}

func keyCommand() *cobra.Command {
	list := addJSON(asking(&cobra.Command{
		Use: "list", Short: "List the keys of a running broker, and their state", Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		all, err := a.Keys(ctx, a.settings)
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), all)
		}
		var rows [][]string
		for _, k := range all.Keys {
			var formats []string
			for _, format := range k.Formats {
				formats = append(formats, string(format))
			}
			rows = append(rows, []string{k.Name, k.Spec, k.State, strings.Join(formats, ", ")})
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"KEY", "SPEC", "STATE", "FORMATS"}, rows)
	}))
	change := func(use, short, done string) *cobra.Command {
		return addJSON(asking(&cobra.Command{Use: use + " KEY", Short: short, Args: cli.Exactly(1)},
			func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
				r, err := a.Propose(ctx, a.settings, brokerapi.KeyPath(args[0])+"/"+use)
				if err != nil {
					return err
				}
				return printChange(c, r, fmt.Sprintf("the key %q is %s", args[0], done))
			}))
	}
	return cli.Group("key", "Show, block and unblock the keys of a running broker", list,
		change("block", "Have a key sign nothing, at once", "blocked"),
		change("unblock", "Let a blocked key sign again", "not blocked any more"))
}

func newEpochCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use:   "new-epoch",
		Short: "Begin a new epoch of the log after entries were lost",
		Long: `A broker whose database is older than its checkpoint file signs nothing. If the missing entries cannot be
restored, a new epoch of the log begins, under the rules for modify of the policy: all open requests
expire, and the log goes on under another name, so that everyone sees that entries were lost.`,
		Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		r, err := a.Propose(ctx, a.settings, brokerapi.EpochPath)
		if err != nil {
			return err
		}
		return printChange(c, r, "a new epoch of the log has begun")
	}))
}
