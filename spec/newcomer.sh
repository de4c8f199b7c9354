#!/bin/bash
# The way of an operator on a bare Debian 12 (bookworm), as root, timed: Prosody and its modules, this module as the README says, the
# documentation's configuration word for word, a link, and its page. Run by `spec/fresh.sh bookworm spec/newcomer.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { # WHAT
	echo "-- $SECONDS s: $1"
}

step "Prosody, its modules and the libraries of their pages, from bookworm-backports"
cat /etc/apt/sources.list.d/*.list | sed -n 's/ bookworm main$/ bookworm-backports main/p' >backports.list
mv backports.list /etc/apt/sources.list.d/
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Nothing starts here: there is no init.
apt-get install -qq -y -t bookworm-backports prosody prosody-modules libjs-bootstrap4 libjs-jquery curl openssl >/dev/null

step "make build"
make build

step "the configuration"
cat >/etc/prosody/conf.d/example.com.cfg.lua <<END
plugin_paths = { "$PWD/lua" }
http_interfaces = { "127.0.0.1" }

$(sed -n '/^VirtualHost "example.com"$/,/^```$/{/^```$/!p}' README.md)
END
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=example.com \
	-keyout /etc/prosody/certs/example.com.key -out /etc/prosody/certs/example.com.crt 2>/dev/null
chown prosody /etc/prosody/certs/example.com.key

step "prosody"
install -d -o prosody -g prosody /run/prosody
runuser -u prosody -- prosody -F &
server=$!
trap 'kill $server' EXIT
for _ in {1..100}; do
	! curl -s -o /dev/null http://127.0.0.1:5280/ || break
	sleep 0.1
done

step "prosodyctl mod_invites generate example.com"
link=$(prosodyctl mod_invites generate example.com | tail -n 1)
echo "$link"
page=$(curl -s -H 'Host: example.com' "${link/https:\/\/example.com/http:\/\/127.0.0.1:5280}")
grep -q 'Invite to example.com' <<<"$page"
grep -q "register?t=${link#*\?}" <<<"$page"
curl -s -H 'Host: example.com' -d "user=romeo&password=under+the+balcony&token=${link#*\?}" \
	"http://127.0.0.1:5280/register?t=${link#*\?}" | grep -q 'romeo@example.com'
curl -s -H 'Host: example.com' "http://127.0.0.1:5280/invite?${link#*\?}" | grep -q 'Invite expired'
step "an account was made with the link, and the link is spent"
