#!/bin/bash
# spec/layers.sh [--self-test]
# The rules about layers that no compiler checks. --self-test plants a breach of each and expects it to be found.
set -uo pipefail

# What stands for each rule, and the only place where it may stand.
MLUA='\b(use|extern crate) +mlua\b|\bmlua::'
SQL='\b(SELECT|INSERT (OR [A-Z]+ )?INTO|REPLACE INTO|UPDATE .*\bSET|DELETE FROM|PRAGMA|(CREATE|DROP|ALTER) (UNIQUE )?(TABLE|INDEX|VIEW))\b'
CLOCK='\b(SystemTime|Instant|Utc|Local|OffsetDateTime)::now|\bos\.(time|clock)\b|\bos\.date\((\)|"[^"]*"\))|\butil\.time\b|CURRENT_TIMESTAMP|\bunixepoch\('
RANDOM_SOURCE='\b(use +)?(rand|getrandom|fastrand)::|\b(SysRng|OsRng|ThreadRng)\b|/dev/u?random|\bmath\.random\b|\butil\.random\b|\brandomblob\('

RULE='\b(decide|decide_name|decide_creation|supersedes|reserves|birth) *\('

# What may raise an error, called without protected.lib.lua: events, timers, providers, stores, and a pcall of one's own.
BARE_CALL='\bmodule[.:](fire_event|add_timer|hook[a-z_]*|wrap_[a-z_]+|handle_items|open_store)\b|\b(user|roster|storage)manager("\))?\.[a-z_]+ *\(|\btimer\.add_task\b|\bx?pcall\b'
# Where that is right: FILE|the line.
BARE_CALL_ALLOWED=(
	# protected.lib.lua stands on it, and these look for what a version of Prosody does not have.
	'compat.lib.lua|local found, lib = pcall(require, name);'
	'compat.lib.lua|compat.is_13 = pcall(require, "prosody.util.roles");'
	'compat.lib.lua|local has_human_io, human_io = pcall(compat.lib, "util.human.io");'
	# protected.lib.lua may be what is missing; the handler sets four fields and cannot fail.
	'mod_invites.lua|module:hook("user-registering", refuse_registration, 1000000);'
	'mod_invites.lua|has_all_parts, guard, bundled, form, limits, lineage, metrics, loader, prosodyctl, redemption, shell = pcall(function ()'
	# A timer of the module would end with it, and the guard does not.
	'guard.lib.lua|timer.add_task(0, protected.guard("Whether registration has to be closed cannot be told yet", function ()'
)

# Prints the lines that match outside the allowed place. Comments do not count.
breaches() { # REGEX ALLOWED DIRECTORY…
	local regex=$1 allowed=$2 file
	shift 2
	find "$@" \( -name '*.rs' -o -name '*.lua' \) ! -path "$allowed" | sort | while read -r file; do
		case $file in
			*.lua) sed 's/--.*//' "$file" ;;
			*) sed -E 's,(^|[[:space:]])//.*,,' "$file" ;;
		esac | grep -nE "$regex" | sed "s|^|$file:|"
	done
}

