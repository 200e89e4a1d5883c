# shellcheck shell=bash
set -eu
root=$(findmnt -no SOURCE / 2>/dev/null || awk '$2 == "/" { print $1 }' /proc/mounts | tail -n 1)
[ "$(readlink -f "$root")" = "$(readlink -f "$KADEPLOY_ROOT_PART")" ] && exit 0
echo "bad root partition: / is on $root, not on $KADEPLOY_ROOT_PART" >&2
exit 1
