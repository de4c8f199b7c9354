#!/bin/bash
# spec/fresh.sh [COMMAND…]   (without one: make demo && make test)
# Runs the command in the committed checkout on a Debian 12 that has nothing but make: a chroot in a scratch directory,
# gone afterwards. Needs root and mmdebstrap. Network settings of this machine (mirror, proxy, CAs) are carried in.
set -euo pipefail
cd "$(dirname "$0")/.."
command="${*:-make demo && make test}"
[[ $EUID == 0 ]] || { echo "needs root" >&2; exit 2; }
[[ -z $(git status --porcelain) ]] || echo "note: the uncommitted changes here are not in it"

scratch=$(mktemp -d -p "${TMPDIR:-/var/tmp}" fresh.XXXXXX)
chmod 755 "$scratch"
root=$scratch/root
trap 'rm -rf --one-file-system "$scratch"' EXIT

SECONDS=0
spec/chroot.sh make bookworm "$root" make
git archive HEAD | tar -x -C "$root/srv/mod_invites"
echo "== fresh Debian $(cat "$root/etc/debian_version"): $SECONDS s"

SECONDS=0 status=0
spec/chroot.sh run "$root" "$command" || status=$?
echo "== $command: exit $status, $SECONDS s"
exit $status
