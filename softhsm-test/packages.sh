#!/usr/bin/env bash
# Installs the Debian packages named as arguments that are missing. It needs root, or sudo, only if one is missing;
# without either it prints the line for an administrator and fails.
set -euo pipefail

missing=()
for package in "$@"; do
	dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null; then
	echo "error: these are missing: ${missing[*]}" >&2
	echo "hint: install them with your system's package manager (their names are Debian's)" >&2
	exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
	sudo=(sudo)
	if ! command -v sudo >/dev/null || ! sudo -v; then
		echo "error: cannot install missing packages: neither root nor allowed to use sudo" >&2
		echo "hint: hand this line to an administrator, then run the command again:" >&2
		echo "apt-get install --no-install-recommends ${missing[*]}" >&2
		exit 1
	fi
fi
echo "installing: ${missing[*]}" >&2
# The tests start servers of their own. Without this file, Debian's package makes one and starts it, on port 5432. It is
# there during the installation only: what an administrator makes later is none of ours.
if [[ " ${missing[*]} " = *" postgresql "* ]]; then
	settings=/etc/postgresql-common/createcluster.d/notation-hsm.conf
	"${sudo[@]}" mkdir -p "${settings%/*}"
	"${sudo[@]}" tee "$settings" <<<"create_main_cluster = false" >/dev/null
	trap '"${sudo[@]}" rm -f "$settings"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null 2>&1 || {
	"${sudo[@]}" apt-get update -qq
	"${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
if [[ " ${missing[*]} " = *" pgbouncer "* && -d /run/systemd/system ]]; then
	"${sudo[@]}" systemctl disable -q --now pgbouncer # which the installation has started, on port 6432
fi
