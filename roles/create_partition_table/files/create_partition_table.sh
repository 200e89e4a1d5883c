# shellcheck shell=bash
# Boundaries that stay the same keep their contents. What describes the disk as a whole goes: a table of another kind,
# the superblock of an array, the labels of a pool.
set -eu
[ -b "$KADEPLOY_BLOCK_DEVICE" ] || {
  echo "no disk $KADEPLOY_BLOCK_DEVICE on this node; disks: $(lsblk -dnro NAME | tr '\n' ' ')" >&2
  exit 1
}
disk=$(readlink -f "$KADEPLOY_BLOCK_DEVICE")
sector=$(blockdev --getss "$disk")
if [ "$KADEPLOY_FIRMWARE $KADEPLOY_BOOTS_FROM" = 'bios disk' ] && [ "${sector:-512}" -ne 512 ]; then
  echo "BIOS cannot boot $disk, whose sectors have $sector bytes: have cluster $KADEPLOY_CLUSTER boot by UEFI" \
    "(loader.firmware: uefi), or its kernels over the network (loader.method: pure_pxe)" >&2
  exit 1
fi
case $disk in *[0-9]) first=${disk}p ;; *) first=$disk ;; esac

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

for part in "$disk" "$first"[0-9]*; do
  ! findmnt --source "$part" > /dev/null || umount --all-targets --recursive "$part"
  ! grep -q "^$part " /proc/swaps || swapoff "$part"
done

signatures() { wipefs --noheadings --output OFFSET,TYPE "$1" || true; }
# A mark at the very end lies on the last partition as well: it is the partition's when that shows it in the same place.
theirs=$(
  { partx -rgo NR,START "$disk" || true; } | while read -r number start; do
    signatures "$first$number" | while read -r offset type; do echo "$((offset + start * 512)) $type"; done
  done
)
case $KADEPLOY_PARTITION_TABLE in *"label: gpt"*) table='gpt PMBR' ;; *) table=dos ;; esac
old=$(
  signatures "$disk" | while read -r offset type; do
    [[ " $table " == *" $type "* ]] || grep -qxF "$((offset)) $type" <<< "$theirs" || echo "$type"
  done | paste -sd,
)
[ -z "$old" ] || wipefs --quiet --all --force --types "$old" "$disk"

printf '%s' "$KADEPLOY_PARTITION_TABLE" |
  sfdisk --quiet --no-reread --no-tell-kernel --force --wipe never --wipe-partitions never "$disk"
# partx leaves out what is where another partition was before, and says nothing; it is for nodes without the other.
partprobe "$disk" 2> /dev/null || partx -u "$disk"
[ ! -x /etc/disk-links ] || /etc/disk-links
if command -v udevadm > /dev/null; then udevadm settle --timeout=10 || true; fi

wanted=${KADEPLOY_DEPLOY_PART:-$({ partx -rgo NR "$disk" || true; } | sed "s,^,$first,")}
for ((tries = 0; tries < 50; tries++)); do
  missing=
  for part in $wanted; do [ -b "$part" ] || missing=$part; done
  [ -n "$missing" ] || exit 0
  sleep 0.2
done
whose=${KADEPLOY_CLUSTER:+ of cluster $KADEPLOY_CLUSTER}
echo "$missing did not appear after partitioning; is it in the layout$whose?" >&2
exit 1
