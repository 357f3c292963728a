package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/logflags"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// uses are the uses of a key: as the log has them, and as its module counted them.
type uses struct {
	Key      string `json:"key"`
	Signed   int64  `json:"signed"`            // signatures that the log has
	Intents  int64  `json:"intents"`           // uses that the log allowed: a module may have counted any
	Module   int64  `json:"module"`            // uses that the module counted, less those before the log
	Unlogged int64  `json:"unlogged"`          // uses that the log did not allow
	Missing  int64  `json:"missing"`           // signatures in the log that the module did not count
	Verdict  string `json:"verdict,omitempty"` // for people
}

// compare fills in what differs.
func (u *uses) compare() {
	u.Unlogged, u.Missing = max(0, u.Module-u.Intents), max(0, u.Signed-u.Module)
	switch {
	case u.Unlogged > 0:
		u.Verdict = fmt.Sprintf("%d uses are not in the log", u.Unlogged)
	case u.Missing > 0:
		u.Verdict = fmt.Sprintf("the module did not count %d signatures of the log", u.Missing)
	default:
		u.Verdict = "as in the log"
	}
}

func logReconcileCommand() *cobra.Command {
	var flags logflags.Flags
	var counts, baselines []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "reconcile DIR|URL",
		Short: "Compare how often a module used a key with the log",
		Long: `Verify a log, and compare it with what modules counted, key by key: a module that counted more uses than
the log allowed was used past the broker. Give the counter of each key, and with --baseline what it was
when the broker's log began. A NetHSM counts uses in 'operations' of GET /keys/KEY.

The command fails if a counter does not fit the log.`,
		Example: `  hsm-broker log reconcile /srv/log --key log.pem --origin broker.example.com/log \
    --count release=1242 --baseline release=200`,
		Args: cli.Exactly(1),
	}
	flags.Add(c)
	c.Flags().StringArrayVar(&counts, "count", nil, "KEY=N: the module's counter of a key; again for each key")
	c.Flags().StringArrayVar(&baselines, "baseline", nil, "KEY=N: this counter when the log began (default: 0)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		verifiers, err := flags.Verifiers(c)
		if err != nil {
			return err
		}
		keys, err := countsOf(c, counts, baselines)
		if err != nil {
			return err
		}
		if _, err = flags.Verify(c.Context(), args[0], verifiers, translog.Options{Each: countUses(keys)}); err != nil {
			return err
		}
		return reconcile(c, keys, asJSON)
	}
	return c
}

// countsOf returns the keys with what their modules counted.
func countsOf(c *cobra.Command, counts, baselines []string) (map[string]*uses, error) {
	if len(counts) == 0 {
		return nil, cli.Required(c, "count", "release=1242")
	}
	keys := map[string]*uses{}
	for _, text := range counts {
		name, n, err := parseCount(c, "count", text)
		if err != nil {
			return nil, err
		}
		if keys[name] != nil {
			return nil, cli.Usage(c, failure.New(failure.Invalid, "--count names the key %q twice", name))
		}
		keys[name] = &uses{Key: name, Module: n}
	}
	for _, text := range baselines {
		name, n, err := parseCount(c, "baseline", text)
		if err != nil {
			return nil, err
		}
		if keys[name] == nil || n > keys[name].Module {
			return nil, cli.Usage(c, failure.New(failure.Invalid, "--baseline %s: the key has no --count as high", text))
		}
		keys[name].Module -= n
	}
	return keys, nil
}

func parseCount(c *cobra.Command, flag, text string) (name string, n int64, err error) {
	name, digits, _ := strings.Cut(text, "=")
	n, err = strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || name == "" {
		return "", 0, cli.Usage(c, failure.New(failure.Invalid, "--%s %q is not KEY=N", flag, text).
			WithHint("as in: --"+flag+" release=1242"))
	}
	return name, n, nil
}

// countUses returns a function that counts the entries of keys.
func countUses(keys map[string]*uses) func(int64, translog.Event, []byte) error {
	return func(_ int64, event translog.Event, entry []byte) error {
		if event.Type != "intent/v1" && event.Type != "signed/v1" {
			return nil
		}
		var of struct {
			Key string `json:"key"`
		}
		if err := json.Unmarshal(entry, &of); err != nil {
			return failure.New(failure.Invalid, "its key is not a name: %w", err)
		}
		u := keys[of.Key]
		switch {
		case u == nil: // not asked for
		case event.Type == "signed/v1":
			u.Signed++
		default:
			u.Intents++
		}
		return nil
	}
}

// reconcile prints what differs, and fails if anything does.
func reconcile(c *cobra.Command, keys map[string]*uses, asJSON bool) error {
	var all []*uses
	var rows [][]string
	var differ []string
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		u := keys[name]
		u.compare()
		all = append(all, u)
		rows = append(rows, []string{name, fmt.Sprint(u.Signed), fmt.Sprint(u.Intents), fmt.Sprint(u.Module), u.Verdict})
		if u.Unlogged+u.Missing > 0 {
			differ = append(differ, name)
		}
	}
	var err error
	if asJSON {
		err = cli.PrintJSON(c.OutOrStdout(), all)
	} else {
		err = cli.PrintTable(c.OutOrStdout(), []string{"KEY", "SIGNED", "ALLOWED", "MODULE", "RESULT"}, rows)
	}
	if err == nil && len(differ) > 0 {
		err = failure.New(failure.Conflict, "the counters of %s do not fit the log", strings.Join(differ, ", ")).
			WithHint("find out who else can log in to the token, and whether the key was replaced")
	}
	return err
}
