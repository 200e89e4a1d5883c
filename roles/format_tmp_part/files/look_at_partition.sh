# shellcheck shell=bash
# The file system that is on $KADEPLOY_FORMAT_PART, and the one that will be.
set -eu
[ -b "$KADEPLOY_FORMAT_PART" ] || { echo "no partition $KADEPLOY_FORMAT_PART on this node" >&2; exit 1; }
found=$(blkid --probe --match-tag TYPE --output value "$KADEPLOY_FORMAT_PART" || true)
echo "$KADEPLOY_FORMAT_PART: ${found:-no file system}"
printf '\036\n'
echo "$KADEPLOY_FORMAT_PART: $KADEPLOY_FORMAT_TYPE${KADEPLOY_FORMAT_FORCE:+, made anew}"
