# BIOS: in the partition itself, reached by chain.c32. UEFI: GRUB comes over the network and reads this grub.cfg.
set -eu
[ -n "$KADEPLOY_GRUB_MENU" ] || {
  echo "GRUB cannot hand on the kernel parameters of $KADEPLOY_ENV as they are: $KADEPLOY_ENV_KERNEL_PARAMS" >&2
  exit 1
}
root=$KADEPLOY_ENV_EXTRACTION_DIR
mkdir -p "$root/boot/grub"
uuid=$(blkid -s UUID -o value "$KADEPLOY_DEPLOY_PART")
printf 'search --no-floppy --fs-uuid --set=root %s\n%s' "$uuid" "$KADEPLOY_GRUB_MENU" > "$root/boot/grub/grub.cfg"

[ "$KADEPLOY_FIRMWARE" = bios ] || exit 0
said=$(
  grub-install --target=i386-pc --boot-directory="$root/boot" --force --no-floppy "$KADEPLOY_DEPLOY_PART" 2>&1
) || { echo "$said" >&2; exit 1; }
[ -f "$root/boot/grub/i386-pc/core.img" ] || { echo "grub-install left no core.img: $said" >&2; exit 1; }
