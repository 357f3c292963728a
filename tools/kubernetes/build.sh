#!/bin/bash
# Builds what 'make kubernetes' runs, into bin/tools/kubernetes: the API server and kubectl; Kyverno, and its command kubectl-kyverno;
# Gatekeeper; Ratify, and ratify-answers (softhsm-test/e2e/kubernetes/testdata/ratify), which gives Ratify's answers without a cluster.
# Each is built in its own module, with the versions that it was published with.
set -euo pipefail
export GOWORK=off # the modules here are not in the workspace of go.work
cd "$(dirname "$0")/../.."
out=$PWD/bin/tools/kubernetes
mkdir -p "$out"

folder() { # of a module as pinned in go.mod
	go mod download -C tools/kubernetes -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}

kyverno=$(folder github.com/kyverno/kyverno)
gatekeeper=$(folder github.com/open-policy-agent/gatekeeper/v3)
ratify=$(folder github.com/ratify-project/ratify)

go build -C tools/kubernetes/apiserver -o "$out/" k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl
go build -C "$kyverno" -o "$out/" ./cmd/kyverno ./cmd/cli/kubectl-kyverno
go build -C "$gatekeeper" -o "$out/gatekeeper" .
go build -C "$ratify" -o "$out/" ./cmd/ratify

# The module cache is read only, so that Ratify's module is copied for the package that is added to it.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r --no-preserve=mode "$ratify" "$copy/ratify"
cp -r softhsm-test/e2e/kubernetes/testdata/ratify "$copy/ratify/cmd/answers"
go build -C "$copy/ratify" -trimpath -o "$out/ratify-answers" ./cmd/answers
