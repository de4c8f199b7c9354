#!/bin/bash
# spec/machine.sh WHAT…  (build, demo, test, busted, clients, bench, fuzz, lint, matrix, fresh)
#
# Makes a Debian machine, 12 or newer, ready for `make WHAT`: says what is missing and why, and installs that. The Prosodys
# to run against are those of the machine's own release, unpacked under target/prosody/; target/prosody/versions says which.
# The prosody package is never installed: it would start a server.
set -euo pipefail
cd "$(dirname "$0")/.."

lua=${LUA:-lua5.4}
rust=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
missing=()
unpacked=() # Python packages, as DIRECTORY PACKAGE==VERSION…; each directory under target/
packed=()   # npm packages, as DIRECTORY VERSION SHA256; the directory under target/ is named like the package

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

need_npm() { # REASON PACKAGE VERSION SHA256
	[[ ! -d target/$2 ]] || return 0
	echo "missing: $2 $3 ($1)"
	packed+=("${*:2}")
}

need_for_build() {
	need "Rust links with gcc, and the bundled SQLite is C" gcc libc6-dev make ca-certificates
	command -v "$lua" >/dev/null || need "the Lua to build for" "$lua"
	need_rust
	[[ -z ${GLIBC:-} ]] || need_python "links for an older libc" zig cargo-zigbuild==0.24.1 ziglang==0.17.1
}

# Debian has Rust as rustc and cargo and, in releases where those are old, once more as rustc-web and cargo-web.
need_rust() {
	local suffix version other seen=()
	spec/cargo.sh --version >/dev/null 2>&1 && return
	update_lists
	for suffix in "" -web; do
		version=$(apt-cache policy "rustc$suffix" | sed -n 's/^  Candidate: \([0-9].*\)/\1/p')
		seen+=("rustc$suffix ${version:-not at all}")
		printf '%s\n' "$rust" "${version:-0}" | sort -VC || continue
		for other in rustc rustc-web rustup; do
			[[ $other != "rustc$suffix" ]] || continue
			installed "$other" || continue
			echo "cargo$suffix replaces the package $other, which you may want to keep. Run as root:" \
				"apt-get install cargo$suffix rustc$suffix, or get Rust from https://rustup.rs" >&2
			exit 2
		done
		need "Rust $rust or newer" "cargo$suffix" "rustc$suffix"
		return
	done
	echo "apt has $(IFS=,; echo "${seen[*]}"), and Rust $rust is needed: get it from https://rustup.rs" >&2
	exit 2
}

need_for_demo() {
	local version
	unpack_prosodys
	for version in $(<target/prosody/versions); do
		need_libraries "$version"
	done
	need "what Prosody asks the DNS with" lua-unbound
	need "the XMPP clients that talk to it" python3 python3-slixmpp
}

need_for_test() {
	need "the test runners" lua-busted python3-pytest python3-pytest-xdist python3-jsonschema
	need "Prosody's own SQL storage, to import from" lua-dbi-sqlite3
	need "to watch disk flushes, make them fail, and read the database" strace sqlite3
	need "to turn a server's clock" libfaketime
	compgen -G "/usr/lib/postgresql/*/bin/postgres" >/dev/null || need "the database that servers share" postgresql
	need "certificates for it, and its processes" openssl procps
	need "to pack the rock; luarocks insists on headers, though we need none" luarocks liblua5.4-dev
	need "the invite pages, and the browser that looks at them" libjs-bootstrap4 libjs-jquery chromium openssl
	need_python "drives the browser" playwright playwright==1.65.2
	need_npm "a program that people join with, in the browser" converse.js 14.0.0 \
		634f31fa0f7b0e47f1abc60d870ff6805c737577399920ebe92da4c7e5bcaff0
	# Without what it depends on: that is Debian's, and PyGObject would be compiled.
	need_python "the library of another one" nbxmpp nbxmpp==7.4.0 --no-deps
	need "what that library stands on" python3-gi gir1.2-soup-3.0 glib-networking python3-idna python3-packaging \
		python3-precis-i18n
}

