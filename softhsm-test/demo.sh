#!/usr/bin/env bash
# The main job from beginning to end, in the folder demo/: a key made inside a token, a real image in a real registry signed with
# it through notation, with the PIN and through an agent, verified, and a tampered copy refused. Everything of yours (home, configuration, tokens) stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$PWD/demo/run
. softhsm-test/demo-common.sh

cat <<'END'
make demo signs a container image with a key in a SoftHSM token, verifies it, and shows that a tampered copy is refused.
It installs softhsm2, gcc and libc6-dev if they are missing, and builds notation-hsm, hsm-broker, notation and a registry.
On 2 cores the first run takes about 3 minutes and downloads about 250 MB; later runs take seconds. It writes to bin/,
demo/ and Go's caches.
END
command -v go >/dev/null || { echo "error: go is missing: install Go 1.26 or later, from https://go.dev/dl" >&2; exit 1; }
./softhsm-test/packages.sh softhsm2 gcc libc6-dev

isolate

step "Building notation-hsm, hsm-broker, notation and a registry"
unset CGO_ENABLED # the token is a PKCS#11 module
make --no-print-directory demo-programs >/dev/null
export PATH=$PWD/bin:$PWD/bin/tools:$PATH

step "A token with a PIN of its own, and a key made inside it"
make_token signing
key="pkcs11:token=signing;object=release"
make_key signing release "$folder/release.pem"
run notation-hsm key show "$key"

step "Notation knows the plugin, the key, and which signer to trust"
run notation-hsm install --key-name release --key "$key" --default
trust "$folder" release "*"

step "An image in a registry"
registry= agent= socket=
cleanup() { end "$agent"; end "$registry"; [ -z "$socket" ] || rm -rf "${socket%/*}"; }
trap cleanup EXIT
serve registry registry_config registry serve "$folder/registry.yml"
registry=$started
digest=$(image push "127.0.0.1:$port/app:v1" "hello, world")
echo "pushed 127.0.0.1:$port/app@$digest"

step "Signed by the key in the token, and verified"
run notation sign --insecure-registry "127.0.0.1:$port/app@$digest"
run notation list --insecure-registry "127.0.0.1:$port/app@$digest"
run notation verify --insecure-registry "127.0.0.1:$port/app@$digest"

step "Signed again through an agent, which is logged in: notation and its plugin have neither the PIN nor the module"
socket=$(mktemp -d)/socket # in a folder of the user's alone, and the path of a socket is short
echo "\$ hsm-broker agent --token signing --socket $socket &"
hsm-broker agent --token signing --socket "$socket" >demo/run/agent.log 2>&1 &
agent=$!
until grep -q '^listening on' demo/run/agent.log; do
	kill -0 "$agent" 2>/dev/null || { echo "error: the agent did not start; see demo/run/agent.log" >&2; exit 1; }
	sleep 0.05
done
grep '^listening on' demo/run/agent.log
unset DEMO_PIN NOTATION_HSM_PIN_SOURCE NOTATION_HSM_MODULE_PATH
run export NOTATION_HSM_BROKER="unix:$socket"
run notation sign --insecure-registry "127.0.0.1:$port/app@$digest"
run notation verify --insecure-registry "127.0.0.1:$port/app@$digest"
end "$agent"
agent=

step "A tampered image, with the good image's signature hung on it"
forged=$(image tamper "127.0.0.1:$port/app:v1" "127.0.0.1:$port/app:v2" "hello, mallory")
echo "pushed 127.0.0.1:$port/app@$forged"
if run notation verify --insecure-registry "127.0.0.1:$port/app@$forged"; then
	echo "error: the tampered image was verified" >&2
	exit 1
fi

step "The signed image verifies, the tampered one is refused, and the key never left the token"
