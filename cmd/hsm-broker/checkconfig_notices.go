package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/notice"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// notices holds who is told of requests against the people of the policy.
func (f *findings) notices(c *brokerfile.File, p *policy.Policy) {
	mail := slices.ContainsFunc(c.Notices, func(n notice.Channel) bool { return n.Email != "" })
	if !mail {
		if len(c.Contacts) > 0 {
			f.warn(f.file, "contacts has no effect: notices has no channel with email")
		}
		return
	}
	people := map[string]bool{}
	for _, g := range p.Groups() {
		for _, member := range g.Members {
			people[member.Name] = true
		}
	}
	var absent, unknown []string
	for _, name := range slices.Sorted(maps.Keys(people)) {
		if c.Contacts[name] == "" {
			absent = append(absent, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Contacts)) {
		if !people[name] {
			unknown = append(unknown, name)
		}
	}
	if len(absent) > 0 {
		f.warn(f.file, "contacts does not have people of the policy, who get no mail: %.500s", strings.Join(absent, ", "))
	}
	if len(unknown) > 0 {
		f.warn(f.file, "contacts has people whom the policy does not name: %.500s", strings.Join(unknown, ", "))
	}
}
