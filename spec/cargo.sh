#!/bin/bash
# Runs the first cargo that is new enough for Cargo.toml's rust-version, with the rustc beside it: a machine may well
# have Debian's old one first in PATH.
set -euo pipefail
wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
seen=()
# What `cargo zigbuild` consists of: spec/machine.sh.
zig=$PWD/target/zig
[[ ${1:-} != zigbuild ]] || export PATH=$zig/bin:$PATH PYTHONPATH=$zig CARGO_ZIGBUILD_PYTHON_PATH=/usr/bin/python3

for cargo in $(type -ap cargo) ~/.cargo/bin/cargo /usr/bin/cargo; do
	directory=$(dirname "$cargo")
	version=$(PATH=$directory:$PATH rustc --version 2>/dev/null | cut -d' ' -f2) || continue
	[[ -x $cargo ]] || continue
	if printf '%s\n' "$wanted" "$version" | sort -VC; then
		PATH=$directory:$PATH exec "$cargo" "$@"
	fi
	seen+=("$cargo with Rust $version")
done
echo "no Rust $wanted or newer here (seen: ${seen[*]:-none}); https://rustup.rs has it" >&2
exit 2
