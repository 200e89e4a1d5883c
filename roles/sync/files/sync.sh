# shellcheck shell=bash
set -eu
sync
