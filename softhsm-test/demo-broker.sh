#!/usr/bin/env bash
# A team's broker from beginning to end, in the folder demo-broker/: CI jobs sign images without a PIN and without a
# module, a policy decides who signs what and who must agree, and anyone verifies the log. Everything of yours (home,
# configuration, tokens) stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${DEMO_FOLDER:-$PWD/demo-broker/run} # the test has one of its own, and has built the programs
. softhsm-test/demo-common.sh

cat <<'END'
make demo-broker starts a broker that signs container images for CI jobs as its policy says, shows what it signs, what
it refuses and what people approve, and verifies its log. It installs softhsm2, gcc, libc6-dev, curl and openssh-client
if they are missing, and builds notation-hsm, hsm-broker, notation and a registry. On 2 cores the first run takes about
3 minutes and downloads about 250 MB; later runs take seconds. It writes to bin/, demo-broker/ and Go's caches.
END
command -v go >/dev/null || { echo "error: go is missing: install Go 1.26 or later, from https://go.dev/dl" >&2; exit 1; }
[ -n "${DEMO_FOLDER:-}" ] || ./softhsm-test/packages.sh softhsm2 gcc libc6-dev curl openssh-client
isolate
export PATH=$PWD/bin:$PWD/bin/tools:$PATH
if [ -z "${DEMO_FOLDER:-}" ]; then
	step "Building notation-hsm, hsm-broker, notation and a registry"
	unset CGO_ENABLED # the token is a PKCS#11 module
	make --no-print-directory demo-broker-programs >/dev/null
fi

step "A token with keys: two that sign images, and one that signs the broker's log"
make_token prod
make_key prod release "$folder/release.pem"
make_key prod nightly "$folder/nightly.pem"
run notation-hsm key generate --token prod --spec EC-256 --label log

step "Images in a registry"
registry= issuer= broker=
state=$(mktemp -d) # others must not be able to write to any folder above it
cleanup() { end "$broker"; end "$issuer"; end "$registry"; rm -rf "$state"; }
trap cleanup EXIT
serve registry registry_config registry serve "$folder/registry.yml"
registry=$started registry_address=127.0.0.1:$port
app=$registry_address/app nightly=$registry_address/nightly/app
app_digest=$(image push "$app:v1" "hello, world")
next_digest=$(image push "$app:v2" "hello again, world")
nightly_digest=$(image push "$nightly:v1" "good night, world")
echo "pushed $app@$app_digest"
echo "pushed $app@$next_digest"
echo "pushed $nightly@$nightly_digest"

step "Who calls: jobs with tokens of a CI system (OpenID Connect), and a build machine with a certificate"
for name in issuer broker builder; do issuer certificate "$state" "$name"; done
for name in alice bob; do ssh-keygen -q -t ed25519 -N "" -C "$name" -f "$state/$name"; done
no_config() { :; }
serve issuer no_config issuer serve "$state" 127.0.0.1:PORT
issuer=$started issuer_address=127.0.0.1:$port
echo "the CI system issues tokens at https://$issuer_address; the build machine has the certificate CN=builder"
echo "alice and bob, who approve releases, have SSH keys"

step "What the policy allows"
cat >"$state/policy.yaml" <<END
version: 1
groups:
  release-managers: [alice, bob]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "https://$issuer_address" && caller.claims.repository == "example/app"
        && caller.claims.ref == "refs/heads/main" && artifact.repository == "$app"
    - name: tagged
      when: caller.issuer == "https://$issuer_address" && caller.claims.repository == "example/app"
        && caller.claims.ref.startsWith("refs/tags/v") && artifact.repository == "$app"
      approvals: [{group: release-managers, quorum: 2, kinds: [ssh]}]
      same: [repository, ref]
      timeout: 24h
  nightly:
    key: pkcs11:token=prod;object=nightly
    formats: [notation]
    use:
    - name: nightly
      when: caller.issuer == "mtls" && caller.subject == "CN=builder" && artifact.repository == "$nightly"
      limit: 10 per hour
