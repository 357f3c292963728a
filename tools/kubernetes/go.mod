// What the exports of the trust manifest are checked against: the resource definitions that Kyverno, Gatekeeper and Ratify
// publish, and these servers themselves. Tests read these modules (softhsm-test/e2e/kubernetes), and build.sh builds
// them. Nothing imports them here, so that 'go mod tidy' would take them out.
module github.com/notation-hsm/notation-hsm/tools/kubernetes

go 1.26.0

require (
	github.com/kyverno/kyverno v1.19.1
	github.com/open-policy-agent/gatekeeper/v3 v3.23.1
	github.com/ratify-project/ratify v1.4.6
)
