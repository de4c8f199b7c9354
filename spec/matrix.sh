#!/bin/bash
# On a Debian 12: runs the specs on every Prosody that Debian has shipped since 0.11, and the library of every Lua in its
# interpreter, and writes the table in the README. Needs root: a Prosody of another Debian stands in a root directory of
# its own, made once; remove target/roots to have a newer one. What may be left out, and why, stands in spec/matrix/skips.toml.
set -euo pipefail
cd "$(dirname "$0")/.."

# The last one is that of the Prosodys of this machine, and stays in the checkout.
luas=(lua5.1 luajit lua5.2 lua5.3 lua5.4)
GLIBC=2.17 spec/machine.sh matrix

# What an operator installs for the seed's setup.
packages=(prosody prosody-modules lua-sec lua-unbound lua-dbi-sqlite3 libjs-bootstrap4 libjs-jquery luarocks)

root() { # SUITE
	local suite=$1 work=target/roots/.$1 version
	[[ ! -f target/roots/$suite ]] || return 0
	echo "== a Debian $suite"
	rm -rf --one-file-system "$work"
	mkdir -p target/roots
	spec/chroot.sh make "$suite" "$PWD/$work" "${packages[@]}"
	version=$(chroot "$work" dpkg-query -Wf '${Version}' prosody)
	mv -T "$work" "target/roots/${version%%-*}"
	echo "${version%%-*}" >"target/roots/$suite"
}

root bullseye
root forky # where the newest 13.0 is

make build
for lua in "${luas[@]}"; do
	echo "== the library for $lua"
	if [[ $lua == luajit ]]; then
		make rock LUA="$lua"
	else
		make rock LUA="$lua" GLIBC=2.17
	fi
	make install PLUGINS="target/plugins/$lua"
done

spec/cargo.sh build --locked --features lua54,conformance --target-dir target/conformance
mkdir -p target/matrix
status=0
/usr/bin/python3 -m pytest -q -n 2 -p no:cacheprovider --junitxml=target/matrix/luas.xml spec/matrix || status=1
SPEC_VERSIONS="$(cat target/roots/bullseye target/prosody/versions target/roots/forky)" \
	/usr/bin/python3 -m pytest -q -n 2 -p no:cacheprovider --junitxml=target/matrix/prosodys.xml spec/server || status=1
/usr/bin/python3 spec/matrix/table.py target/matrix README.md || status=1
exit $status