END
cat "$state/policy.yaml"
run hsm-broker policy check "$state/policy.yaml"

step "The first people who approve: the broker enrols them when it starts for the first time"
cat >"$state/approvers.yaml" <<END
version: 1
approvers:
- {name: alice, ssh: "$(cat "$state/alice.pub")"}
- {name: bob, ssh: "$(cat "$state/bob.pub")"}
END
cat "$state/approvers.yaml"

step "The broker: it alone has the PIN and the module"
configure() {
	cat >"$state/config.yaml" <<END
version: 1
public-url: https://127.0.0.1:$1
rp-id: 127.0.0.1
listen:
  https: {address: "127.0.0.1:$1", certificate: $state/broker.pem, key: $state/broker.key, client-ca: $state/ca.pem}
store: sqlite:$state/store/broker.db
policy: $state/policy.yaml
approvers: $state/approvers.yaml
modules:
- {token: "pkcs11:token=prod", module-path: $NOTATION_HSM_MODULE_PATH, pin-source: "env:DEMO_PIN"}
keys:
  release: {certificate-chain: $folder/release.pem}
  nightly: {certificate-chain: $folder/nightly.pem}
log: {key: "pkcs11:token=prod;object=log", origin: demo.example.com/log, checkpoint-file: $state/checkpoint}
callers:
  oidc:
  - {issuer: "https://$issuer_address", audience: "https://127.0.0.1:$1", type: github, ca: $state/ca.pem}
  mtls: {allow: [CN=builder]}
registries:
- {host: "$registry_address", plain-http: true, loopback: true}
END
}
echo "\$ hsm-broker serve --config $state/config.yaml &"
serve broker configure hsm-broker serve --config "$state/config.yaml"
broker=$started url=https://127.0.0.1:$port
grep '^listening on' "$folder/broker.log"
run hsm-broker log key --config "$state/config.yaml" | tee "$folder/log.key"
sed -i '/^\$/d' "$folder/log.key"
unset DEMO_PIN NOTATION_HSM_PIN_SOURCE NOTATION_HSM_MODULE_PATH SOFTHSM2_CONF

# job has the commands that follow run as a job of CI of a repository, on a ref. Each job has a token for one signature.
job() {
	unset NOTATION_HSM_BROKER_CERTIFICATE NOTATION_HSM_BROKER_KEY
	issuer token "$state" "$issuer_address" "$url" "$1" "$2" >"$state/token"
	export NOTATION_HSM_BROKER_TOKEN=file:$state/token
	echo "a job of $1 on $2:"
}
# sign signs an image: sign KEY REPOSITORY DIGEST.
sign() { run notation sign --insecure-registry --plugin hsm --id "broker:$1" --plugin-config "repository=$2" "$2@$3"; }
# refused runs what has to fail, and to say why.
refused() {
	local why=$1 said
	shift
	if said=$("$@" 2>&1); then
		echo "error: it was not refused: $said" >&2
		exit 1
	fi
	printf '%s\n' "$said" | sed 's/^\([^$]\)/    \1/'
	grep -qF "$why" <<<"$said" || { echo "error: it was refused for another reason than: $why" >&2; exit 1; }
}
# ask posts what is to be signed, in base64, as any HTTP client can.
ask() {
	echo "\$ curl -H 'Authorization: Bearer ...' --data '{\"payload\": \"${1::40}...\", ...}' $url/v1/keys/release/signatures"
	curl --silent --fail-with-body --cacert "$state/ca.pem" -H "Authorization: Bearer $(cat "$state/token")" \
		-H 'Content-Type: application/json' --data "{\"payload\":\"$1\",\"algorithm\":\"ECDSA-SHA-256\"}" \
		"$url/v1/keys/release/signatures"
}

