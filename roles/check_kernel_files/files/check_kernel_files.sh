# Seen from inside the deployed system, which is how its symbolic links are meant.
exec python3 -IS -c '
import os, sys

os.chroot(os.environ["KADEPLOY_ENV_EXTRACTION_DIR"])
for file in filter(None, sys.argv[1:]):
    if not os.path.isfile(file):
        sys.exit(file + " is not in the image: correct the description of the environment")
' "$KADEPLOY_ENV_KERNEL" "$KADEPLOY_ENV_INITRD" "$KADEPLOY_ENV_HYPERVISOR"
