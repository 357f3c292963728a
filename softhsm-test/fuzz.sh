#!/usr/bin/env bash
# Runs each fuzz target for the time given (20s). What was found stays in testdata/fuzz beside the target, and is run by every test.
set -euo pipefail
cd "$(dirname "$0")/.."

grep -rlE '^func Fuzz' --include='*_test.go' internal | sort | while read -r file; do
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z]+)\(.*/\1/p' "$file"); do
		# Without a limit Go spends most of the time on making each new input shorter.
		if output=$(go test -tags containers_image_openpgp -run '^$' -fuzz "^$target\$" -fuzztime "${1:-20s}" -fuzzminimizetime 1x "./$(dirname "$file")" 2>&1); then
			tail -n 1 <<<"$output"
		elif grep -q 'context deadline exceeded' <<<"$output" && ! grep -q 'Failing input' <<<"$output"; then
			echo "$target: the time ended in the middle of an input, which Go reports as a failure; nothing was found"
		else
			printf '%s\n' "$output" >&2
			exit 1
		fi
	done
done
