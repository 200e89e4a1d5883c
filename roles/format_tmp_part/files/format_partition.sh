# shellcheck shell=bash
# Make a file system of type $KADEPLOY_FORMAT_TYPE on $KADEPLOY_FORMAT_PART, whatever was there before.
set -eu
[ -b "$KADEPLOY_FORMAT_PART" ] || { echo "no partition $KADEPLOY_FORMAT_PART on this node" >&2; exit 1; }
part=$(readlink -f "$KADEPLOY_FORMAT_PART")
! findmnt --source "$part" > /dev/null || umount --all-targets --recursive "$part"
! grep -q "^$part " /proc/swaps || swapoff "$part"
# mkfs leaves signatures that lie elsewhere than its own, and then nobody knows any more what the partition is.
wipefs --quiet --all --force "$part"
case $KADEPLOY_FORMAT_TYPE in
  ext2 | ext3 | ext4) force=-F ;;
  xfs | btrfs | reiserfs) force=-f ;;
  *) force= ;;
esac
# Options of the site are separate words on purpose.
# shellcheck disable=SC2086
"mkfs.$KADEPLOY_FORMAT_TYPE" $force $KADEPLOY_FORMAT_OPTIONS "$part" > /dev/null
