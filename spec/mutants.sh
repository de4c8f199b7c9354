#!/bin/bash
# spec/mutants.sh [NAME…]   (without one: all)
# Breaks the redemption of invites on purpose, one patch in spec/mutants/ after the other, and prints which specs notice.
# A mutant that nobody notices survives, and that is a failure; so is a patch that does not apply any more.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/target/mutants
mkdir -p "$work"

rust_specs() { # in the mutant's tree
	CARGO_TARGET_DIR=$work/rust spec/cargo.sh test --locked --features postgres --no-fail-fast 2>&1 || true
}

server_specs() {
	/usr/bin/python3 -m pytest -n 2 -q -p no:cacheprovider spec/server/test_races.py spec/server/test_release.py \
		spec/server/test_raising.py spec/server/test_inviters.py spec/server/test_lost_claims.py 2>&1 || true
}

killed=0 survived=0
if (($#)); then
	patches=("${@/#/spec/mutants/}")
	patches=("${patches[@]/%/.patch}")
else
	patches=(spec/mutants/*.patch)
fi
for patch in "${patches[@]}"; do
	name=$(basename "$patch" .patch)
	tree=$work/$name
	rm -rf "$tree"
	git worktree prune
	git worktree add -q --detach "$tree" HEAD
	trap 'git worktree remove --force "$tree"' EXIT
	git -C "$tree" apply "$PWD/$patch"
	mkdir "$tree/target"
	ln -s "$PWD/target/prosody" "$tree/target/prosody"
	if grep -q '^+++ b/src' "$patch"; then
		killers=$(cd "$tree" && rust_specs | sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p')
	else
		cp lua/mod_invites/prosody_invites.so "$tree/lua/mod_invites/"
		killers=$(cd "$tree" && server_specs | sed -n 's/^FAILED \([^ ]*\).*/\1/p')
	fi
	if [[ $killers ]]; then
		killed=$((killed + 1))
		echo "$name: killed by"
		sed 's/^/    /' <<<"$killers"
	else
		survived=$((survived + 1))
		echo "$name: SURVIVED"
	fi
	git worktree remove --force "$tree"
	trap - EXIT
done
echo "mutants: $killed passed, $survived failed"
((survived == 0))
