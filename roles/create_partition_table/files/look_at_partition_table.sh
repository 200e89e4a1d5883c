# shellcheck shell=bash
# The partition table as it is and as it would be written, in the words of sfdisk; identities are left out, which every
# table has of its own.
set -eu
[ -b "$KADEPLOY_BLOCK_DEVICE" ] || {
  echo "no disk $KADEPLOY_BLOCK_DEVICE on this node; disks: $(lsblk -dnro NAME | tr '\n' ' ')" >&2
  exit 1
}
disk=$(readlink -f "$KADEPLOY_BLOCK_DEVICE")

# Where the disk is too small, sfdisk may write a GPT with smaller partitions than it was told, and says nothing.
sizes=0$(
  sed -nE 's/.*size= *([0-9]+)([KMGT])iB.*/+ (\1 << \2)/p' <<< "$KADEPLOY_PARTITION_TABLE" |
    sed 's/K)/10)/; s/M)/20)/; s/G)/30)/; s/T)/40)/' | tr -d '\n'
)
needed=$((sizes)) room=$(blockdev --getsize64 "$disk")
if [ "$needed" -gt "$room" ]; then
  echo "$disk has $((room >> 20)) MiB, and the partitions of the layout need $((needed >> 20))" >&2
  exit 1
fi

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
