# shellcheck shell=bash
# The menu of GRUB that is there, and the one that will be; without GRUB's own core there is none.
set -eu
boot=$KADEPLOY_ENV_EXTRACTION_DIR$(python3 -IS -c '
import os

os.chroot(os.environ["KADEPLOY_ENV_EXTRACTION_DIR"])
print(os.path.realpath("/boot"))
')
if [ "$KADEPLOY_FIRMWARE" != bios ] || [ -f "$boot/grub/i386-pc/core.img" ]; then
  [ ! -f "$boot/grub/grub.cfg" ] || cat "$boot/grub/grub.cfg"
fi
printf '\036\n'
uuid=$(blkid -s UUID -o value "$KADEPLOY_DEPLOY_PART")
printf "search --no-floppy --fs-uuid --set=root --hint=\$root %s\n%s" "$uuid" "$KADEPLOY_GRUB_MENU"
