package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/approver"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/remote"
)

func requestCommand() *cobra.Command {
	return cli.Group("request", "List, show, approve and reject what a running broker is asked for", requestListCommand(),
		requestShowCommand(), approveCommand(), rejectCommand(), withdrawCommand(), requestCancelCommand())
}

func requestListCommand() *cobra.Command {
	query := url.Values{}
	texts := map[string]*string{}
	var mine bool
	var limit int
	c := addJSON(asking(&cobra.Command{
		Use:   "list",
		Short: "List requests, newest first",
		Example: `  hsm-broker request list --state pending
  hsm-broker request list --mine --ssh ~/.ssh/id_ed25519`,
		Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		for name, value := range texts {
			if *value != "" {
				query.Set(name, *value)
			}
		}
		if mine {
			query.Set("mine", "true")
		}
		if limit > 0 {
			query.Set("limit", strconv.Itoa(limit))
		}
		page, err := a.ListRequests(ctx, a.settings, query)
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), page)
		}
		rows := remote.List(page)
		if err := cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:]); err != nil || page.Before == "" {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(), "older ones: --before %q\n", page.Before)
		return nil
	}))
	for name, flag := range map[string][2]string{
		"state":      {"state", "only those in this state, such as pending"},
		"key":        {"of-key", "only those for this key of the policy, such as release"},
		"repository": {"repository", "only those for images of this repository"},
		"digest":     {"digest", "only those for the artifact with this digest"},
		"before":     {"before", "only those older than the request with this ID"},
	} {
		texts[name] = c.Flags().String(flag[0], "", flag[1])
	}
	c.Flags().BoolVar(&mine, "mine", false, "only those that wait for your approval")
	c.Flags().IntVar(&limit, "limit", 0, "at most so many (default: what the broker gives)")
	return c
}

func requestShowCommand() *cobra.Command {
	var from sources
	c := addJSON(asking(&cobra.Command{
		Use:   "show ID",
		Short: "Show a request and who agreed to it, with the signatures verified",
		Long: `Show a request: first what the broker says of it, then what its statement says, which people sign, and
who has signed. The signatures are verified here, and the artifacts of a request that is open are fetched
from their registry.`,
		Args: cli.Exactly(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		r, err := a.Request(ctx, a.settings, args[0], 0)
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), r)
		}
		rows := remote.Describe(r)
		err = cli.PrintTable(c.OutOrStdout(), rows[0], rows[1:])
		if err != nil || r.Statement == "" || len(r.Needs)+len(r.Approvals) == 0 { // no person had to agree
			return err
		}
		seen, err := a.evidence(ctx, r.ID)
		if err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout())
		if r.State.Settled() && r.State != brokerapi.Approved { // nothing is decided any more, and its artifacts can be gone
			from.offline = true
		}
		return from.show(ctx, c, seen, r)
	}))
	from.add(c)
	return c
}

func requestCancelCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use: "cancel ID", Short: "Cancel a request of your own that is not signed", Args: cli.Exactly(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		r, err := a.CancelRequest(ctx, a.settings, args[0])
		if err != nil {
			return err
		}
		return printOutcome(c, r)
	}))
}

// printOutcome prints a request after something was decided about it.
func printOutcome(c *cobra.Command, r brokerapi.Request) error {
	if asJSON(c) {
		return cli.PrintJSON(c.OutOrStdout(), r)
	}
	text := fmt.Sprintf("request %s is %s", r.ID, r.State)
	if r.State == brokerapi.Signed && r.What != "" {
		text = fmt.Sprintf("request %s is in force: %s", r.ID, r.What)
	}
	if r.Reason != "" {
		text += ": " + r.Reason
	}
	_, err := fmt.Fprintln(c.OutOrStdout(), text)
	return err
}

// evidence returns a request as its evidence shows it.
func (a *asker) evidence(ctx context.Context, id string) (*approver.Seen, error) {
	e, err := a.Evidence(ctx, a.settings, id)
	if err != nil {
		return nil, err
	}
	broker := ""
	if strings.HasPrefix(a.settings.Broker, "https:") {
		broker = a.settings.Broker
	}
	return approver.Read(&e, id, broker)
}

// sources say where artifacts are looked at.
type sources struct {
	offline bool
	options registry.Options
}

func (s *sources) add(c *cobra.Command) {
	c.Flags().BoolVar(&s.offline, "offline", false, "do not look at the artifacts in their registry")
	c.Flags().BoolVar(&s.options.PlainHTTP, "plain-http", false, "use plain HTTP for the registry")
	c.Flags().StringVar(&s.options.AuthFile, "authfile", "",
		"file with credentials of registries (default: those of Notation, Podman and Docker)")
}

// show prints what the evidence says of a request, and what the registry says of its artifacts. r is what the broker
// says of it, of which only the person of a credential is shown.
func (s *sources) show(ctx context.Context, c *cobra.Command, seen *approver.Seen, r brokerapi.Request) error {
	tables := seen.Tables(r.Person)
	if len(seen.Statement.Predicate.Targets) > 0 && !s.offline {
		registries := registry.New(s.options)
		defer registries.Close()
		artifacts, err := seen.Fetch(ctx, registries)
		if err != nil {
			return errors.Join(printTables(c, tables), err)
		}
		for i := range artifacts {
			tables = slices.Insert(tables, 1+i, artifacts[i].Table())
		}
	}
	if err := printTables(c, tables); err != nil {
		return err
	}
	if len(seen.Statement.Predicate.Targets) > 0 && c.Flags().Changed("offline") {
		fmt.Fprintln(c.ErrOrStderr(), "warning: the artifacts were not looked at: --offline")
	}
	return nil
}