step "Signed for CI, which has neither a PIN nor a module"
run export NOTATION_HSM_BROKER="$url" NOTATION_HSM_BROKER_CA="$state/ca.pem"
run notation-hsm install
job example/app refs/heads/main
sign release "$app" "$app_digest"
trust "$folder" release "$app"
run notation verify --insecure-registry "$app@$app_digest"

step "Refused: the same token once more, for another image"
refused "token was used" sign release "$app" "$next_digest"

step "Refused: a job of another repository"
job example/other refs/heads/main
refused 'rule "release"' sign release "$app" "$app_digest"

step "Refused: a job on another branch"
job example/app refs/heads/feature
refused 'rule "release"' sign release "$app" "$app_digest"

step "Refused: an image in another repository of the registry"
job example/app refs/heads/main
refused 'rule "release"' sign release "$nightly" "$nightly_digest"

step "Refused: another format than those of the key"
job example/app refs/heads/main
cosign='{"critical":{"identity":{"docker-reference":"%s"},"image":{"docker-manifest-digest":"%s"},'
cosign+='"type":"cosign container image signature"},"optional":null}'
# shellcheck disable=SC2059
refused 'does not sign the format' ask "$(printf "$cosign" "$app" "$app_digest" | base64 -w0)"

step "Refused: a bare hash"
job example/app refs/heads/main
refused 'a bare hash is never signed' ask "$(head -c 32 /dev/urandom | base64 -w0)"

step "A release waits for two people"
job example/app refs/tags/v2
refused 'it waits for approvals: 2 of release-managers' sign release "$app" "$next_digest"
run notation-hsm request list
request=$(notation-hsm request list --json | sed -n 's/.*"id": "\([0-9a-f]*\)".*/\1/p' | head -1)

step "They look at it, and approve it with their SSH keys; the requester signs"
# approve approves the request as a person, who has no token of the CI system.
approve() (
	unset NOTATION_HSM_BROKER_TOKEN
	run hsm-broker approve "$request" --ssh "$state/$1" --plain-http --yes
)
approve alice
job example/app refs/tags/v2
refused 'it waits for approvals: 1 of release-managers' sign release "$app" "$next_digest"
approve bob
run notation-hsm request wait "$request"
job example/app refs/tags/v2
sign release "$app" "$next_digest"
run notation verify --insecure-registry "$app@$next_digest"

step "Signed for the build machine, by its certificate"
unset NOTATION_HSM_BROKER_TOKEN
run export NOTATION_HSM_BROKER_CERTIFICATE="$state/builder.pem" NOTATION_HSM_BROKER_KEY="$state/builder.key"
sign nightly "$nightly" "$nightly_digest"
trust "$folder" nightly "$nightly"
run notation verify --insecure-registry "$nightly@$nightly_digest"
refused 'rule "release"' sign release "$app" "$next_digest"
run notation-hsm request list

step "The log: anyone can verify it"
verify=(hsm-broker log verify "$url/v1/log" --key "$folder/log.key" --ca "$state/ca.pem")
until "${verify[@]}" --json | grep -q '"signed/v1": *3'; do sleep 0.1; done # it is signed once in a second
run "${verify[@]}"
run hsm-broker log export "$url/v1/log" "$folder/log" --key "$folder/log.key" --ca "$state/ca.pem" >"$folder/export.log"
head -1 "$folder/export.log"

step "One byte of the copy is changed, and found"
entries=$(find "$folder/log/tile/entries" -type f | sort | tail -1)
byte=$(od -An -tx1 -j 300 -N 1 "$entries" | tr -d ' ')
printf "\\x$(printf '%02x' $((0x$byte ^ 1)))" | dd of="$entries" bs=1 seek=300 conv=notrunc status=none
echo "byte 300 of ${entries#"$PWD/"}: $byte became $(od -An -tx1 -j 300 -N 1 "$entries" | tr -d ' ')"
refused "does not have the hash" run hsm-broker log verify "$folder/log" --key "$folder/log.key"

step "CI signed what the policy allows and people approved, and nothing else; each use of the key is in the log"
