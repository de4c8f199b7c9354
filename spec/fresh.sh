#!/bin/bash
# spec/fresh.sh                      what every Debian must do, one Debian after the other
# spec/fresh.sh SUITE [COMMAND…]     that of one of them, or another command there; "turn" is the suite whose turn it is
#
# Runs it in the committed checkout on a Debian that has nothing but make: a chroot in a scratch directory, gone afterwards.
# Needs root and `spec/machine.sh fresh`. Network settings of this machine (mirror, proxy, CAs) are carried in.
set -euo pipefail
cd "$(dirname "$0")/.."

suites=(bookworm trixie forky)
declare -A commands=(
	[bookworm]="make demo && make test"
	[trixie]="make demo && make test"
	[forky]="make build && make demo && make busted"
)

fresh() { # SUITE COMMAND
	local suite=$1 command=$2 root=$scratch/$1 status=0 before
	SECONDS=0
	spec/chroot.sh make "$suite" "$root" make
	git archive HEAD | tar -x -C "$root/srv/mod_invites"
	before=$(megabytes "$root")
	echo "== $suite: a bare Debian $(<"$root/etc/debian_version"), $SECONDS s"
	SECONDS=0
	spec/chroot.sh run "$root" "$command" || status=$?
	echo "== $suite: $command: exit $status, $SECONDS s, $(($(megabytes "$root") - before)) MB" | tee -a "$scratch/lines"
	rm -rf --one-file-system "$root"
	return $status
}

megabytes() { # DIRECTORY
	du -smx "$1" | cut -f1
}

[[ $EUID == 0 ]] || { echo "needs root" >&2; exit 2; }
[[ -z $(git status --porcelain) ]] || echo "note: the uncommitted changes here are not in it"
scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}" fresh.XXXXXX)
chmod 755 "$scratch"
: >"$scratch/lines"
trap 'rm -rf --one-file-system "$scratch"' EXIT

if (($#)); then
	suite=$1
	shift
	# A commit has its suite, so that a run of it can be repeated.
	[[ $suite != turn ]] || suite=${suites[$(git rev-list --count HEAD) % ${#suites[@]}]}
	suites=("$suite")
fi
failed=
for suite in "${suites[@]}"; do
	# Not with ||, which would let it go on behind a command that fails.
	set +e
	(set -e; fresh "$suite" "${*:-${commands[$suite]}}")
	status=$?
	set -e
	((status == 0)) || failed+=" $suite"
done
((${#suites[@]} == 1)) || cat "$scratch/lines"
[[ ! $failed ]] || { echo "== failed:$failed" >&2; exit 1; }
