package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

func policyCommand() *cobra.Command {
	return cli.Group("policy", "Check, try, compare and apply policies, which decide who may use a key for what",
		policyCheckCommand(), policyTestCommand(), policyDiffCommand(), policyApplyCommand(), policyShowCommand())
}

// readPolicy reads the policy in a file. Its failures name the file.
func readPolicy(path string) (*policy.Policy, error) {
	data, err := bound.ReadFile(path, policy.MaxFile)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the policy: %w", err).
			WithHint("check the path, its permissions and the size")
	}
	p, err := policy.Parse(data)
	if err != nil {
		f := failure.From(err)
		return nil, failure.New(f.Kind, "cannot use %s: %w", path, err).WithHint(f.Hint)
	}
	return p, nil
}

func policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check FILE",
		Short: "Find every mistake in a policy, with its line",
		Long: `Find every mistake in a policy, with its line. Warnings, about what is allowed but probably not meant,
go to standard error and do not change the exit code.`,
		Example: "  hsm-broker policy check policy.yaml",
		Args:    cli.Exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			for _, w := range p.Warnings() {
				fmt.Fprintf(c.ErrOrStderr(), "warning: %s: %s\n", args[0], w)
			}
			digest := p.Digest()
			fmt.Fprintf(c.OutOrStdout(), "%s: valid; keys: %d; sha256:%s\n", args[0], len(p.Keys()),
				hex.EncodeToString(digest[:]))
			return nil
		},
	}
}

func policyTestCommand() *cobra.Command {
	var request string
	var asJSON bool
	c := &cobra.Command{
		Use:   "test FILE",
		Short: "Show which rules of a policy apply to a request, and why others do not",
		Long: `Show which rules of a policy apply to a request, and why others do not. It asks no broker: the policy
and the request come from files. The exit code is 3 if no rule applies.`,
		Example: "  hsm-broker policy test policy.yaml --request request.json",
		Args:    cli.Exactly(1),
	}
	c.Flags().StringVar(&request, "request", "",
		"JSON file: {key, action, caller{issuer, subject, claims}, artifact{format, digest, repository, ...}, time} "+
			"(required)")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.RunE = func(c *cobra.Command, args []string) error {
		if request == "" {
			return cli.Required(c, "request", "request.json")
		}
		p, err := readPolicy(args[0])
		if err != nil {
			return err
		}
		data, err := bound.ReadFile(request, policy.MaxFile)
		if err != nil {
			return failure.New(failure.FileKind(err), "cannot read the request: %w", err).
				WithHint("check the path, its permissions and the size")
		}
		action, in, err := policy.ParseInput(data, time.Now())
		if err != nil {
			return err
		}
		decision := p.Decide(action, in)
		if asJSON {
			err = cli.PrintJSON(c.OutOrStdout(), outcomeOf(action, in, decision))
		} else {
			err = cli.PrintTable(c.OutOrStdout(), []string{"RULE", "APPLIES", "DEMANDS OR REASON"}, decisionRows(decision))
		}
		if err == nil && len(decision.Rules) == 0 {
			err = failure.New(failure.Denied, "no rule of %s allows %s of %s", args[0], action, subject(in.Key)).
				WithHint("see the reasons of the rules")
		}
		return err
	}
	return c
}

// subject names what an action is about.
func subject(key string) string {
	if key == "" {
		return "what belongs to no single key"
	}
	return fmt.Sprintf("key %q", key)
}

// outcome is a decision for programs.
type outcome struct {
	Action  policy.Action  `json:"action"`
	Key     string         `json:"key"`
	Rules   []applies      `json:"rules"`
	Refused []doesNotApply `json:"refused"`
}

type applies struct {
	Rule    string   `json:"rule"`
	Digest  string   `json:"digest"` // SHA-256 of the resolved rule, in hexadecimal
	Demands []string `json:"demands"`
}

type doesNotApply struct {
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason"`
}

func outcomeOf(action policy.Action, in policy.Input, d policy.Decision) outcome {
	o := outcome{Action: action, Key: in.Key, Rules: []applies{}, Refused: []doesNotApply{}}
	for _, r := range d.Rules {
		digest := r.Digest()
		o.Rules = append(o.Rules, applies{r.Name, hex.EncodeToString(digest[:]), append([]string{}, r.Demands()...)})
	}
	for _, r := range d.Refused {
		o.Refused = append(o.Refused, doesNotApply{r.Rule, r.Why})
	}
	return o
}

// decisionRows returns what people read of a decision.
func decisionRows(d policy.Decision) (rows [][]string) {
	for _, r := range d.Rules {
		demands := strings.Join(r.Demands(), "; ")
		if demands == "" {
			demands = "nothing more"
		}
		rows = append(rows, []string{r.Name, "yes", demands})
	}
	for _, r := range d.Refused {
		rows = append(rows, []string{cli.OrDash(r.Rule), "no", r.Why})
	}
	return rows
}

func policyDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "diff OLD NEW",
		Short:   "Show what a new policy changes, and whose modify rules must allow it",
		Example: "  hsm-broker policy diff policy.yaml proposal.yaml",
		Args:    cli.Exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			before, err := readPolicy(args[0])
			if err != nil {
				return err
			}
			after, err := readPolicy(args[1])
			if err != nil {
				return err
			}
			return printDifference(c.OutOrStdout(), before, policy.Compare(before, after))
		},
	}
}

// printDifference writes the changes, and the modify rules of the old policy that must allow them.
func printDifference(w io.Writer, before *policy.Policy, d policy.Difference) error {
	if len(d.Changes) == 0 {
		_, err := fmt.Fprintln(w, "the policies have the same effect")
		return err
	}
	rows := make([][]string, len(d.Changes))
	for i, change := range d.Changes {
		rows[i] = []string{change.Path, change.What}
	}
	if err := cli.PrintTable(w, []string{"WHERE", "CHANGE"}, rows); err != nil {
		return err
	}
	rows = nil
	for _, key := range d.Modify {
		rules := before.Rules(policy.Modify, key)
		name := key
		if name == "" {
			name = "(no single key)"
		}
		if len(rules) == 0 {
			rows = append(rows, []string{name, "-", "nothing allows the change: there is no modify rule"})
		}
		for _, rule := range rules {
			rows = append(rows, []string{name, rule.Name, rule.String()})
		}
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return cli.PrintTable(w, []string{"MODIFY RULES OF", "ANY OF", "DEMANDS"}, rows)
}
