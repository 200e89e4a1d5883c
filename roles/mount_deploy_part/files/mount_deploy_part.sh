# shellcheck shell=bash
set -eu
mkdir -p "$KADEPLOY_ENV_EXTRACTION_DIR"
umount -R "$KADEPLOY_ENV_EXTRACTION_DIR" 2>/dev/null || true
mount "$KADEPLOY_DEPLOY_PART" "$KADEPLOY_ENV_EXTRACTION_DIR"
