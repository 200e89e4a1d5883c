# shellcheck shell=bash
# Detached: this script ends, and with it the ssh session, before the node goes down.
set -eu
sync
setsid sh -c 'sleep 1; /sbin/reboot -f || reboot -f' < /dev/null > /dev/null 2>&1 &
