#!/bin/bash
# spec/postgres.sh [DIRECTORY]
# A PostgreSQL of its own in a scratch directory, on loopback, for as long as standard input is open; then it is gone.
# Prints PORT and DIRECTORY when it is ready; its socket is in that directory, its data in data/, its log in log. Reads
# commands, one a line, and answers each with "done": start, stop, kill, freeze, thaw, database NAME, sql DATABASE STATEMENT.
#
# postgres is the superuser, on the socket alone and without a password. prosody owns the databases, and has one.
set -euo pipefail
PASSWORD='p@ss/word?'

binaries=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
[[ -x $binaries/postgres ]] || { echo "no PostgreSQL server here: spec/machine.sh test installs it" >&2; exit 2; }

base=${1:-${TMPDIR:-/tmp}} fsync=on
if [[ ! ${1:-} ]]; then # what is tested is not the disk
	fsync=off
	[[ ! -d /dev/shm ]] || base=/dev/shm
fi
directory=$(mktemp -d -p "$base" postgres-spec.XXXXXX)
as_user=()
if ((EUID == 0)); then # it refuses to run as root
	as_user=(setpriv --reuid=nobody "--regid=$(id -g nobody)" --clear-groups)
	chown nobody "$directory"
fi
chmod 755 "$directory"
cd "$directory"

# A child of this shell, for its pid is to be free as soon as it is killed.
start() {
	"${as_user[@]}" "$binaries/postgres" -D data -c port="$port" -c listen_addresses=127.0.0.1 \
		-c unix_socket_directories="$directory" -c fsync=$fsync -c max_connections=200 \
		-c dynamic_shared_memory_type=mmap </dev/null &>>log &
	postmaster=$!
	until pg_isready --quiet --host="$directory" --port="$port"; do
		kill -0 $postmaster 2>/dev/null || return 1
		sleep 0.02
	done
}

signal_all() { # NAME
	# One that has gone meanwhile is no trouble.
	kill "-$1" $postmaster $(pgrep -P $postmaster) 2>/dev/null || true
}

stop() { # SIGNAL
	signal_all CONT
	kill "-$1" $postmaster 2>/dev/null || true
	wait $postmaster 2>/dev/null || true
}

psql() {
	command psql --host="$directory" --port="$port" --username=postgres --no-psqlrc --quiet --set=ON_ERROR_STOP=1 "$@"
}

postmaster=
trap '[[ ! $postmaster ]] || stop QUIT; rm -rf "$directory"' EXIT

"${as_user[@]}" "$binaries/initdb" --pgdata=data --username=postgres --encoding=UTF8 --locale=C.UTF-8 --no-sync \
	--auth-local=trust --auth-host=scram-sha-256 >initdb.log 2>&1 || { cat initdb.log >&2; exit 1; }
# Below those of the Prosodys. Whoever has it first keeps it, and the other goes on.
port=$((13000 + BASHPID % 5000))
until start; do
	grep -q 'Address already in use' log || { cat log >&2; exit 1; }
	port=$((port + 1))
	: >log
done
psql --dbname=postgres --command="CREATE ROLE prosody LOGIN PASSWORD '$PASSWORD'"
echo "$port $directory"

while read -r command argument; do
	case $command in
		start) start ;;
		stop) stop INT ;;
		kill) signal_all KILL && stop KILL ;;
		freeze) signal_all STOP ;;
		thaw) signal_all CONT ;;
		sql) psql --dbname="${argument%% *}" --command="${argument#* }" ;;
		database) psql --dbname=postgres --command="CREATE DATABASE $argument OWNER prosody" ;;
		*) echo "$0: $command is unknown" >&2; exit 2 ;;
	esac
	echo "done"
done
