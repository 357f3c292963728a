# What the demonstrations share. It is sourced by them in the root of the repository, with the variable folder: where a
# demonstration keeps what it makes.

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
end() { [ -z "$1" ] || { kill "$1" 2>/dev/null && wait "$1" 2>/dev/null; } || true; }

# isolate has all programs keep out of the user's home: their home is $folder/home.
isolate() {
	rm -rf "$folder"
	mkdir -p "$folder/tokens" "$folder/home"
	# Go's own settings and caches are used where they are; those that are not there yet are made beside the folder.
	export GOENV=${GOENV:-${XDG_CONFIG_HOME:-$HOME/.config}/go/env}
	export XDG_CONFIG_HOME=$folder/home/.config
	local cache found
	for cache in GOMODCACHE GOCACHE; do
		found=$(go env $cache)
		[ -d "$found" ] || { found=${folder%/*}/$cache; export GOFLAGS="${GOFLAGS:-} -modcacherw"; }
		export $cache="$found"
	done
	export HOME=$folder/home XDG_CACHE_HOME=$folder/home/.cache
	local name
	for name in $(compgen -e NOTATION_HSM_); do unset "$name"; done
}

# make_token makes a token of SoftHSM with a PIN of its own, which is in DEMO_PIN.
make_token() {
	cat >"$folder/softhsm2.conf" <<END
directories.tokendir = $folder/tokens
objectstore.backend = file
log.level = ERROR
END
	export SOFTHSM2_CONF=$folder/softhsm2.conf
	umask 077
	# Not in a file: one below a folder that others can write to, such as a clone made under the umask 002, is refused.
	DEMO_PIN=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
	export DEMO_PIN NOTATION_HSM_PIN_SOURCE=env:DEMO_PIN
	for NOTATION_HSM_MODULE_PATH in /usr/lib/softhsm/libsofthsm2.so /usr/lib/*/softhsm/libsofthsm2.so /usr/lib64/softhsm/libsofthsm2.so; do
		[ ! -e "$NOTATION_HSM_MODULE_PATH" ] || break
	done
	export NOTATION_HSM_MODULE_PATH
	softhsm2-util --init-token --free --label "$1" --pin "$DEMO_PIN" --so-pin "$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')" >/dev/null
}

# make_key makes a key on a token, and a certificate for it: make_key TOKEN NAME FILE.
make_key() {
	local key="pkcs11:token=$1;object=$2" subject="CN=$2,O=Example,C=CH,ST=Zurich" file=$3
	run notation-hsm key generate --token "$1" --spec EC-256 --label "$2"
	printf '$ notation-hsm cert self-sign "%s" --subject "%s" > %s\n' "$key" "$subject" "${file##*/}"
	notation-hsm cert self-sign "$key" --subject "$subject" >"$file"
	run notation-hsm cert import "$key" "$file"
}

# trust has signatures verify under the certificate DIR/NAME.pem, in the repositories SCOPE, and no others: trust DIR
# NAME SCOPE, and again for others.
trust() {
	run notation cert add --type ca --store "$2" "$1/$2.pem"
	cat >"$folder/trust-$2.json" <<END
  {"name": "$2", "registryScopes": ["$3"], "trustStores": ["ca:$2"], "signatureVerification": {"level": "strict"},
   "trustedIdentities": ["x509.subject: CN=$2,O=Example,ST=Zurich,C=CH"]}
END
	{
		echo '{"version": "1.0", "trustPolicies": ['
		sed -s '$!b;s/$/,/' "$folder"/trust-*.json | sed '$s/,$//'
		echo ']}'
	} >"$folder/trustpolicy.json"
	run notation policy import --force "$folder/trustpolicy.json"
}

# serve starts a program that listens on a free port of 127.0.0.1, and sets port and started: serve NAME CONFIGURE PROGRAM
# ARGUMENTS... CONFIGURE is called before with the port. PORT in an argument becomes the port.
serve() {
	local name=$1 configure=$2
	shift 2
	for port in $(shuf -i 20000-30000 -n 20); do
		"$configure" "$port"
		"${@//PORT/$port}" >"$folder/$name.log" 2>&1 &
		started=$!
		for _ in $(seq 1200); do
			kill -0 "$started" 2>/dev/null || break
			(: >"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return
			sleep 0.05
		done
		end "$started"
	done
	echo "error: the $name did not start; see ${folder#"$PWD/"}/$name.log" >&2
	exit 1
}

registry_config() {
	printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: "127.0.0.1:%s"}\n' \
		"$folder/registry" "$1" >"$folder/registry.yml"
}