bare_calls() {
	local breach file code
	breaches "$BARE_CALL" '*/protected.lib.lua' lua | while IFS= read -r breach; do
		file=${breach%%:*} code=${breach#*:*:}
		code=${code#"${code%%[![:space:]]*}"}
		printf '%s\n' "${BARE_CALL_ALLOWED[@]}" | grep -Fxq "${file##*/}|$code" || printf '%s\n' "$breach"
	done
}

# Prints the lines that cite of docs/design/ what is not there: a page, or of a page a section ("§4.6": a heading, or an item of
# a numbered list in a section), a rule of the redemption ("rule 5") or a defect of the contract ("D12"). In test_contract.py
# every § and D is one of the contract's.
lost_citations() {
	{
		grep -rnIE --exclude-dir=golden --exclude-dir=target --exclude=layers.sh \
			'(architecture|contract|redemption)\.md|docs/design/|\b(redesign|faults|proofs|feasibility)\.md|[Cc]ontract (§|line)' \
			src lua spec docs README.md CHANGELOG.md
		grep -HnE '§|\bD[0-9]' spec/server/test_contract.py
	} | awk '
		function look(page, label) { if (!((page, label) in labels)) is_lost = 1 }
		!is_cited && FNR == 1 { page = FILENAME; sub(/.*\//, "", page); labels[page, ""]; section = "" }
		!is_cited && /^## [0-9]+\. / { section = $2 + 0; labels[page, "§" section] }
		!is_cited && /^### [0-9]+\.[0-9]+ / { section = $2; labels[page, "§" section] }
		!is_cited && /^[0-9]+\. / { labels[page, "§" section "." $1 + 0] }
		!is_cited && /^[0-9]+\. / && page == "redemption.md" && section == 1 { labels[page, "rule " $1 + 0] }
		!is_cited && /^\| D[0-9]+ \|/ { labels[page, $2] }
		is_cited {
			rest = $0
			sub(/^[^:]*:[0-9]+:/, "", rest)
			is_lost = rest ~ /(redesign|faults|proofs|feasibility)\.md|(^|[^/.a-z])[Cc]ontract (§|line)/
			is_of_contract = $0 ~ /^spec\/server\/test_contract\.py:/
			while (is_of_contract && match(rest, /(§[0-9]+(\.[0-9]+)?|D[0-9]+)/)) {
				if (substr(rest, RSTART - 1, 1) !~ /[A-Za-z0-9%]/) look("contract.md", substr(rest, RSTART, RLENGTH))
				rest = substr(rest, RSTART + RLENGTH)
			}
			while (match(rest, /(docs\/design\/[A-Za-z0-9_-]+|architecture|contract|redemption)\.md/)) {
				page = substr(rest, RSTART, RLENGTH)
				sub(/.*\//, "", page)
				look(page, "")
				rest = substr(rest, RSTART + RLENGTH)
				while (match(rest, /^`?[)]?(,| and|, and)? (§[0-9]+(\.[0-9]+)?|rule [0-9]+|D[0-9]+)/)) {
					label = substr(rest, RSTART, RLENGTH)
					sub(/^`?[)]?(,| and|, and)? /, "", label)
					look(page, label)
					rest = substr(rest, RSTART + RLENGTH)
				}
			}
			if (is_lost) print
		}' docs/design/*.md is_cited=1 -
}

check() { # in the current directory
	local passed=0 failed=0
	rule "mlua under src/lua/ only" "$(breaches "$MLUA" 'src/lua/*' src)"
	rule "SQL under src/store/ only" "$(breaches "$SQL" 'src/store/*' src lua)"
	rule "no rule is asked under src/store/" "$(breaches "$RULE" '' src/store)"
	rule "the clock in src/clock.rs, the random source in src/token.rs" \
		"$(breaches "$CLOCK" src/clock.rs src lua; breaches "$RANDOM_SOURCE" src/token.rs src lua)"
	rule "what may raise an error is called through protected.lib.lua" "$(bare_calls)"
	rule "what is cited of docs/design/ is there" "$(lost_citations)"
	echo "layers: $passed passed, $failed failed"
	((failed == 0))
}

rule() { # RULE BREACHES
	if [[ -z $2 ]]; then
		((++passed))
	else
		((++failed))
		printf 'breach: %s\n%s\n' "$1" "$2"
	fi
}

self_test() {
	local file planted output breach breaches=()
	copy=$(mktemp -d)
	trap 'rm -rf "$copy"' EXIT
	cp -R src lua spec docs README.md CHANGELOG.md "$copy"
	cd "$copy" || exit
	while IFS='|' read -r file planted; do
		# Each in a file of its own.
		[[ $file != */planted.* ]] || file=${file%.*}-${#breaches[@]}.${file##*.}
		mkdir -p "$(dirname "$file")"
		echo "$planted" >"$file"
		breaches+=("$file:1:$planted")
	done <<-'END'
		src/planted.rs|use mlua::Lua;
		src/planted.rs|connection.execute("DELETE FROM invite", [])
		lua/planted.lua|local rows = db:query("SELECT token FROM invite");
		src/store/planted.rs|if supersedes(&newer, &older) {
		src/store/planted.rs|let decision = redemption::decide(&view, &claim, now);
		src/store/planted.rs|match redemption.birth(&invite) {
		src/store/planted.rs|let now = std::time::SystemTime::now();
		lua/planted.lua|local now = os.time();
		src/store/planted.rs|rand::fill(&mut bytes);
		src/lua/planted.rs|OsRng.fill_bytes(&mut bytes);
		lua/planted.lua|module:fire_event("invite-used", summary);
		lua/planted.lua|local fire = module.fire_event;
		lua/planted.lua|module:add_timer(60, tidy);
		lua/planted.lua|timer.add_task(60, tidy);
		lua/planted.lua|module:hook("invite-used", count);
		lua/planted.lua|module:hook_global("user-deleted", function (event)
		lua/planted.lua|module:wrap_event("user-registered", around);
		lua/planted.lua|module:handle_items("adhoc-provider", added, removed);
		lua/planted.lua|if usermanager.user_exists(username, module.host) then
		lua/planted.lua|compat.lib("core.usermanager").initialize_host(host);
		lua/planted.lua|local roster = rostermanager.load_roster(username, module.host);
		lua/planted.lua|local store = storagemanager.open(module.host, "accounts");
		lua/planted.lua|local store = module:open_store("accounts");
		lua/planted.lua|local ok, err = pcall(work);
		lua/mod_invites/planted.lua|module:hook("user-registering", function (event)
		src/planted.rs|//! As docs/design/contracts.md says.
		src/planted.rs|//! As docs/design/contract.md §4.9 says.
		lua/planted.lua|-- See docs/design/contract.md §1, §0.11.
		docs/design/planted.md|As redemption.md rule 15 has it.
		spec/planted.py|# Bundled 0.12.3 raises (docs/design/contract.md D2 and D30).
		spec/planted.py|"""What programs rely on (contract §3.4)."""
		spec/server/test_contract.py|# §9: a section that is not there
	END
	output=$(check)
	for breach in "${breaches[@]}"; do
		if [[ $output != *"$breach"* ]]; then
			echo "layers: not found when planted: $breach"
			exit 1
		fi
	done
	echo "layers: ${#breaches[@]} of ${#breaches[@]} planted breaches found"
}

cd "$(dirname "$0")/.." || exit
case ${1:-} in
	--self-test) self_test ;;
	*) check ;;
esac
