#!/bin/bash
# spec/stage.sh NAME SECONDS -- COMMAND…
# Runs the command, prints the stage's name and how long it took, and stops it when it exceeds its budget.
set -uo pipefail
name=$1 budget=$2
shift 3
foreground=()
[[ -t 0 ]] && foreground=(--foreground) # else Ctrl-C would not reach the command

echo "== $name (at most $budget s)"
SECONDS=0
timeout "${foreground[@]}" --kill-after=10 "$budget" "$@"
status=$?
case $status in
	0) verdict=ok ;;
	124 | 137) verdict="STOPPED, over its budget" ;;
	*) verdict="FAILED, exit $status" ;;
esac
echo "== $name: $verdict, $SECONDS of $budget s"
exit "$status"
