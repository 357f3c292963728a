package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/approver"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func approverCommand() *cobra.Command {
	return cli.Group("approver", "List, add, invite, remove, export and forget those who approve, and what they sign with",
		approverListCommand(), approverAddCommand(), approverInviteCommand(), approverRemoveCommand(),
		approverExportCommand(), approverForgetCommand())
}

func approverListCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use: "list", Short: "List the people whom the policy names, and their credentials", Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		all, err := a.Approvers(ctx, a.settings)
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), brokerapi.Approvers{Approvers: all})
		}
		var rows [][]string
		for _, one := range all {
			groups := cli.OrDash(strings.Join(one.Groups, ", "))
			if len(one.Credentials) == 0 {
				rows = append(rows, []string{one.Name, groups, "-", "-", "-", "-"})
			}
			for _, credential := range one.Credentials {
				rows = append(rows, []string{one.Name, groups, credential.Kind, credential.Label,
					credential.Enrolled.UTC().Format(time.RFC3339), credential.ID})
			}
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"PERSON", "GROUPS", "KIND", "FINGERPRINT", "ENROLLED",
			"CREDENTIAL"}, rows)
	}))
}

func approverAddCommand() *cobra.Command {
	var added *keyFlags
	var public string
	c := addJSON(askingAs(&cobra.Command{
		Use:   "add PERSON",
		Short: "Propose a key that a person signs approvals with",
		Long: `Propose a key that a person of the policy signs approvals with: an SSH key, or a key in a module. The
person runs this where the key is: it signs, which shows that the person has it. The rules for modify of
the policy decide who must agree. For a passkey see 'hsm-broker approver invite'.`,
		Example: `  hsm-broker approver add alice --ssh ~/.ssh/id_ed25519.pub
  hsm-broker approver add dave --key 'pkcs11:token=dave;object=approve'`,
		Args: cli.Exactly(1),
	}, "as-", "by which you sign in, enrolled already",
		func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
			broker := a.settings.Broker
			if public != "" {
				broker = public
			}
			if !strings.HasPrefix(broker, "https://") {
				return cli.Required(c, "public-url", "https://broker.example.com, as public-url in the broker's config")
			}
			key, err := added.open(ctx, c, a.given)
			if err != nil {
				return err
			}
			defer key.close()
			possession, err := key.login(ctx, broker)
			if err != nil {
				return err
			}
			r, err := a.Enrol(ctx, a.settings, brokerapi.NewCredential{Person: args[0], Kind: string(key.kind),
				Public: key.public, Possession: possession})
			if err != nil {
				return err
			}
			text := approver.CredentialText(&approval.Credential{Kind: key.kind, Public: key.public})
			return printChange(c, r, fmt.Sprintf("%s signs approvals with the %s", args[0], text))
		}))
	added = addKey(c, "", "to be added")
	c.Flags().StringVar(&public, "public-url", "", "URL of the broker in its config; needed with its Unix socket")
	return c
}

func approverInviteCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use:   "invite PERSON",
		Short: "Print a link by which a person can enrol a passkey on the broker's page, once",
		Long: `Print a link by which a person of the policy can enrol a passkey on the broker's page, once. Whoever has
the link can do so: give it to the person alone. The rules for modify of the policy decide who must agree
to the passkey.`,
		Args: cli.Exactly(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		i, err := a.Invite(ctx, a.settings, args[0])
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), i)
		}
		fmt.Fprintln(c.OutOrStdout(), i.URL)
		fmt.Fprintf(c.ErrOrStderr(), "it can be used once, until %s\n", i.Expires.UTC().Format(time.RFC3339))
		return nil
	}))
}

func approverRemoveCommand() *cobra.Command {
	var credential string
	c := asking(&cobra.Command{
		Use:   "remove PERSON | --credential ID",
		Short: "Propose to remove a credential, or all of a person; approvals with it stop counting once it is removed",
		Example: `  hsm-broker approver remove alice
  hsm-broker approver remove --credential sha256:...`,
		Args: cli.AtMost(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		if (credential == "") == (len(args) == 0) {
			return cli.Usage(c, failure.New(failure.Invalid, "name a person, or a credential").
				WithHint("as in: hsm-broker approver remove alice"))
		}
		remove := []string{credential}
		if len(args) > 0 {
			var err error
			if remove, err = a.credentialsOf(ctx, args[0]); err != nil {
				return err
			}
		}
		for _, id := range remove {
			r, err := a.Propose(ctx, a.settings, brokerapi.CredentialPath(id)+"/remove")
			if err != nil {
				return err
			}
			if err := printChange(c, r, fmt.Sprintf("the credential %s is removed", id)); err != nil {
				return err
			}
		}
		return nil
	})
	c.Flags().StringVar(&credential, "credential", "", "ID of the credential, as 'hsm-broker approver list' shows it")
	return c
}

func approverExportCommand() *cobra.Command {
	var removed bool
	c := asking(&cobra.Command{
		Use:   "export",
		Short: "Print who approves with their credentials as JSON, for the trust manifests of those who verify",
		Long: `Print those whose credentials are enrolled as JSON: names, ids and the documents of the credentials.
'notation-hsm trust approver add --from FILE' reads it. Compare the fingerprints with the people before you
trust them: the broker says whose they are. Somebody whom the policy does not have any more has the id for
a name.`,
		Example: `  hsm-broker approver export > approvers.json
  hsm-broker approver export --removed > approvers-of-all-times.json`,
		Args: cli.Exactly(0),
	}, func(ctx context.Context, c *cobra.Command, a *asker, _ []string) error {
		all, err := a.Export(ctx, a.settings, removed)
		if err != nil {
			return err
		}
		return cli.PrintJSON(c.OutOrStdout(), all)
	})
	c.Flags().BoolVar(&removed, "removed", false,
		"with credentials that were removed: approvals that were given before go on verifying")
	return c
}

func approverForgetCommand() *cobra.Command {
	return addJSON(asking(&cobra.Command{
		Use:   "forget PERSON",
		Short: "Erase the name of a person who has left from the broker's database",
		Long: `Erase the name and the identities of a person who has left from the broker's database. The person is in no
group of the policy, and has no credentials any more. Requests then show the id of the person. The log,
approvals and bundles verify as before. For administrators.

The database is written anew, which needs as much room again; nothing is signed meanwhile. Backups and
copies of the policy keep the name: delete them yourself.`,
		Args: cli.Exactly(1),
	}, func(ctx context.Context, c *cobra.Command, a *asker, args []string) error {
		f, err := a.Forget(ctx, a.settings, args[0])
		if err != nil {
			return err
		}
		if asJSON(c) {
			return cli.PrintJSON(c.OutOrStdout(), f)
		}
		fmt.Fprintf(c.OutOrStdout(), "erased: %d documents; %d requests show the id instead of %s\n", f.Documents,
			f.Requests, args[0])
		return nil
	}))
}

// credentialsOf returns the IDs of the credentials of a person. It fails with NotFound if there is none.
func (a *asker) credentialsOf(ctx context.Context, person string) (ids []string, err error) {
	all, err := a.Approvers(ctx, a.settings)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		for _, credential := range one.Credentials {
			if one.Name == person {
				ids = append(ids, credential.ID)
			}
		}
	}
	if len(ids) == 0 {
		return nil, failure.New(failure.NotFound, "%q has no credentials", person).
			WithHint("see 'hsm-broker approver list'")
	}
	return ids, nil
}
