package main

import (
	"context"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

// requestSettings are the settings of commands that ask a broker.
var requestSettings = append([]string{config.Broker, config.Timeout}, config.BrokerCredentials...)

func requestCommand() *cobra.Command {
	c := cli.Group("request", "Ask a team's broker for a signature before it is made, and see what became of it",
		requestCreateCommand(), requestWaitCommand(), requestShowCommand(), requestListCommand(), requestCancelCommand())
	c.Long = `A team's broker ('hsm-broker serve') signs what its policy allows. Where people have to agree first, or
a time lock runs, 'request create --wait' waits for that; 'notation sign' then uses the grant.

The broker is named by NOTATION_HSM_BROKER=https://HOST[:PORT] or the config file. The exit code is 0
if the request is approved or signed, 3 if it was rejected or cancelled, 4 if there is no such request,
and 5 if it still waits, has expired, or the broker does not answer.`
	return c
}

// An asker makes calls to the broker that the settings name.
type asker struct {
	backend  *remote.Backend
	settings *config.Settings
}

// ask runs do with an asker for a key, or for "broker:".
func ask(c *cobra.Command, reference string, given map[string]string,
	do func(context.Context, asker) error) error {
	s, err := config.Resolve(reference, given, config.Flags)
	if err != nil {
		return err
	}
	if strings.TrimPrefix(s.Broker, "unix:") == "" {
		return failure.New(failure.Invalid, "no broker is named").WithHint("set NOTATION_HSM_BROKER=https://HOST[:PORT]")
	}
	backend := remote.New()
	defer backend.Close()
	return do(c.Context(), asker{backend, s})
}

// addWait adds the flag for the longest wait.
func addWait(c *cobra.Command, limit *time.Duration) {
	c.Flags().DurationVar(limit, "for", time.Hour, "how long to wait")
}

func requestWaitCommand() *cobra.Command {
	var limit time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:     "wait ID",
		Short:   "Wait until a request is approved, signed, or has ended otherwise",
		Example: "  notation-hsm request wait 01J9ZK3V7Q --for 30m",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, requestSettings...)
	addWait(c, &limit)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		return ask(c, config.BrokerScheme, given(), func(ctx context.Context, a asker) error {
			r, err := a.backend.WaitRequest(ctx, a.settings, args[0], limit)
			if err != nil {
				return err
			}
			return finish(c, r, asJSON)
		})
	}
	return c
}

func requestShowCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show ID",
		Short:   "Show a request; the exit code does not depend on its state",
		Example: "  notation-hsm request show 01J9ZK3V7Q",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, requestSettings...)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the proof that it is in the log")
	c.RunE = func(c *cobra.Command, args []string) error {
		return ask(c, config.BrokerScheme, given(), func(ctx context.Context, a asker) error {
			r, err := a.backend.Request(ctx, a.settings, args[0], 0)
			if err != nil {
				return err
			}
			return printRequest(c, r, asJSON)
		})
	}
	return c
}

func requestCancelCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "cancel ID",
		Short:   "Cancel a request of your own that is not signed",
		Example: "  notation-hsm request cancel 01J9ZK3V7Q",
		Args:    cli.Exactly(1),
	}
	given := cli.AddSettings(c, requestSettings...)
	c.RunE = func(c *cobra.Command, args []string) error {
		return ask(c, config.BrokerScheme, given(), func(ctx context.Context, a asker) error {
			r, err := a.backend.CancelRequest(ctx, a.settings, args[0])
			if err != nil {
				return err
			}
			return printRequest(c, r, false)
		})
	}
	return c
}

func requestListCommand() *cobra.Command {
	var state, key, before string
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List requests, newest first",
		Example: "  notation-hsm request list --state pending",
		Args:    cli.Exactly(0),
	}
	given := cli.AddSettings(c, requestSettings...)
	c.Flags().StringVar(&state, "state", "", "only those in this state, such as pending")
	c.Flags().StringVar(&key, "key", "", "only those for this key, such as broker:release")
	c.Flags().StringVar(&before, "before", "", "only those older than the request with this ID")
	c.Flags().IntVar(&limit, "limit", 0, "at most so many (default: what the broker gives)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		reference := config.BrokerScheme
		if key != "" {
			reference = key
		}
		return ask(c, reference, given(), func(ctx context.Context, a asker) error {
			query := url.Values{}
			set := func(name, value string) {
				if value != "" {
					query.Set(name, value)
				}
			}
			set("state", state)
			set("before", before)
			if limit > 0 {
				set("limit", strconv.Itoa(limit))
			}
			if key != "" {
				name, err := remote.NameOf(a.settings.Key)
				if err != nil {
					return err
				}
				set("key", name)
			}
			page, err := a.backend.ListRequests(ctx, a.settings, query)
			if err != nil {
				return err
			}
			return printRequests(c, page, asJSON)
		})
	}
	return c
}

func printRequests(c *cobra.Command, page brokerapi.Requests, asJSON bool) error {
	if asJSON {
		return cli.PrintJSON(c.OutOrStdout(), page)
	}
	rows := remote.List(page)
	err := cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:])
	if err == nil && page.Before != "" {
		notifier(c)("older ones: --before %s", strings.ToValidUTF8(strconv.Quote(page.Before), ""))
	}
	return err
}
