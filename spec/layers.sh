#!/bin/bash
# spec/layers.sh [--self-test]
# The three layer rules that no compiler checks. --self-test plants a breach of each and expects it to be found.
set -uo pipefail

# What stands for each rule, and the only place where it may stand.
MLUA='\b(use|extern crate) +mlua\b|\bmlua::'
SQL='\b(SELECT|INSERT (OR [A-Z]+ )?INTO|REPLACE INTO|UPDATE .*\bSET|DELETE FROM|PRAGMA|(CREATE|DROP|ALTER) (UNIQUE )?(TABLE|INDEX|VIEW))\b'
CLOCK='\b(SystemTime|Instant|Utc|Local|OffsetDateTime)::now|\bos\.(time|clock)\b|\bos\.date\((\)|"[^"]*"\))|\butil\.time\b|CURRENT_TIMESTAMP|\bunixepoch\('
RANDOM_SOURCE='\b(use +)?(rand|getrandom|fastrand)::|\b(SysRng|OsRng|ThreadRng)\b|/dev/u?random|\bmath\.random\b|\butil\.random\b|\brandomblob\('

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

check() { # in the current directory
	local passed=0 failed=0
	rule "mlua under src/lua/ only" "$(breaches "$MLUA" 'src/lua/*' src)"
	rule "SQL under src/store/ only" "$(breaches "$SQL" 'src/store/*' src lua)"
	rule "the clock in src/clock.rs, the random source in src/token.rs" \
		"$(breaches "$CLOCK" src/clock.rs src lua; breaches "$RANDOM_SOURCE" src/token.rs src lua)"
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
	local file planted found=0
	copy=$(mktemp -d)
	trap 'rm -rf "$copy"' EXIT
	cp -R src lua "$copy"
	cd "$copy" || exit
	while IFS='|' read -r file planted; do
		mkdir -p "$(dirname "$file")"
		echo "$planted" >"$file"
		if [[ $(check) != *"$file:1:$planted"* ]]; then
			echo "layers: not found when planted in $file: $planted"
			exit 1
		fi
		((++found))
		rm "$file"
	done <<-'END'
		src/planted.rs|use mlua::Lua;
		src/planted.rs|connection.execute("DELETE FROM invite", [])
		lua/planted.lua|local rows = db:query("SELECT token FROM invite");
		src/store/planted.rs|let now = std::time::SystemTime::now();
		lua/planted.lua|local now = os.time();
		src/store/planted.rs|rand::fill(&mut bytes);
		src/lua/planted.rs|OsRng.fill_bytes(&mut bytes);
	END
	echo "layers: $found of $found planted breaches found"
}

cd "$(dirname "$0")/.." || exit
case ${1:-} in
	--self-test) self_test ;;
	*) check ;;
esac
