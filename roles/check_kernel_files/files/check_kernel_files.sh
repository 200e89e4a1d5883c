# Symbolic links are followed as the deployed system will follow them.
set -eu
inside() {
  python3 -c 'import os, sys; os.chroot(sys.argv[1]); sys.exit(not os.path.isfile(os.path.realpath(sys.argv[2])))' \
    "$KADEPLOY_ENV_EXTRACTION_DIR" "$1"
}
for file in "$KADEPLOY_ENV_KERNEL" "$KADEPLOY_ENV_INITRD" "$KADEPLOY_ENV_HYPERVISOR"; do
  [ -z "$file" ] || inside "$file" || { echo "$file is not in the image: correct the environment's description" >&2; exit 1; }
done
