#!/bin/bash
# What the library is made of: licences, banned and doubled crates and their sources (.deny.toml), and, where the
# database of advisories can be had, whether any of them is known to be unsafe.
set -euo pipefail
cd "$(dirname "$0")/.."
deny=$(spec/tool.sh cargo-deny)
mkdir -p target

"$deny" --locked check licenses bans sources
if "$deny" fetch db >target/advisories.log 2>&1; then
	"$deny" --locked check advisories
else
	echo "advisories: SKIPPED, their database cannot be fetched: $(grep . target/advisories.log | tail -n 1)"
fi
