#!/bin/bash
# spec/test.sh [RING…]
# The tests, ring by ring, inside out: the domain in Rust (rust), the library seen from Lua (busted), real servers (server).
# The first ring that fails ends the run. Needs `spec/machine.sh test` and a build; busted by itself `spec/machine.sh busted`.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# Seconds. Compiling has a budget of its own, so that slow tests are seen.
COMPILE=600
RUST=300
BUSTED=60
SERVER=600

logs=target/test
passed=0 failed=0
mkdir -p $logs

total() {
	echo "$passed passed, $failed failed${1:+ (stopped at: $1)}"
	[[ -z ${1:-} ]]
}

run() { # NAME SECONDS COMMAND…
	local name=$1 seconds=$2
	shift 2
	spec/stage.sh "$name" "$seconds" -- "$@" 2>&1 | tee "$logs/$name.log" || { failing=$name; return 1; }
}

# Adds what a runner reports to the totals; a ring without tests is a failure: nothing was looked at.
count() { # NAME AWK-PROGRAM
	local good bad
	read -r good bad < <(awk "$2"' END { print p + 0, f + 0 }' "$logs/$1.log")
	echo "$1: $good passed, $bad failed"
	((passed += good, failed += bad))
	if ((good + bad == 0)); then
		failing="$1, no tests found"
		return 1
	fi
}

ring() { # NAME SECONDS AWK-PROGRAM COMMAND…
	local name=$1 seconds=$2 program=$3 status=0
	shift 3
	run "$name" "$seconds" "$@" || status=1
	count "$name" "$program" || status=1
	((status == 0)) || { total "$failing"; exit 1; }
}

compile() {
	spec/cargo.sh test --locked --features postgres,conformance --no-run || return
	# For the servers that keep the promises of a store on their own storage; never installed.
	spec/cargo.sh build --locked --features lua54,conformance --target-dir target/conformance
}
export -f compile

failing=
(($#)) || set -- rust busted server
[[ $* == busted ]] || run compile $COMPILE bash -c compile || { total compile; exit 1; }
for name; do
	case $name in
		rust)
			ring rust $RUST '/^test result:/ { p += $4; f += $6 }' \
				spec/cargo.sh test --locked --features postgres,conformance
			;;
		busted)
			ring busted $BUSTED '/^[0-9]+ success/ { p += $1; f += $4 + $7 }' \
				lua5.4 "$(command -v busted)" --output=plainTerminal --pattern='_spec%.lua$' spec
			;;
		server)
			ring server $SERVER \
				'/ in [0-9.]+s/ { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^(failed|error)/) f += $(i-1) } }' \
				/usr/bin/python3 -m pytest -n 2 -q --durations=12 spec/server
			;;
		*) echo "$0: rust, busted or server, not $name" >&2; exit 2 ;;
	esac
done
total
