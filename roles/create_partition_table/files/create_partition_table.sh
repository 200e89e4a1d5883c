# Boundaries that stay the same keep their contents: nothing is wiped.
set -eu
device=$KADEPLOY_BLOCK_DEVICE
[ -b "$device" ] || { echo "no disk $device on this node; disks: $(lsblk -dnro NAME | tr '\n' ' ')" >&2; exit 1; }
umount -R "$KADEPLOY_ENV_EXTRACTION_DIR" 2>/dev/null || true
while read -r swap _; do
  [[ $swap != "$device"* ]] || swapoff "$swap"
done < /proc/swaps

printf '%s' "$KADEPLOY_PARTITION_TABLE" |
  sfdisk --quiet --no-reread --no-tell-kernel --force --wipe never --wipe-partitions never "$device"
partx -u "$device" 2>/dev/null || partprobe "$device"
if command -v udevadm > /dev/null; then udevadm settle --timeout=10 || true; fi

for ((tries = 0; tries < 50; tries++)); do
  [ -b "$KADEPLOY_DEPLOY_PART" ] && exit 0
  sleep 0.2
done
echo "$KADEPLOY_DEPLOY_PART did not appear after partitioning; is it in the layout of cluster $KADEPLOY_CLUSTER?" >&2
exit 1
