#!/usr/bin/env bash
# The main job from beginning to end, in the folder demo/: a key made inside a token, a real image in a real registry signed with
# it through notation, with the PIN and through an agent, verified, and a tampered copy refused. Everything of yours (home, configuration, tokens) stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() {
	local arg line=
	for arg; do
		arg=${arg//$PWD\//}
		case $arg in *[\;\ ]*) arg="\"$arg\"" ;; esac
		line+=" $arg"
	done
	printf '$%s\n' "$line"
	"$@"
}

cat <<'END'
make demo signs a container image with a key in a SoftHSM token, verifies it, and shows that a tampered copy is refused.
It installs softhsm2, gcc and libc6-dev if they are missing, and builds notation-hsm, hsm-broker, notation and a registry.
On 2 cores the first run takes about 3 minutes and downloads about 250 MB; later runs take seconds. It writes to bin/,
demo/ and Go's caches.
END
command -v go >/dev/null || { echo "error: go is missing: install Go 1.26 or later, from https://go.dev/dl" >&2; exit 1; }
./softhsm-test/packages.sh softhsm2 gcc libc6-dev

rm -rf demo/run
mkdir -p demo/run/tokens
# Go's own settings and caches are used where they are; those that are not there yet are made in demo/ too.
export GOENV=${GOENV:-${XDG_CONFIG_HOME:-$HOME/.config}/go/env}
export XDG_CONFIG_HOME=$PWD/demo/run/home/.config
for cache in GOMODCACHE GOCACHE; do
	folder=$(go env $cache)
	[ -d "$folder" ] || { folder=$PWD/demo/$cache; export GOFLAGS="${GOFLAGS:-} -modcacherw"; }
	export $cache="$folder"
done
export HOME=$PWD/demo/run/home XDG_CACHE_HOME=$PWD/demo/run/home/.cache
mkdir -p "$HOME"
for name in $(compgen -e NOTATION_HSM_); do unset "$name"; done

step "Building notation-hsm, hsm-broker, notation and a registry"
unset CGO_ENABLED # the token is a PKCS#11 module
make --no-print-directory demo-programs >/dev/null
export PATH=$PWD/bin:$PWD/bin/tools:$PATH

step "A token with a PIN of its own, and a key made inside it"
cat >demo/run/softhsm2.conf <<END
directories.tokendir = $PWD/demo/run/tokens
objectstore.backend = file
log.level = ERROR
END
export SOFTHSM2_CONF=$PWD/demo/run/softhsm2.conf
umask 077
# Not in a file: one below a folder that others can write to, such as a clone made under the umask 002, is refused.
DEMO_PIN=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
export DEMO_PIN NOTATION_HSM_PIN_SOURCE=env:DEMO_PIN
for NOTATION_HSM_MODULE_PATH in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so; do
	[ ! -e "$NOTATION_HSM_MODULE_PATH" ] || break
done
export NOTATION_HSM_MODULE_PATH
softhsm2-util --init-token --free --label signing --pin "$DEMO_PIN" --so-pin "$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')" >/dev/null
key="pkcs11:token=signing;object=release"
run notation-hsm key generate --token signing --spec EC-256 --label release
printf '$ notation-hsm cert self-sign "%s" --subject "CN=release,O=Example,C=CH,ST=Zurich" > release.pem\n' "$key"
notation-hsm cert self-sign "$key" --subject "CN=release,O=Example,C=CH,ST=Zurich" >demo/run/release.pem
run notation-hsm cert import "$key" demo/run/release.pem
run notation-hsm key show "$key"

step "Notation knows the plugin, the key, and which signer to trust"
run notation-hsm install --key-name release --key "$key" --default
run notation cert add --type ca --store release demo/run/release.pem
cat >demo/run/trustpolicy.json <<'END'
{"version": "1.0", "trustPolicies": [{"name": "release", "registryScopes": ["*"], "trustStores": ["ca:release"],
 "signatureVerification": {"level": "strict"}, "trustedIdentities": ["x509.subject: CN=release,O=Example,ST=Zurich,C=CH"]}]}
END
run notation policy import demo/run/trustpolicy.json

step "An image in a registry"
registry= agent= socket=
end() { [ -z "$1" ] || { kill "$1" 2>/dev/null && wait "$1" 2>/dev/null; } || true; }
cleanup() { end "$agent"; end "$registry"; [ -z "$socket" ] || rm -rf "${socket%/*}"; }
trap cleanup EXIT
for port in $(shuf -i 20000-60000 -n 20); do
	printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
		"$PWD/demo/run/registry" "$port" >demo/run/registry.yml
	registry serve demo/run/registry.yml >demo/run/registry.log 2>&1 &
	registry=$!
	for _ in $(seq 100); do
		kill -0 "$registry" 2>/dev/null || break
		(: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break 2
		sleep 0.05
	done
	end "$registry"
	registry=
done
[ -n "$registry" ] || { echo "error: the registry did not start; see demo/run/registry.log" >&2; exit 1; }
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
