package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

func tagsAddCommand(manifest *string) *cobra.Command {
	var file string
	var stale time.Duration
	var replace bool
	c := &cobra.Command{
		Use:   "add REPOSITORY",
		Short: "Take the tags of a repository from its TUF metadata",
		Long: `Take the tags of a repository from its TUF metadata, which the keys of a root sign, and not from the
registry. 'hsm-image verify' and containerd's gate then refuse a tag that is not signed, or that
went back. --root is the file with the root's metadata, which 'hsm-image tag init' makes: any
version of it, from the repository's owner and not from the registry. Newer versions are found by
themselves. The change takes effect with 'notation-hsm trust export'.`,
		Example: `  notation-hsm trust tags add registry.example.com/team/app --root root.json
  notation-hsm trust tags add registry.example.com/team/app --root root.json --stale 72h`,
		Args: cli.Exactly(1),
	}
	c.Flags().StringVar(&file, "root", "", "file with the metadata of the root role (required)")
	c.Flags().DurationVar(&stale, "stale", 0,
		"how long the metadata that a verifier remembers count while the registry gives none (default: not at all)")
	c.Flags().BoolVar(&replace, "replace", false, "replace another root, or another --stale")
	c.RunE = func(c *cobra.Command, args []string) error {
		if file == "" {
			return cli.Required(c, "root", "root.json")
		}
		path, err := trust.Path(*manifest)
		if err != nil {
			return err
		}
		root, err := bound.ReadFile(file, maxRootFile)
		if err != nil {
			return failure.New(failure.FileKind(err), "cannot read the root: %w", err).
				WithHint("check the path and its permissions")
		}
		t, err := trust.AddTags(c.Context(), path, trust.Tags{Scope: args[0], Root: root, Stale: stale}, replace)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.ErrOrStderr(),
			"the tags of %s have the root of version %d, with %d of %d keys (%s)\nfingerprint to compare: %s\n"+
				"next: notation-hsm trust export\n",
			t.Scope, t.Version, t.Threshold, t.Keys, describeStale(t.Stale), t.Fingerprint)
		return nil
	}
	return c
}

const maxRootFile = 1 << 20 // bytes; trust has a limit of its own for what is in it

// describeStale returns how long remembered metadata count.
func describeStale(stale time.Duration) string {
	if stale == 0 {
		return "tags are refused while the registry gives no metadata"
	}
	return "remembered metadata count for " + trust.FormatStale(stale)
}

func tagsRemoveCommand(manifest *string) *cobra.Command {
	return &cobra.Command{
		Use:   "remove REPOSITORY",
		Short: "Take the tags of a repository from the registry again",
		Long: `Remove the root of a repository's tags: a tag then has the digest that the registry says. The change
takes effect with 'notation-hsm trust export'.`,
		Example: "  notation-hsm trust tags remove registry.example.com/team/app",
		Args:    cli.Exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := trust.Path(*manifest)
			if err != nil {
				return err
			}
			if err := trust.RemoveTags(c.Context(), path, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "the tags of %s have no root any more\nnext: notation-hsm trust export\n", args[0])
			return nil
		},
	}
}

func tagsListCommand(manifest *string) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the repositories whose tags have a root",
		Example: "  notation-hsm trust tags list",
		Args:    cli.Exactly(0),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := loadManifest(*manifest)
		if err != nil {
			return err
		}
		if asJSON {
			type entry struct {
				trust.Tags
				Stale int64 `json:"stale"` // seconds
			}
			entries := make([]entry, len(m.Tags))
			for i, t := range m.Tags {
				entries[i] = entry{t, int64(t.Stale / time.Second)}
			}
			return cli.PrintJSON(c.OutOrStdout(), entries)
		}
		var rows [][]string
		for _, t := range m.Tags {
			stale := ""
			if t.Stale > 0 {
				stale = trust.FormatStale(t.Stale)
			}
			rows = append(rows, []string{t.Scope, fmt.Sprint(t.Version), fmt.Sprintf("%d of %d", t.Threshold, t.Keys),
				cli.OrDash(stale), t.Until.Format("2006-01-02"), t.Fingerprint})
		}
		return cli.PrintTable(c.OutOrStdout(), []string{"SCOPE", "ROOT", "THRESHOLD", "STALE", "UNTIL", "FINGERPRINT"}, rows)
	}
	return c
}
