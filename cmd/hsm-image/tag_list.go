package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

func tagListCommand(o *tagOptions) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list REPO",
		Short:   "List the signed tags of a repository",
		Example: `  hsm-image tag list registry.example.com/team/app`,
		Args:    cli.Exactly(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		return o.withRepository(name, func(r *tags.Repository) error {
			v, _, err := r.View(c.Context(), false)
			if err != nil {
				return err
			}
			list, err := v.List(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(c.OutOrStdout(), append([]tuf.Target{}, list...))
			}
			rows := make([][]string, len(list))
			for i, t := range list {
				rows[i] = []string{t.Tag, t.Digest.String(), t.Role}
			}
			return cli.PrintTable(c.OutOrStdout(), []string{"TAG", "DIGEST", "ROLE"}, rows)
		})
	}
	return c
}

func tagShowCommand(o *tagOptions) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "show REPO:TAG",
		Short:   "Show which image a tag is, and who signed it",
		Example: `  hsm-image tag show registry.example.com/team/app:v1`,
		Args:    cli.Exactly(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		n, err := parseTag(args[0], false)
		if err != nil {
			return err
		}
		return o.withRepository(n.repository, func(r *tags.Repository) error {
			v, _, err := r.View(c.Context(), false)
			if err != nil {
				return err
			}
			t, err := v.Resolve(c.Context(), n.tag)
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(c.OutOrStdout(), t)
			}
			return cli.PrintTable(c.OutOrStdout(), []string{n.repository + ":" + n.tag}, [][]string{
				{"  digest", t.Digest.String()}, {"  size", strconv.FormatInt(t.Size, 10)}, {"  signed by role", t.Role}})
		})
	}
	return c
}

func tagStatusCommand(o *tagOptions) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status REPO",
		Short: "Show who signs the tags of a repository, versions, expiry, and what waits",
		Example: `  hsm-image tag status registry.example.com/team/app
  hsm-image tag status registry.example.com/team/app --json`,
		Args: cli.Exactly(1),
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		return o.withRepository(name, func(r *tags.Repository) error {
			s, err := r.Status(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return cli.PrintJSON(c.OutOrStdout(), s)
			}
			return printTagStatus(c, s)
		})
	}
	return c
}

// printTagStatus prints the roles, and then what waits.
func printTagStatus(c *cobra.Command, s *tags.Status) error {
	if err := cli.PrintTable(c.OutOrStdout(), roleHeader, roleRows(s.Roles)); err != nil {
		return err
	}
	for _, p := range s.Proposals {
		fmt.Fprintf(c.OutOrStdout(), "proposed: %s (%s)\n", strings.Join(p.Roles, ", "), p.Tag)
	}
	for _, why := range s.Held {
		fmt.Fprintf(c.OutOrStdout(), "not published: %s\n", why)
	}
	for _, why := range s.Refused {
		fmt.Fprintf(c.OutOrStdout(), "refused: %s\n", why)
	}
	return nil
}

var roleHeader = []string{"ROLE", "VERSION", "EXPIRES", "KEYS", "TAGS", "PATHS"}

// roleRows returns a row for each role. Keys are shown by the first twelve digits of their ids.
func roleRows(roles []tuf.RoleInfo) (rows [][]string) {
	for _, r := range roles {
		version, expires, listed := "-", "-", "-"
		if r.Version > 0 {
			version, expires = strconv.FormatInt(r.Version, 10), r.Expires.UTC().Format(time.RFC3339)
			if time.Now().After(r.Expires) {
				expires += " (expired)"
			}
		}
		if len(r.Paths) > 0 {
			listed = strconv.Itoa(r.Tags)
		}
		rows = append(rows, []string{r.Name, version, expires, fmt.Sprintf("%d of %s", r.Threshold, shortIDs(r.Keys)), listed,
			cli.OrDash(strings.Join(r.Paths, " "))})
	}
	return rows
}

func shortIDs(ids []string) string {
	short := make([]string, len(ids))
	for i, id := range ids {
		short[i] = id[:min(len(id), 12)]
	}
	return strings.Join(short, " ")
}

func tagExportCommand(o *tagOptions) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:   "export REPO --to DIR",
		Short: "Write the signed metadata into a folder, as any TUF client reads them",
		Long: `Write the verified metadata of a repository to DIR/metadata, with all versions of the root. Any TUF client
reads them there, or from a web server that serves the folder. A target's path is a tag; its length
and SHA-256 are those of the image's manifest.`,
		Example: `  hsm-image tag export registry.example.com/team/app --to site`,
		Args:    cli.Exactly(1),
	}
	c.Flags().StringVar(&to, "to", "", "folder to write to")
	c.RunE = func(c *cobra.Command, args []string) error {
		if to == "" {
			return cli.Required(c, "to", "site")
		}
		name, err := parseRepository(args[0])
		if err != nil {
			return err
		}
		return o.withRepository(name, func(r *tags.Repository) error {
			v, err := r.Export(c.Context(), to)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wrote version %d of the metadata of %s to %s\n", v.Versions().Timestamp, name, to)
			return nil
		})
	}
	return c
}
