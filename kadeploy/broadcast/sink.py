"""What takes an image on a node: commands of its bash, which read the image on their standard input.

Each works on ``$KADEPLOY_DEPLOY_PART`` (the partition), ``$KADEPLOY_ENV_EXTRACTION_DIR`` (where that is mounted) and
``$KADEPLOY_PREPOST_EXTRACTION_DIR`` (a folder in memory).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from kadeploy.environments.environment import Environment, FileSystem, Image
from kadeploy.environments.image import KINDS

# Nobody may go on using what is written over. An image is often shorter than its partition: what an earlier system left
# behind its end would keep mount from knowing it.
_CLEAN = """
[ -e "$KADEPLOY_DEPLOY_PART" ] || { echo "no partition $KADEPLOY_DEPLOY_PART on this node" >&2; exit 1; }
if [ -b "$KADEPLOY_DEPLOY_PART" ]; then
  device=$(readlink -f "$KADEPLOY_DEPLOY_PART")
  case $device in *[0-9]) first=${device}p ;; *) first=$device ;; esac
  for used in "$device" "$first"[0-9]*; do
    ! findmnt --source "$used" >/dev/null || umount --all-targets --recursive "$used" || exit
    ! grep -q "^$used " /proc/swaps || swapoff "$used" || exit
  done
  wipefs --quiet --all --force "$device" || exit
fi
"""
_DD = ' dd of="$KADEPLOY_DEPLOY_PART" ibs=64k obs=4M conv=fsync'
# What follows the archive's end mark is read too, else the decompressor would fail on a closed pipe. Where tar was cut
# off in the middle of a block it does not say that the disk is full.
_TAR = """
set -o noglob
options="--numeric-owner -p"
known=$(tar --help 2>&1)
for option in --acls --selinux --xattrs --xattrs-include=*; do
  case $known in *"${option%=*}"*) options="$options $option" ;; esac
done
say_if_full() {
  set -- $? $(stat -f -c '%a %S' "$KADEPLOY_ENV_EXTRACTION_DIR")
  [ $(($2 * $3)) -ge 1048576 ] || echo "No space left on device: the image is bigger than the partition" >&2
  exit "$1"
}
"""
_UNTAR = ' { tar -x -f - -C "$KADEPLOY_ENV_EXTRACTION_DIR" $options && cat >/dev/null || say_if_full; }'
# Options of the site are separate words.
_FORMAT = """
"mkfs.$filesystem" $mkfs_options "$KADEPLOY_DEPLOY_PART" >/dev/null || exit
export KADEPLOY_ENV_EXTRACTION_DIR=$(mktemp -d)
mount "$KADEPLOY_DEPLOY_PART" "$KADEPLOY_ENV_EXTRACTION_DIR" || exit
"""
_LEAVE = """
status=$?
umount "$KADEPLOY_ENV_EXTRACTION_DIR" || exit
exit "$status"
"""
# fsarchiver reads regular files only. Where they would be in memory, and that is not enough, the node would be lost.
_STORE = """
file=$KADEPLOY_PREPOST_EXTRACTION_DIR/image.fsa
rm -f "$file"
case $(stat -f -c %T "$KADEPLOY_PREPOST_EXTRACTION_DIR") in
  ramfs | tmpfs) room=$(($(sed -n 's/^MemAvailable: *\\([0-9]*\\) .*/\\1/p' /proc/meminfo) * 1024)) ;;
  *) room=$(($(stat -f -c '%a * %S' "$KADEPLOY_PREPOST_EXTRACTION_DIR"))) ;;
esac
[ "$room" -ge $((size + (64 << 20))) ] || {
  echo "this node has $((room >> 20)) MiB for the image, which has $((size >> 20)) and is kept whole until" \\
    "fsarchiver has read it: make a tar or dd image, which is unpacked as it arrives" >&2
  exit 1
}
trap 'rm -f "$file"' EXIT
cat > "$file" || exit
"""
_RESTORE = """
jobs=$(nproc)
said=$(fsarchiver -j $((jobs < 32 ? jobs : 32)) restfs "$file" "$@" 2>&1 >/dev/null) && exit
status=$?
sed 's/^[a-z_0-9]*\\.c#[0-9]*,[a-z_0-9]*(): //' <<< "${said%%$'\\n'*}" >&2
exit "$status"
"""


def of_environment(environment: Environment, size: int) -> str:
    """The sink of an environment's image of *size* bytes: the deployment partition, or its several partitions."""
    if not environment.image.is_fsa:
        return of_kind(environment.image.kind)
    if not environment.multipart:
        return _fsarchiver({0: '"$KADEPLOY_DEPLOY_PART"'}, size)
    mine = [each for each in environment.partitions if each.image is None]
    return _fsarchiver({each.id: shlex.quote(each.device) for each in mine}, size)


def of_partition(partition: FileSystem, image: Image, mkfs_options: str = "") -> str:
    """The sink of a partition's own *image*; *mkfs_options* are the site's, for its file system."""
    place = f"KADEPLOY_DEPLOY_PART={shlex.quote(partition.device)}\n"
    if not image.is_tar:
        return place + of_kind(image.kind)
    force = _FORCE.get(partition.filesystem, "")
    words = {"filesystem": partition.filesystem, "mkfs_options": f"{force} {mkfs_options}".strip()}
    setting = "".join(f"{name}={shlex.quote(value)}\n" for name, value in words.items())
    return f"{place}{_CLEAN}{setting}{_FORMAT}{of_kind(image.kind)}{_LEAVE}"


_FORCE: Mapping[str, str] = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), "-F"),
    **dict.fromkeys(("xfs", "btrfs", "reiserfs"), "-f"),
}
"""How mkfs is told that what was there before may go, by file system."""


def of_kind(kind: str) -> str:
    """The sink of an image of this kind (tar or dd) on the deployment partition."""
    decompress = KINDS[kind].compression.unpack_on_node
    if KINDS[kind].form == "dd":
        return f"set -o pipefail{_CLEAN}{decompress} |{_DD}"
    return f"set -o pipefail{_TAR}{decompress} |{_UNTAR}"


def _fsarchiver(devices: Mapping[int, str], size: int) -> str:
    """Restore file systems to *devices* (by number in the archive, as words of a shell)."""
    clean = "".join(f"KADEPLOY_DEPLOY_PART={device}\n{_CLEAN}" for device in devices.values())
    words = " ".join(f"id={number},dest={device}" for number, device in devices.items())
    return f"size={size}\n{clean}{_STORE}set -- {words}{_RESTORE}"
