#!/bin/bash
# spec/machine.sh WHAT…  (build, demo, test, bench, fuzz, lint, matrix)
#
# Makes a Debian 12 machine ready for `make WHAT`: says what is missing and why, installs that, and unpacks the Prosodys
# to run against under target/prosody/. The prosody package is never installed: it would start a server.
set -euo pipefail
cd "$(dirname "$0")/.."

lua=${LUA:-lua5.4}
rust=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
missing=()
unpacked=() # Python packages, as DIRECTORY PACKAGE==VERSION…; each directory under target/

installed() { # PACKAGE
	[[ $(dpkg-query -Wf '${db:Status-Status}' "$1" 2>/dev/null) == installed* ]]
}

need() { # REASON PACKAGE…
	local reason=$1 package absent=()
	shift
	for package; do
		installed "$package" || [[ " ${missing[*]} " == *" $package "* ]] || absent+=("$package")
	done
	((${#absent[@]})) || return 0
	echo "missing: ${absent[*]} ($reason)"
	missing+=("${absent[@]}")
}

need_python() { # REASON DIRECTORY PACKAGE==VERSION…
	local reason=$1 directory=$2
	shift 2
	[[ ! -d target/$directory && " ${unpacked[*]}" != *" $directory "* ]] || return 0
	need "fetches Python packages" python3-pip
	echo "missing: $* ($reason)"
	unpacked+=(" $directory $*")
}

need_for_build() {
	need "Rust links with gcc, and the bundled SQLite is C" gcc libc6-dev make ca-certificates
	command -v "$lua" >/dev/null || need "the Lua to build for" "$lua"
	spec/cargo.sh --version >/dev/null 2>&1 || need "Rust $rust or newer; Debian's plain cargo is older" cargo-web rustc-web
	[[ -z ${GLIBC:-} ]] || need_python "links for an older libc" zig cargo-zigbuild==0.24.1 ziglang==0.17.1
}

need_for_demo() {
	need "the Lua libraries that Prosody needs" \
		lua5.4 lua-bitop lua-expat lua-filesystem lua-sec lua-socket lua-unbound libicu72 libssl3
	need "the XMPP clients that talk to it" python3 python3-slixmpp
}

need_for_test() {
	need "the test runners" lua-busted python3-pytest python3-pytest-xdist python3-jsonschema
	need "Prosody's own SQL storage, to import from" lua-dbi-sqlite3
	need "to watch disk flushes, make them fail, and read the database" strace sqlite3
	need "to turn a server's clock" libfaketime
	need "the database that servers share, and its certificates" postgresql-common postgresql-15 openssl procps
	need "to pack the rock; luarocks insists on headers, though we need none" luarocks liblua5.4-dev
	need "the invite pages, and the browser that looks at them" libjs-bootstrap4 libjs-jquery chromium openssl
	need_python "drives the browser" playwright playwright==1.65.2
}

need_for_matrix() {
	need "a Debian for each Prosody" mmdebstrap
	need "every Lua that there is a library for" lua5.1 luajit lua5.2 lua5.3 lua5.4 binutils
	need "luarocks insists on headers" liblua5.1-0-dev libluajit-5.1-dev liblua5.2-dev liblua5.3-dev liblua5.4-dev
}

need_for_bench() {
	need "draws the figures" python3-matplotlib
}

need_for_fuzz() {
	need "looks at every access to memory, and counts instructions" valgrind
	need "the Lua and the test runner that it looks at" lua5.4 lua-busted
}

need_for_lint() {
	need "checks the Lua files" lua-check
	need_cargo_tool fmt rustfmt rustfmt-web
	need_cargo_tool clippy clippy rust-web-clippy
}

need_cargo_tool() { # SUBCOMMAND RUSTUP-COMPONENT PACKAGE
	spec/cargo.sh "$1" --version >/dev/null 2>&1 && return
	if command -v rustup >/dev/null; then
		echo "missing: $2 (checks the Rust files). Run: rustup component add $2" >&2
		exit 2
	fi
	need "checks the Rust files" "$3"
}

install_missing() {
	local sudo=() install
	((${#missing[@]})) || return 0
	# --no-remove: nothing that its owner put on this machine goes away for us.
	install=(apt-get install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120 "${missing[@]}")
	if ((EUID)); then
		command -v sudo >/dev/null || {
			echo "this needs root, and there is no sudo. Run as root: apt-get update && ${install[*]}" >&2
			exit 2
		}
		sudo=(sudo)
	fi
	"${sudo[@]}" apt-get update -qq
	[[ " ${missing[*]} " != *" cargo-web "* ]] || check_cargo_web
	echo "installing: ${missing[*]}"
	mkdir -p target
	if [[ " ${missing[*]} " == *" postgresql-common "* ]]; then
		# By itself first, to be told that there is to be no cluster: it would run from now on.
		quietly "${install[@]:0:${#install[@]}-${#missing[@]}}" postgresql-common
		"${sudo[@]}" sed -i 's/^#*create_main_cluster .*/create_main_cluster = false/' \
			/etc/postgresql-common/createcluster.conf
	fi
	quietly "${install[@]}"
}

quietly() { # COMMAND…
	"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive "$@" >target/apt.log 2>&1 || {
		tail -n 20 target/apt.log >&2
		exit 1
	}
}

install_python() {
	local line directory packages
	mkdir -p target
	for line in "${unpacked[@]}"; do
		read -r directory packages <<<"$line"
		echo "unpacking $packages into target/$directory"
		rm -rf "target/.$directory"
		# shellcheck disable=SC2086 # several words
		/usr/bin/python3 -m pip install --quiet --target "target/.$directory" $packages >target/pip.log 2>&1 || {
			tail -n 20 target/pip.log >&2
			exit 1
		}
		mv -T "target/.$directory" "target/$directory"
	done
}

check_cargo_web() {
	local candidate
	candidate=$(apt-cache policy cargo-web | sed -n 's/^  Candidate: //p')
	if ! printf '%s\n' "$rust" "${candidate:-0}" | sort -VC; then
		echo "apt has cargo-web ${candidate:-not at all}, and $rust is needed: get Rust from https://rustup.rs" >&2
		exit 2
	fi
	for package in cargo rustc rustup; do
		installed "$package" || continue
		echo "cargo-web replaces the package $package, which you may want to keep. Run as root:" \
			"apt-get install cargo-web rustc-web, or get Rust from https://rustup.rs" >&2
		exit 2
	done
}

# An apt of our own under target/apt: the machine's sources stay as they are, and no root is needed.
apt=$PWD/target/apt
own_apt() {
	apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" "$@"
}

update_own_apt() {
	local mirror suite signed='' keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed -n '/\/debian\/\?$/{p;q}')
	[[ ! -f $keyring ]] || signed="[signed-by=$keyring]"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	for suite in bookworm bookworm-backports; do
		echo "deb $signed ${mirror:-http://deb.debian.org/debian} $suite main"
	done >"$apt/sources.list"
	own_apt update
}

updated=
unpack() { # PACKAGE VERSION SUITE DIRECTORY
	local package=$1 version=$2 suite=$3 directory=target/prosody/$4 work found
	[[ ! -d $directory ]] || return 0
	echo "unpacking $package of $suite into $directory"
	[[ $updated ]] || update_own_apt
	updated=yes
	mkdir -p target/prosody
	work=$(mktemp -d "$apt/$package.XXXXXX")
	(cd "$work" && own_apt download "$package/$suite")
	found=$(dpkg-deb -f "$work"/*.deb Version)
	if [[ $found != "$version"* ]]; then
		rm -r "$work"
		echo "$suite now has $package $found, and the tests are about ${version%-}" >&2
		exit 1
	fi
	dpkg-deb -x "$work"/*.deb "$work/root"
	# Renamed when whole: a run that was cut off must not leave half a Prosody behind.
	mv -T "$work/root" "$directory"
	rm -r "$work"
}

unpack_prosodys() {
	unpack prosody 0.12.3- bookworm 0.12.3
	unpack prosody 13.0.1- bookworm-backports 13.0.1
	# Apart from Prosody's own: by now a community module may bear the name of one in Prosody.
	unpack prosody-modules '' bookworm 0.12.3-modules
	unpack prosody-modules '' bookworm-backports 13.0.1-modules
}

if ! command -v dpkg-query >/dev/null; then
	# Elsewhere, as when luarocks builds on another distribution, nothing is installed.
	if [[ $* == build ]] && command -v cc >/dev/null && command -v "$lua" >/dev/null && spec/cargo.sh --version; then
		exit
	fi
	echo "knows Debian only. To build: cc, $lua and Rust $rust or newer; for the rest see the packages named in $0" >&2
	exit 2
fi

for what; do
	case $what in
		build) need_for_build ;;
		demo) need_for_build && need_for_demo ;;
		test) need_for_build && need_for_demo && need_for_test ;;
		bench) need_for_build && need_for_demo && need_for_test && need_for_bench ;;
		fuzz) need_for_build && need_for_fuzz ;;
		lint) need_for_build && need_for_lint ;;
		matrix) need_for_build && need_for_demo && need_for_test && need_for_matrix ;;
		*) echo "$0: build, demo, test, bench, fuzz, lint or matrix, not $what" >&2; exit 2 ;;
	esac
done
install_missing
install_python
[[ " $* " != *" demo "* && " $* " != *" test "* && " $* " != *" bench "* && " $* " != *" matrix "* ]] || unpack_prosodys
