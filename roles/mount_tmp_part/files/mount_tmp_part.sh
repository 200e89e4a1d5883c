# shellcheck shell=bash
# Without a /tmp partition (or one that is not formatted yet) the image is kept in memory.
set -eu
! findmnt --mountpoint "$KADEPLOY_TMP_DIR" > /dev/null || exit 0
[ -n "$KADEPLOY_TMP_PART" ] && [ -b "$KADEPLOY_TMP_PART" ] || exit 0
case " $KADEPLOY_DEPLOY_PARTS " in *" $KADEPLOY_TMP_PART "*) exit 0 ;; esac
[ -n "$(wipefs --noheadings "$KADEPLOY_TMP_PART")" ] || mkfs.ext4 -qF "$KADEPLOY_TMP_PART"
mount "$KADEPLOY_TMP_PART" "$KADEPLOY_TMP_DIR"
