package policy

import (
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// readLocks reads the time lock and the timeout.
func (p *parser) readLocks(values map[string]*yaml.Node, path string, rule *Rule) {
	if node := values["time-lock"]; node != nil {
		rule.TimeLock = p.duration(node, path+".time-lock", maxTimeLock)
		rule.After = AfterRequest
	}
	if node := values["timeout"]; node != nil {
		rule.Timeout = p.duration(node, path+".timeout", maxTimeout)
		if rule.Timeout > 0 && rule.Timeout <= rule.TimeLock {
			p.report(node.Line, path+".timeout", "make the timeout longer than the time lock",
				"the timeout %s is not longer than the time lock %s", text(rule.Timeout), text(rule.TimeLock))
		}
	}
	node := values["after"]
	if node == nil {
		return
	}
	after, ok := one(&p.reader, node, path+".after", "moment", []After{AfterRequest, AfterApprovals})
	switch {
	case !ok:
	case values["time-lock"] == nil:
		p.report(node.Line, path+".after", "add time-lock, or remove after", "there is no time lock")
	case after == AfterApprovals && values["approvals"] == nil:
		p.report(node.Line, path+".after", "write: after: request", "the rule needs no approvals")
	default:
		rule.After = after
	}
}

// duration returns whole seconds, up to a limit.
func (p *parser) duration(node *yaml.Node, path string, limit time.Duration) time.Duration {
	value, ok := p.text(node, path, maxText)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(value)
	switch {
	case err != nil || d%time.Second != 0:
		p.report(node.Line, path, "write it like 30m or 72h, in whole seconds", "invalid duration %.50q", value)
	case d < time.Second || d > limit:
		p.report(node.Line, path, "", "the duration %s is not from 1s to %s", value, text(limit))
	default:
		return d
	}
	return 0
}

// text returns a duration without parts that are zero, such as 72h.
func text(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
