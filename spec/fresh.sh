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

# The mirrors that this machine's apt uses, if it is a bookworm too.
mirror() { # SUITE DEFAULT
	local found
	found=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $1" 2>/dev/null | head -n 1)
	echo "deb ${found:-$2} $1 main"
}
{
	mirror bookworm http://deb.debian.org/debian
	mirror bookworm-updates http://deb.debian.org/debian
	mirror bookworm-security http://deb.debian.org/debian-security
} >"$scratch/sources.list"
apt-config dump | grep -E '^Acquire::(https?(::|:)|Check-|Retries)' >"$scratch/apt.conf" || true

SECONDS=0
mmdebstrap --quiet --variant=minbase --include=make,ca-certificates --aptopt="$scratch/apt.conf" \
	bookworm "$root" "$scratch/sources.list"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null 2>&1
cargo_config=${CARGO_HOME:-$HOME/.cargo}/config.toml
[[ ! -f $cargo_config ]] || install -D -m 644 "$cargo_config" "$root/root/.cargo/config.toml"
mkdir "$root/srv/mod_invites" # not in /root: some tests run as another user
git archive HEAD | tar -x -C "$root/srv/mod_invites"
echo "== fresh Debian $(cat "$root/etc/debian_version"): $SECONDS s"

network=()
while IFS= read -r -d '' variable; do
	network+=("$variable")
done < <(env -0 | grep -zE '^([a-z]+_proxy|[A-Z]+_PROXY|CARGO_(HTTP|NET|REGISTR|SOURCE)[A-Z_]*)=' || true)

# Mounts and processes of its own: both end with the command, whatever it started.
SECONDS=0 status=0
unshare --mount --pid --fork --kill-child bash -euc '
	# The root of a machine is a mount point, and specs that mount something rely on it.
	mount --bind "$0" "$0"
	mount -t proc proc "$0/proc"
	mount --rbind /sys "$0/sys"
	mount --rbind /dev "$0/dev"
	exec chroot "$0" env -i "${@:2}" HOME=/root LANG=C.UTF-8 TERM=dumb \
		PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		bash -c "cd /srv/mod_invites && { $1; }"
' "$root" "$command" "${network[@]}" || status=$?
echo "== $command: exit $status, $SECONDS s"
exit $status
