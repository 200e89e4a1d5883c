# shellcheck shell=bash
# A file system that is not detached cleanly would replay its journal over the boot loader at the next boot.
set -eu
sync
findmnt --mountpoint "$KADEPLOY_ENV_EXTRACTION_DIR" > /dev/null || exit 0
umount -R "$KADEPLOY_ENV_EXTRACTION_DIR" || mount -o remount,ro "$KADEPLOY_ENV_EXTRACTION_DIR"
