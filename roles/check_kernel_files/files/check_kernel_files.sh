# shellcheck shell=bash
# Seen from inside the deployed system, which is how its symbolic links are meant.
exec python3 -IS -c '
import os, struct, sys

def is_signed(kernel):
    # The certificate table of a PE file, as kadeploy/boot/signature.py finds it.
    with open(kernel, "rb") as file:
        head, length = file.read(4096), file.seek(0, 2)
    try:
        (at,) = struct.unpack_from("<I", head, 60)
        if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
            return False
        (magic,) = struct.unpack_from("<H", head, at + 24)
        offset, size = struct.unpack_from("<II", head, at + 24 + {0x10B: 96, 0x20B: 112}[magic] + 32)
    except (struct.error, KeyError):
        return False
    return size > 8 and offset + size <= length

os.chroot(os.environ["KADEPLOY_ENV_EXTRACTION_DIR"])
for file in filter(None, sys.argv[1:]):
    if not os.path.isfile(file):
        sys.exit(file + " is not in the image: correct the description of the environment")
if os.environ.get("KADEPLOY_SECURE_BOOT") and not is_signed(sys.argv[1]):
    sys.exit(sys.argv[1] + " is not signed, and this node boots by Secure Boot: take a kernel of the distribution")
' "$KADEPLOY_ENV_KERNEL" "$KADEPLOY_ENV_INITRD" "$KADEPLOY_ENV_HYPERVISOR"
