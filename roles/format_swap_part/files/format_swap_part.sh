# shellcheck shell=bash
set -eu
[ -b "$KADEPLOY_FORMAT_PART" ] || { echo "no partition $KADEPLOY_FORMAT_PART on this node" >&2; exit 1; }
part=$(readlink -f "$KADEPLOY_FORMAT_PART")
! findmnt --source "$part" > /dev/null || umount --all-targets --recursive "$part"
! grep -q "^$part " /proc/swaps || swapoff "$part"
wipefs --quiet --all --force "$part"
mkswap "$part" > /dev/null
