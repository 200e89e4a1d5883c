# BIOS: in the partition itself, reached by chain.c32. UEFI: GRUB comes over the network and reads this grub.cfg.
set -eu
root=$KADEPLOY_ENV_EXTRACTION_DIR
mkdir -p "$root/boot/grub"

params=$KADEPLOY_ENV_KERNEL_PARAMS
case " $params " in
  *" root="*) ;;
  *) params="root=$KADEPLOY_DEPLOY_PART ro $params" ;;
esac
quoted=$(printf '%s\n' "$KADEPLOY_ENV_KERNEL" "$params" "$KADEPLOY_ENV_INITRD" | sed 's/[\\;{}|&<>$"'\'']/\\&/g')
{
  IFS= read -r kernel
  IFS= read -r params
  IFS= read -r initrd
} <<< "$quoted"$'\n'
uuid=$(blkid -s UUID -o value "$KADEPLOY_DEPLOY_PART")
{
  echo 'set timeout=0'
  echo 'set default=0'
  echo "search --no-floppy --fs-uuid --set=root $uuid"
  echo "menuentry 'deployed' {"
  echo "  linux $kernel $params"
  [ -z "$initrd" ] || echo "  initrd $initrd"
  echo '}'
} > "$root/boot/grub/grub.cfg"

[ "$KADEPLOY_FIRMWARE" = bios ] || exit 0
grub-install --target=i386-pc --boot-directory="$root/boot" --force --no-floppy "$KADEPLOY_DEPLOY_PART" 2>&1 |
  grep -v -e 'blocklists' -e 'partitionless' || true
[ "${PIPESTATUS[0]}" -eq 0 ] && [ -f "$root/boot/grub/i386-pc/core.img" ]
