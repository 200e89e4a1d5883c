# shellcheck shell=bash
# The partition table as it is and as it would be written, in the words of sfdisk; identities are left out, which every
# table has of its own.
set -eu
[ -b "$KADEPLOY_BLOCK_DEVICE" ] || {
  echo "no disk $KADEPLOY_BLOCK_DEVICE on this node; disks: $(lsblk -dnro NAME | tr '\n' ' ')" >&2
  exit 1
}
disk=$(readlink -f "$KADEPLOY_BLOCK_DEVICE")
table() {
  sfdisk --dump "$1" 2> /dev/null |
    sed -nE -e '/^label: /p' -e "s,^$1p?([0-9]+) : ,\1: ,p" | sed -E 's/, uuid=[^,]*//; s/= +/=/g; s/ +,/,/g'
}
table "$disk" || echo 'no partition table'
printf '\036\n'

scratch=$(mktemp)
loop=
trap '[ -z "$loop" ] || losetup --detach "$loop"; rm -f "$scratch"' EXIT
truncate --size "$(blockdev --getsize64 "$disk")" "$scratch"
copy=$scratch
if [ "$(blockdev --getss "$disk")" -ne 512 ]; then
  loop=$(losetup --find --show --sector-size "$(blockdev --getss "$disk")" "$scratch")
  copy=$loop
fi
printf '%s' "$KADEPLOY_PARTITION_TABLE" | sfdisk --quiet --no-reread --no-tell-kernel --force --wipe never "$copy"
table "$copy"
