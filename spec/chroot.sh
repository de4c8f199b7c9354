#!/bin/bash
# spec/chroot.sh make SUITE ROOT [PACKAGE…]   a minimal Debian in the new directory ROOT
# spec/chroot.sh run ROOT COMMAND             a shell command in there, as root in /srv/mod_invites
# Needs root and mmdebstrap. Network settings of this machine (mirror, proxy, CAs) are carried in.
set -euo pipefail

# The mirror that this machine's apt uses, if it has one for this suite.
mirror() { # SUITE DEFAULT
	local found
	found=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $1" 2>/dev/null)
	found=${found%%$'\n'*}
	echo "deb ${found:-$2} $1 main"
}

make() { # SUITE ROOT PACKAGE…
	local suite=$1 root=$2 settings
	shift 2
	settings=$(mktemp -d)
	trap "rm -r '$settings'" EXIT
	{
		mirror "$suite" http://deb.debian.org/debian
		if [[ $suite == @(bookworm|trixie) ]]; then
			mirror "$suite-updates" http://deb.debian.org/debian
			mirror "$suite-security" http://deb.debian.org/debian-security
		fi
	} >"$settings/sources.list"
	apt-config dump | grep -E '^Acquire::(https?(::|:)|Check-|Retries)' >"$settings/apt.conf" || true
	mmdebstrap --quiet --variant=minbase --include="$(IFS=,; echo "ca-certificates${*:+,$*}")" \
		--aptopt="$settings/apt.conf" "$suite" "$root" "$settings/sources.list"
	cp -L /etc/resolv.conf "$root/etc/resolv.conf"
	echo "127.0.0.1 localhost" >"$root/etc/hosts"
	cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
	chroot "$root" update-ca-certificates >/dev/null 2>&1
	mkdir "$root/srv/mod_invites" # not in /root: some tests run as another user
}

run() { # ROOT COMMAND
	local cargo_config=${CARGO_HOME:-$HOME/.cargo}/config.toml variable network=()
	[[ ! -f $cargo_config ]] || install -D -m 644 "$cargo_config" "$1/root/.cargo/config.toml"
	while IFS= read -r -d '' variable; do
		network+=("$variable")
	done < <(env -0 | grep -zE '^([a-z]+_proxy|[A-Z]+_PROXY|CARGO_(HTTP|NET|REGISTR|SOURCE)[A-Z_]*|PIP_(CERT|INDEX_URL|TRUSTED_HOST))=' || true)
	# Mounts and processes of its own: both end with the command, whatever it started.
	unshare --mount --pid --fork --kill-child bash -euc '
		# The root of a machine is a mount point, and specs that mount something rely on it.
		mount --bind "$0" "$0"
		mount -t proc proc "$0/proc"
		mount --rbind /sys "$0/sys"
		mount --rbind /dev "$0/dev"
		exec chroot "$0" env -i "${@:2}" HOME=/root LANG=C.UTF-8 TERM=dumb \
			PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
			bash -c "cd /srv/mod_invites && { $1; }"
	' "$1" "$2" "${network[@]}"
}

[[ $EUID == 0 ]] || { echo "needs root" >&2; exit 2; }
case ${1:-} in
	make | run) "$@" ;;
	*) echo "$0: make or run, not ${1:-nothing}" >&2; exit 2 ;;
esac
