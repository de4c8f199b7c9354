#!/bin/bash
# spec/fuzz.sh [SECONDS]
# Fuzzes what reads the words of strangers, operators and other programs, two targets at a time: each for so many seconds,
# or, without them, ten million times (the command line, a parser for people, one million). What was found before is in
# spec/fuzz/corpus/ and comes first. Without an address sanitizer: there is no unsafe code to watch. Needs a nightly Rust; without one it says so and is done.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! version=$(rustup run nightly rustc --version 2>&1); then
	echo "fuzz: SKIPPED, cargo-fuzz needs a nightly Rust: rustup toolchain install nightly --profile minimal"
	exit
fi
PATH=$(dirname "$(spec/tool.sh cargo-fuzz)"):$PATH
logs=target/fuzz/logs
mkdir -p $logs
echo "fuzz: building with $version"
cargo +nightly fuzz build --sanitizer none --fuzz-dir spec/fuzz --target-dir target/fuzz >$logs/build.log 2>&1 || {
	tail -n 20 $logs/build.log >&2
	exit 1
}

fuzz() { # TARGET, with its limit in the environment
	local new=target/fuzz/corpus/$1 limit status=0
	mkdir -p "$new"
	if [[ $FUZZ_SECONDS ]]; then
		limit=-max_total_time=$FUZZ_SECONDS
	elif [[ $1 == command_line ]]; then
		limit=-runs=1000000
	else
		limit=-runs=10000000
	fi
	# What it finds interesting goes to the first directory.
	target/fuzz/*/release/"$1" -max_len=1024 -timeout=10 -rss_limit_mb=1024 -artifact_prefix="target/fuzz/$1-" "$limit" \
		"$new" "spec/fuzz/corpus/$1" >"$FUZZ_LOGS/$1.log" 2>&1 || status=$?
	if ((status)); then
		tail -n 20 "$FUZZ_LOGS/$1.log"
		echo "fuzz: $1 FAILED, the input is in target/fuzz/$1-*"
	else
		echo "fuzz: $1: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/\1 executions in \2 s, no finding/p' \
			"$FUZZ_LOGS/$1.log")"
	fi
	return $status
}
export -f fuzz
export FUZZ_SECONDS=${1:-} FUZZ_LOGS=$logs

for target in spec/fuzz/targets/*.rs; do
	basename "$target" .rs
done | xargs -P 2 -I{} bash -c 'fuzz {}'
