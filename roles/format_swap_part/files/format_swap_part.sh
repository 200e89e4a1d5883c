set -eu
swapoff "$KADEPLOY_SWAP_PART" 2>/dev/null || true
mkswap "$KADEPLOY_SWAP_PART" > /dev/null
