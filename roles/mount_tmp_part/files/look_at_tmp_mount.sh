# shellcheck shell=bash
set -eu
found=$(findmnt --noheadings --output SOURCE --mountpoint "$KADEPLOY_TMP_DIR" | tail -n 1) || true
wanted=$found
case " $KADEPLOY_DEPLOY_PARTS " in
  *" $KADEPLOY_TMP_PART "*) ;;
  *) [ -n "$found" ] || [ ! -b "$KADEPLOY_TMP_PART" ] || wanted=$(readlink -f "$KADEPLOY_TMP_PART") ;;
esac
echo "$KADEPLOY_TMP_DIR: ${found:-nothing}"
printf '\036\n'
echo "$KADEPLOY_TMP_DIR: ${wanted:-nothing}"
