package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A cluster checks images when a Pod is admitted, and what checks them reads resources from the cluster in place of
// files. Kyverno and Ratify are supported; both verify with Notation's own code.

// object is a Kubernetes resource.
type object struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       any      `json:"spec"`
}

type metadata struct {
	Name        string            `json:"name"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// named returns the metadata of a resource, with a label that marks it as written here.
func named(name string) metadata {
	return metadata{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": "notation-hsm"}}
}

// forCluster reads a manifest. It fails with Invalid for a scope that a cluster would call by another name, and with
// Unsupported for tags with a root: a cluster would take the tag's digest from the registry.
func forCluster(path string) (*Manifest, []group, error) {
	m, err := Load(path)
	if err != nil {
		return nil, nil, err
	}
	groups, err := m.groups()
	if err != nil {
		return nil, nil, err
	}
	if len(m.Tags) > 0 {
		return nil, nil, failure.New(failure.Unsupported,
			"the tags of %q have a root, and Kyverno and Ratify take a tag for what the registry says", m.Tags[0].Scope).
			WithHint("verify on the nodes, with hsm-image install-verifier; or export a manifest without tags: --manifest FILE")
	}
	if len(groups) == 0 {
		return nil, nil, failure.New(failure.Invalid, "the trust manifest has no signer to export").
			WithHint("add one with: notation-hsm trust signer add")
	}
	for _, g := range groups {
		if err := checkClusterScope(g.scope, fmt.Sprintf("signer %q", g.signers[0].Name)); err != nil {
			return nil, nil, err
		}
	}
	for _, a := range m.Approvals {
		if err := checkClusterScope(a.Scope, "the approvals"); err != nil {
			return nil, nil, err
		}
	}
	return m, groups, nil
}

// checkClusterScope fails with Invalid for a scope of somebody that a cluster calls by another name.
func checkClusterScope(scope, of string) error {
	if scope == anyone {
		return nil
	}
	name, err := repository(clusterName(scope))
	if err != nil {
		return err
	}
	if name != scope {
		return failure.New(failure.Invalid, "a cluster calls the repository %q of %s %q", scope, of, name).
			WithHint(fmt.Sprintf("change the scope to %s", name))
	}
	return nil
}

// clusterName returns the full name of a repository, as Kubernetes completes the name in a Pod: a first part without a
// dot or a port is no registry, and Docker Hub has one name, and a namespace for what has none.
func clusterName(scope string) string {
	const hub = "docker.io"
	registry, repository, _ := strings.Cut(scope, "/")
	switch {
	case !strings.ContainsAny(registry, ".:"):
		registry, repository = hub, scope
	case registry == "index."+hub:
		registry = hub
	}
	if registry == hub && !strings.Contains(repository, "/") {
		repository = "library/" + repository
	}
	return registry + "/" + repository
}

// encode writes resources as YAML, with the field names that JSON gives them.
func encode(header string, objects ...object) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(header)
	for _, o := range objects {
		data, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		var node yaml.Node // JSON is YAML; a node keeps the order
		if err := yaml.Load(data, &node); err != nil {
			return nil, err
		}
		plain(&node)
		if data, err = yaml.Dump(&node, yaml.WithIndent(2), yaml.WithLineWidth(-1)); err != nil {
			return nil, err
		}
		out.WriteString("---\n")
		out.Write(data)
	}
	return out.Bytes(), nil
}

// plain takes JSON's braces and quotes from a node.
func plain(node *yaml.Node) {
	node.Style = 0
	for _, child := range node.Content {
		plain(child)
	}
}
