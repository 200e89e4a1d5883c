set -eu
sync
