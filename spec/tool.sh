#!/bin/bash
# spec/tool.sh NAME: prints the path of a cargo tool; builds it under target/tools if it is nowhere.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v "$1" && exit
tool=target/tools/bin/$1
if [[ ! -x $tool ]]; then
	echo "building $1, once" >&2
	spec/cargo.sh install --quiet --locked --root target/tools "$1" >&2
fi
echo "$PWD/$tool"
