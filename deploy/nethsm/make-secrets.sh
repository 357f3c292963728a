#!/usr/bin/env bash
# Makes the secrets of the compose files beside it, each under the name that Nitrokey's container documents: a certificate authority
# that serves nothing else, certificates for etcd and for NetHSM below it, and NetHSM's device key.
#
#   make-secrets.sh [FOLDER]        (secrets/ beside this script)
#
# What is there is kept, so a run that was stopped is finished by the next one. To renew a certificate, remove its file and run again.
set -euo pipefail
umask 077

ca_days=3650
days=730
# The names under which NetHSM and the members reach etcd: the services of the compose files, and the health checks' loopback.
server_names=DNS:etcd,DNS:etcd1,DNS:etcd2,DNS:etcd3,DNS:localhost,IP:127.0.0.1,IP:::1

fail() {
	printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
	exit 1
}

[ $# -le 1 ] || fail "one folder, not $# arguments" "${0##*/} [FOLDER]"
case ${1-} in -*) fail "there is no option $1" "${0##*/} [FOLDER]" ;; esac
dir=${1:-$(cd "$(dirname "$0")" && pwd)/secrets}
command -v openssl >/dev/null || fail "openssl is missing" "install the package openssl"

mkdir -p -- "$dir"
dir=$(cd -- "$dir" && pwd)
[ -O "$dir" ] || fail "$dir belongs to someone else" "name a folder of your own"
chmod 700 "$dir"
new=$(mktemp -d "$dir/.new.XXXXXX")
trap 'rm -rf -- "$new"' EXIT
trap 'exit 1' HUP INT TERM

# keep NAME gives a finished file its name at once, and leaves a file alone that has the name by now.
keep() {
	[ -s "$new/$1" ] || fail "$1 came out empty" "is the disk full?"
	ln -- "$new/$1" "$dir/$1" 2>/dev/null || [ -e "$dir/$1" ] || fail "cannot write $dir/$1" "is the disk full, or without hard links?"
	rm -f -- "$new/$1"
}

key() {
	[ ! -e "$dir/$1" ] || return 0
	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$new/$1"
	keep "$1"
}

# serial is random and positive, so that a certificate that is made again never has the number of the one before.
serial() { printf '0x%s' "4$(openssl rand -hex 16 | cut -c2-)"; }

authority() {
	[ ! -e "$dir/ca_cert" ] || return 0
	for name in client server; do
		[ ! -e "$dir/${name}_cert" ] || fail "$dir has ${name}_cert and no ca_cert that issued it" "put ca_cert back, or remove ${name}_cert"
	done
	key ca_key
	cat >"$new/config" <<-'CONFIG'
		[req]
		distinguished_name = subject
		x509_extensions = extensions
		prompt = no
		[subject]
		CN = NetHSM etcd CA
		[extensions]
		basicConstraints = critical,CA:TRUE,pathlen:0
		keyUsage = critical,keyCertSign,cRLSign
		subjectKeyIdentifier = hash
	CONFIG
	openssl req -new -x509 -sha256 -config "$new/config" -key "$dir/ca_key" -days "$ca_days" -set_serial "$(serial)" -out "$new/ca_cert"
	keep ca_cert
}

# certificate NAME EXTENDED-KEY-USAGE [SUBJECT-ALTERNATIVE-NAMES]
certificate() {
	key "$1_key"
	[ ! -e "$dir/$1_cert" ] || return 0
	[ -e "$dir/ca_key" ] || fail "$1_cert has to be made and $dir/ca_key is not there to issue it" "put ca_key back for a moment"
	printf 'basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\nextendedKeyUsage = %s\n' "$2" >"$new/extensions"
	printf 'subjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n' >>"$new/extensions"
	[ -z "${3-}" ] || printf 'subjectAltName = %s\n' "$3" >>"$new/extensions"
	openssl req -new -sha256 -key "$dir/$1_key" -subj "/CN=NetHSM etcd $1" -out "$new/request"
	openssl x509 -req -sha256 -in "$new/request" -CA "$dir/ca_cert" -CAkey "$dir/ca_key" -days "$days" -set_serial "$(serial)" \
		-extfile "$new/extensions" -out "$new/$1_cert" 2>"$new/log" || fail "openssl did not issue $1_cert: $(tail -n 1 "$new/log")" "is ca_key the key of ca_cert?"
	keep "$1_cert"
}

# check NAME: what is there belongs together. openssl's own words would say less.
check() {
	[ "$(openssl x509 -in "$dir/$1_cert" -noout -pubkey)" = "$(openssl pkey -in "$dir/$1_key" -pubout)" ] ||
		fail "$1_key is not the key of $1_cert" "remove $dir/$1_cert and run this again"
	openssl verify -no_check_time -CAfile "$dir/ca_cert" "$dir/$1_cert" >/dev/null 2>&1 ||
		fail "$1_cert was not issued by ca_cert" "remove $dir/$1_cert and run this again"
}

authority
certificate client clientAuth
# etcd is a client too: of the other members, and of itself in its health check.
certificate server serverAuth,clientAuth "$server_names"
check client
check server
if [ ! -e "$dir/device_key" ]; then
	openssl rand -base64 32 >"$new/device_key" # 32 bytes (AES-256) in Base64, which is what NetHSM reads
	keep device_key
fi

for name in ca_key ca_cert client_key client_cert server_key server_cert device_key; do
	[ ! -e "$dir/$name" ] || chmod 600 "$dir/$name"
done
for name in ca client server; do
	printf '%s\tuntil %s\n' "$dir/${name}_cert" "$(openssl x509 -in "$dir/${name}_cert" -noout -enddate | cut -d= -f2)"
	openssl x509 -in "$dir/${name}_cert" -noout -checkend $((30 * 86400)) >/dev/null ||
		printf 'warning: %s runs out within 30 days\nhint: remove it, run this again and restart the containers\n' "$dir/${name}_cert" >&2
done
