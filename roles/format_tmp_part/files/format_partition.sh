# Make a file system of type $KADEPLOY_FORMAT_TYPE on $KADEPLOY_FORMAT_PART.
set -eu
part=$KADEPLOY_FORMAT_PART
[ -b "$part" ] || { echo "no partition $part on this node" >&2; exit 1; }
while read -r device folder _; do
  [ "$device" != "$part" ] || umount -R "$folder"
done < /proc/mounts
case $KADEPLOY_FORMAT_TYPE in
  ext2 | ext3 | ext4) force=-F ;;
  xfs | btrfs | reiserfs) force=-f ;;
  *) force= ;;
esac
# Options of the site are separate words on purpose.
# shellcheck disable=SC2086
"mkfs.$KADEPLOY_FORMAT_TYPE" $force $KADEPLOY_FORMAT_OPTIONS "$part" > /dev/null
