#!/bin/bash
# spec/valgrind.sh [CALLS]
# The boundary between Lua and Rust under valgrind: the library's spec, and so many calls that make no sense. Anything
# read that was never written, touched after it was freed, or lost for good is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

watched() {
	valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite \
		--child-silent-after-fork=yes "$@"
}

watched lua5.4 "$(command -v busted)" --output=plainTerminal --pattern='_spec%.lua$' spec | tail -n 3
checkout=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
watched lua5.4 "$checkout/spec/boundary.lua" "$checkout" "${1:-100000}" >/dev/null
echo "valgrind: nothing to say"
