package brokerfile

import (
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/repository"
)

// maxTags is the number of repositories whose tags one broker publishes.
const maxTags = 100

// Tags is a repository whose signed tags the broker publishes.
type Tags struct {
	Repository string `yaml:"repository"` // HOST/PATH in normal form; its registry is one of registries
	Root       string `yaml:"root"`       // file of the pinned root (root.json of TUF)
	Snapshot   string `yaml:"snapshot"`   // name of the snapshot key in the policy
	Timestamp  string `yaml:"timestamp"`  // name of the timestamp key in the policy
}

// checkTags checks the repositories whose tags are published.
func (f *File) checkTags(add adding) {
	if len(f.Tags) > maxTags {
		add("tags", "let another broker publish the rest", "has %d repositories, more than %d", len(f.Tags), maxTags)
	}
	registries := map[string]bool{}
	for _, r := range f.Registries {
		registries[registryOf(r.Host+"/x/x")] = true
	}
	seen := map[string]int{}
	for i, t := range f.Tags {
		at := fmt.Sprintf("tags[%d]", i)
		name, err := repository.Name(t.Repository)
		first, exists := seen[name]
		switch {
		case err != nil:
			add(at+".repository", failure.From(err).Hint, "%s", failure.From(err).What)
		case name != t.Repository:
			add(at+".repository", "write "+name, "%q is not its normal form", t.Repository)
		case exists:
			add(at+".repository", "list each repository once", "%q is tags[%d], too", name, first)
		case !registries[registryOf(name)]:
			add(at+".repository", "list its registry under registries", "the registry %s is not listed", registryOf(name))
		}
		seen[name] = i
		if !absolute(t.Root) {
			add(at+".root", "name the file by its absolute path", "%q is not an absolute path", t.Root)
		}
		for _, key := range []struct{ role, name string }{{"snapshot", t.Snapshot}, {"timestamp", t.Timestamp}} {
			if key.name == "" {
				add(at+"."+key.role, "name the "+key.role+" key of the policy", "is missing")
			}
		}
	}
}

// registryOf returns the registry in the name of a repository, in normal form, or "" for what is none.
func registryOf(name string) string {
	name, err := repository.Name(name)
	if err != nil {
		return ""
	}
	host, _, _ := strings.Cut(name, "/")
	return host
}
