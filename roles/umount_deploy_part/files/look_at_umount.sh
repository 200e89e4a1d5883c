# shellcheck shell=bash
set -eu
found=$(findmnt --noheadings --output SOURCE --mountpoint "$KADEPLOY_ENV_EXTRACTION_DIR" | tail -n 1) || true
echo "$KADEPLOY_ENV_EXTRACTION_DIR: ${found:-nothing}"
printf '\036\n'
echo "$KADEPLOY_ENV_EXTRACTION_DIR: nothing"
