#!/bin/bash
# spec/instructions.sh [--write]
# Counts, under callgrind, the instructions that one call of the library takes, from Lua and back, SQLite's included, and
# compares them with spec/instructions.txt: slower code is seen without a clock. --write puts new figures there.
set -euo pipefail
cd "$(dirname "$0")/.."

# In a hundred. Tokens are random, so is the way through the tree that holds them.
TOLERANCE=5
# The difference of two runs is free of what the start costs.
FEW=200 MANY=1200

figures=spec/instructions.txt
scratch=$(mktemp -d)
trap 'rm -rf "$scratch" "$scratch".*' EXIT

run() { # OPERATION NUMBER
	rm -rf "$scratch"/*
	valgrind --tool=callgrind --callgrind-out-file=/dev/null lua5.4 spec/instructions.lua "$scratch/invites.sqlite3" "$1" "$2" \
		>"$scratch.log" 2>&1 || { cat "$scratch.log" >&2; return 1; }
	sed -n 's/.*Collected : \([0-9]*\).*/\1/p' "$scratch.log"
}

worse=0
for operation in create 'get hit' 'get miss' register; do
	few=$(run "$operation" $FEW)
	many=$(run "$operation" $MANY)
	counted=$(((many - few) / (MANY - FEW)))
	known=$(sed -n "s/^$operation: //p" $figures)
	if [[ ${1:-} == --write ]]; then
		echo "$operation: $counted" >>"$scratch.new"
	elif ((counted * 100 > known * (100 + TOLERANCE))); then
		echo "$operation: $counted instructions, MORE than $known by over $TOLERANCE %"
		worse=1
	else
		echo "$operation: $counted instructions ($known)"
	fi
done
[[ ${1:-} != --write ]] || mv "$scratch.new" $figures
exit $worse