need_for_clients() {
	need "a program that people join with, and how it looks" gajim fonts-dejavu-core adwaita-icon-theme librsvg2-common
	need "a screen for it, and a person at it" xvfb openbox xdotool xclip imagemagick
	need "to know what is on the screen" dbus-daemon at-spi2-core python3-gi gir1.2-atspi-2.0
}

need_for_busted() {
	need "the test runner, and the Lua that it runs in" lua5.4 lua-busted
}

need_for_fresh() {
	need "a bare Debian for each suite" mmdebstrap
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
}

need_for_lint() {
	need "checks the Lua files" lua-check
	need_cargo_tool fmt rustfmt rustfmt rustfmt-web
	need_cargo_tool clippy clippy rust-clippy rust-web-clippy
}

need_cargo_tool() { # SUBCOMMAND RUSTUP-COMPONENT PACKAGE PACKAGE-FOR-CARGO-WEB
	spec/cargo.sh "$1" --version >/dev/null 2>&1 && return
	if command -v rustup >/dev/null; then
		echo "missing: $2 (checks the Rust files). Run: rustup component add $2" >&2
		exit 2
	fi
	if installed cargo-web || [[ " ${missing[*]} " == *" cargo-web "* ]]; then
		need "checks the Rust files" "$4"
	else
		need "checks the Rust files" "$3"
	fi
}

sudo=()
can_install() {
	((EUID)) || return 0
	command -v sudo >/dev/null || return
	sudo=(sudo)
}

updated=
update_lists() {
	[[ ! $updated ]] && can_install || return 0
	"${sudo[@]}" apt-get update -qq
	updated=yes
}

