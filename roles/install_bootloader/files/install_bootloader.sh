# shellcheck shell=bash
# BIOS: in the partition itself, reached by chain.c32. UEFI: GRUB comes over the network and reads this grub.cfg.
set -eu
[ -n "$KADEPLOY_GRUB_MENU" ] || {
  echo "GRUB cannot hand on the kernel parameters of $KADEPLOY_ENV as they are: $KADEPLOY_ENV_KERNEL_PARAMS" >&2
  exit 1
}
# Seen from inside: /boot may be a symbolic link, and none leads out of the image.
boot=$KADEPLOY_ENV_EXTRACTION_DIR$(python3 -IS -c '
import os

os.chroot(os.environ["KADEPLOY_ENV_EXTRACTION_DIR"])
boot = os.path.realpath("/boot")
if os.path.islink(boot + "/grub"):
    os.unlink(boot + "/grub")
os.makedirs(boot + "/grub", exist_ok=True)
for folder, folders, files in os.walk(boot + "/grub"):
    for link in filter(os.path.islink, [folder + "/" + name for name in folders + files]):
        os.unlink(link)
print(boot)
')
uuid=$(blkid -s UUID -o value "$KADEPLOY_DEPLOY_PART")
# The hint spares GRUB a look at all other partitions, and the drivers of all file systems over the network.
printf "search --no-floppy --fs-uuid --set=root --hint=\$root %s\n%s" "$uuid" "$KADEPLOY_GRUB_MENU" > "$boot/grub/grub.cfg"

[ "$KADEPLOY_FIRMWARE" = bios ] || exit 0
part=$(readlink -f "$KADEPLOY_DEPLOY_PART")  # GRUB knows no links to disks
said=$(
  grub-install --target=i386-pc --boot-directory="$boot" --force --no-floppy "$part" 2>&1
) || { echo "$said" >&2; exit 1; }
[ -f "$boot/grub/i386-pc/core.img" ] || { echo "grub-install left no core.img: $said" >&2; exit 1; }
