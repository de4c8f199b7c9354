# make build   the library for $(LUA), beside the module in lua/mod_invites/; with GLIBC=2.17 for any Linux from that libc on
# make demo    people inviting each other on real Prosodys
# make test    every ring of tests
# make clients a person with a link signs up in Gajim, on a virtual screen; pictures in target/clients/ (Debian 12)
# make busted  only the library's specs, seen from Lua
# make bench   how fast it is beside the bundled module and bare SQLite, with ten to a million invites; fails where it is too slow
# make scale   what an operator's commands cost with a million invites; fails where it is too much
# make bench-check  how many instructions a call takes, compared with those of spec/instructions.txt
# make faults  breaks servers and their disks in the middle of their work, two hundred rounds for each way; counts what is lost
# make fuzz    feeds nonsense to everything that reads, ten million times each; needs a nightly Rust
# make mutants breaks the redemption on purpose and prints which spec notices
# make lint    everything that is checked without running
# make deny    licences, sources and known faults of everything that is compiled into the library
# make install the module into PLUGINS, a directory of Prosody's plugin_paths; DESTDIR is honoured
# make rock    a binary rock for $(LUA), in target/rocks/$(LUA)/, a directory that luarocks and prosodyctl install from
# make matrix  the module on every Prosody and every Lua, into the table in the README (root, mmdebstrap)
# make licences  LICENSE-THIRD-PARTY.md, of what is linked into the library (cargo install cargo-about)
# make fresh   demo and test of the committed state on a bare Debian 12, 13 and the next one (root)
#
# FEATURES= leaves PostgreSQL out.
#
# On Debian 12 and newer each of them first installs what it lacks and says so: spec/machine.sh.

LUA ?= lua5.4
FEATURES ?= postgres
GLIBC ?=
PLUGINS ?= /usr/local/lib/prosody/modules
export LUA GLIBC
# luarocks passes one, and SQLite would be compiled anew for each way of spelling it.
unexport CC

CARGO = spec/cargo.sh
LUAS = lua51 luajit lua52 lua53 lua54
# Asked when used, for a fresh machine gets its Lua from the prerequisite.
FEATURE = $(shell $(LUA) -e 'io.write(jit and "luajit" or "lua"..(_VERSION:gsub("%D", "")))')
MODULE = lua/mod_invites
# What is linked here asks for the libc of here, or a newer one. Zig links against any that is asked for, and puts an unwinder
# of its own in: LuaJIT, whose errors unwind the C stack with that of libgcc, would crash at the first of them.
ifneq ($(GLIBC),)
ifneq ($(findstring luajit,$(LUA)),)
$(error GLIBC=$(GLIBC) is not for LuaJIT: build on the oldest system that it is to run on)
endif
endif
TARGET = $(shell uname -m)-unknown-linux-gnu
BUILD = $(if $(GLIBC),zigbuild --target $(TARGET).$(GLIBC),build) --target-dir $(TARGET_DIR)
TARGET_DIR = target/$(FEATURE)$(GLIBC:%=-glibc-%)
LIBRARY = $(TARGET_DIR)/$(if $(GLIBC),$(TARGET)/)release/libprosody_invites.so

.NOTPARALLEL:
.PHONY: build demo test clients busted bench bench-check scale faults fuzz mutants lint deny install rock matrix licences fresh clean machine-build machine-demo machine-test machine-clients machine-busted machine-bench machine-fuzz machine-lint machine-fresh

# One target directory per Lua: cargo gives the libraries of all of them the same file name. The library is renamed into
# place, since overwriting it would crash a server that has it mapped.
build: machine-build
	$(CARGO) $(BUILD) --release --locked --features "$(FEATURE) $(FEATURES)"
	cp $(LIBRARY) $(MODULE)/.prosody_invites.so
	mv -f $(MODULE)/.prosody_invites.so $(MODULE)/prosody_invites.so

demo: machine-demo build
	/usr/bin/python3 spec/server/demo.py

test: machine-test build
	spec/test.sh

clients: machine-clients build
	/usr/bin/python3 spec/server/clients.py

busted: machine-busted build
	spec/test.sh busted

bench: machine-bench build
	$(CARGO) bench --locked --bench library
	$(CARGO) bench --locked --no-run --bench bare_sqlite
	/usr/bin/python3 spec/server/bench.py

scale: machine-test build
	/usr/bin/python3 spec/server/scale.py

bench-check: machine-fuzz build
	spec/instructions.sh

# On every Prosody of this machine, also what `make test` shows on one.
faults: machine-test build
	SPEC_VERSIONS="$$(cat target/prosody/versions)" SPEC_ROUNDS=100 \
		/usr/bin/python3 -m pytest -n 2 -q spec/server/test_faults.py spec/server/test_crash.py spec/server/test_storm.py
	SPEC_VERSIONS="$$(cat target/prosody/versions)" SPEC_LEASE=60 SPEC_ROUNDS=20 \
		/usr/bin/python3 -m pytest -n 8 -q spec/server/test_lost_claims.py
	SPEC_MANY=100000 /usr/bin/python3 -m pytest -n 2 -q spec/server/test_many.py -k restart

fuzz: machine-fuzz build
	spec/fuzz.sh
	spec/valgrind.sh

mutants: machine-test build
	spec/mutants.sh

lint: machine-lint
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --features lua54,postgres -- -D warnings
	$(CARGO) clippy --locked --all-targets --features lua54 -- -D warnings
	for lua in $(LUAS); do $(CARGO) check --locked --features $$lua || exit; done
	luacheck lua spec
	spec/layers.sh --self-test
	spec/layers.sh

deny: machine-build
	spec/deny.sh

install:
	install -d $(DESTDIR)$(PLUGINS)/mod_invites
	install -m 644 $(MODULE)/*.lua $(DESTDIR)$(PLUGINS)/mod_invites
	cp $(MODULE)/prosody_invites.so $(DESTDIR)$(PLUGINS)/mod_invites/.prosody_invites.so
	mv -f $(DESTDIR)$(PLUGINS)/mod_invites/.prosody_invites.so $(DESTDIR)$(PLUGINS)/mod_invites/prosody_invites.so

# The name of a binary rock does not tell for which Lua it is, so it asks for it. LuaJIT is a Lua 5.1 to LuaRocks.
ROCKS = target/rocks/$(notdir $(LUA))
LUA_VERSION = $(shell $(LUA) -e 'io.write((_VERSION:gsub("[^%d.]", "")))')
LUAROCKS = luarocks --lua-version=$(LUA_VERSION) --tree=$(CURDIR)/$(ROCKS)/tree

rock: machine-build
	rm -rf $(ROCKS)
	mkdir -p $(ROCKS)
	for spec in *.rockspec; do sed 's/"lua [^"]*"/"lua ~> $(LUA_VERSION)"/' $$spec >$(ROCKS)/$$spec; done
	$(LUAROCKS) make $(ROCKS)/*.rockspec LUA=$$(command -v $(LUA))
	cd $(ROCKS) && $(LUAROCKS) pack mod_invites
	luarocks-admin make_manifest $(ROCKS)

matrix:
	spec/matrix.sh

licences:
	$(CARGO) about generate --offline --locked --all-features --fail spec/licences/about.hbs -c spec/licences/about.toml \
		-o LICENSE-THIRD-PARTY.md

fresh: machine-fresh
	spec/fresh.sh

clean:
	rm -rf target $(MODULE)/*.so

machine-build machine-demo machine-test machine-clients machine-busted machine-bench machine-fuzz machine-lint machine-fresh: machine-%:
	@spec/machine.sh $*