install_missing() {
	local install config=/etc/postgresql-common/createcluster.conf
	((${#missing[@]})) || return 0
	# --no-remove: nothing that its owner put on this machine goes away for us.
	install=(apt-get install -y --no-install-recommends --no-remove -o DPkg::Lock::Timeout=120)
	can_install || {
		echo "this needs root, and there is no sudo. Run as root: apt-get update && ${install[*]} ${missing[*]}" >&2
		[[ " ${missing[*]} " != *" postgresql "* ]] ||
			echo "(postgresql starts a server, unless $config says create_main_cluster = false)" >&2
		exit 2
	}
	update_lists
	echo "installing: ${missing[*]}"
	mkdir -p target
	if [[ " ${missing[*]} " == *" postgresql "* ]]; then
		# By itself first, to be told that there is to be no cluster: it would run from now on.
		quietly "${install[@]}" postgresql-common
		"${sudo[@]}" sed -i 's/^#*create_main_cluster .*/create_main_cluster = false/' $config
		grep -q '^create_main_cluster = false' $config
	fi
	quietly "${install[@]}" "${missing[@]}"
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

# What a package ships ready for use, nothing of what it depends on; no script of it runs, and npm is not needed.
install_npm() {
	local line package version sum
	mkdir -p target
	for line in "${packed[@]}"; do
		read -r package version sum <<<"$line"
		echo "unpacking $package $version into target/$package"
		rm -rf "target/.$package"
		mkdir "target/.$package"
		python3 -c 'import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())' \
			"${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}/$package/-/$package-$version.tgz" >"target/.$package.tgz"
		sha256sum --check --quiet <<<"$sum  target/.$package.tgz"
		tar -xzf "target/.$package.tgz" -C "target/.$package" --strip-components=1
		rm "target/.$package.tgz"
		mv -T "target/.$package" "target/$package"
	done
}

# An apt of our own under target/apt: the machine's sources stay as they are, and no root is needed.
apt=$PWD/target/apt
own_apt() {
	apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none \
		-o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt/cache" "$@"
}

update_own_apt() { # SUITE
	local mirror signed='' keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	# To its end: apt-get fails if nobody reads on.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' | sed -n '/\/debian\/\?$/p')
	mirror=${mirror%%$'\n'*}
	[[ ! -f $keyring ]] || signed="[signed-by=$keyring]"
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
	echo "deb $signed ${mirror:-http://deb.debian.org/debian} $1 main" >"$apt/sources.list"
	own_apt update
}

# Into target/prosody/VERSION, and the community's modules apart from Prosody's own, into VERSION-modules: by now one of
# them may bear the name of one in Prosody. target/prosody/SUITE, written last, has the version.
unpack_prosody() { # SUITE
	local suite=$1 package version work
	echo "unpacking prosody and prosody-modules of $suite into target/prosody"
	update_own_apt "$suite"
	work=$(mktemp -d "$apt/unpack.XXXXXX")
	(cd "$work" && own_apt download "prosody/$suite" "prosody-modules/$suite")
	version=$(dpkg-deb -f "$work"/prosody_*.deb Version)
	version=${version%-*}
	for package in prosody prosody-modules; do
		# With its control file, for need_libraries.
		dpkg-deb -R "$work/$package"_*.deb "$work/$package"
		rm -rf "target/prosody/$version${package#prosody}"
		mv -T "$work/$package" "target/prosody/$version${package#prosody}"
	done
	rm -r "$work"
	echo "$version" >"target/prosody/$suite"
}

# Those of this machine's release: the libraries of another one's are missing here.
unpack_prosodys() {
	local suite suites versions=()
	suites=("$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)")
	if [[ ${suites[0]} == bookworm ]]; then
		suites+=(bookworm-backports)
	else
		echo "Prosody 0.12 is left out: the libraries that it needs are in Debian 12 (bookworm) alone"
	fi
	mkdir -p target/prosody
	for suite in "${suites[@]}"; do
		[[ -f target/prosody/$suite ]] || unpack_prosody "$suite"
		versions+=("$(<"target/prosody/$suite")")
	done
	echo "${versions[*]}" >target/prosody/versions
}

# Of what its package depends on; the rest is for the package's own scripts, which make its user and its certificate.
need_libraries() { # VERSION
	local libraries packages
	libraries=$(sed -n 's/^Depends: //p' "target/prosody/$1/DEBIAN/control" | tr , '\n' | grep -E '^ *(lib|lua)' | paste -sd,)
	[[ $(to_install "$libraries" 2>/dev/null || echo unknown) ]] || return 0
	update_lists
	packages=$(to_install "$libraries")
	# shellcheck disable=SC2086 # several words
	need "the libraries of Prosody $1" $packages
}

to_install() { # DEPENDENCIES, as a package has them
	apt-get -qq --no-install-recommends --simulate satisfy "$1" | sed -n 's/^Inst \([^ ]*\).*/\1/p'
}

if ! command -v dpkg-query >/dev/null; then
	# Elsewhere, as when luarocks builds on another distribution, nothing is installed.
	if [[ $* == build ]] && command -v cc >/dev/null && command -v "$lua" >/dev/null && spec/cargo.sh --version; then
		exit
	fi
	echo "knows Debian only. To build: cc, $lua and Rust $rust or newer; for the rest see the packages named in $0" >&2
	exit 2
fi

parts=()
for what; do
	case $what in
		build) parts+=(build) ;;
		demo) parts+=(build demo) ;;
		test) parts+=(build demo test) ;;
		busted) parts+=(build busted) ;;
		clients) parts+=(build demo test clients) ;;
		bench) parts+=(build demo test bench) ;;
		fuzz) parts+=(build busted fuzz) ;;
		lint) parts+=(build lint) ;;
		matrix) parts+=(build demo test matrix) ;;
		fresh) parts+=(fresh) ;;
		*) echo "$0: build, demo, test, busted, clients, bench, fuzz, lint, matrix or fresh, not $what" >&2; exit 2 ;;
	esac
done
for part in $(printf '%s\n' "${parts[@]}" | awk '!seen[$0]++'); do
	"need_for_$part"
done
install_missing
install_python
install_npm
