# shellcheck shell=bash
# The jump is detached: this script ends, and with it the ssh session, before the kernel is replaced.
set -eu
resolve() {
  python3 -IS -c 'import os, sys; os.chroot(sys.argv[1]); print(os.path.realpath(sys.argv[2]))' "$root" "$1"
}
if [ "$KADEPLOY_KEXEC_TARGET" = deploy ]; then
  kernel=$KADEPLOY_KEXEC_DIR/kernel
  initrd=$KADEPLOY_KEXEC_DIR/initrd
  params="$KADEPLOY_DEPLOYMENT_KERNEL_PARAMS${KADEPLOY_SECRET:+ $KADEPLOY_SECRET}"
else
  root=$KADEPLOY_ENV_EXTRACTION_DIR
  kernel=$root$(resolve "$KADEPLOY_ENV_KERNEL")
  initrd=
  [ -z "$KADEPLOY_ENV_INITRD" ] || initrd=$root$(resolve "$KADEPLOY_ENV_INITRD")
  params=$KADEPLOY_ENV_KERNEL_PARAMS
  case " $params " in
    *" root="*) ;;
    *) params="root=$KADEPLOY_DEPLOY_PART ro $params" ;;
  esac
fi
set -- "$kernel" "--command-line=$params"
[ -z "$initrd" ] || set -- "$@" "--initrd=$initrd"
# Under Secure Boot the kernel takes another one only where it can check the signature itself.
kexec ${KADEPLOY_SECURE_BOOT:+-s} -l "$@"
sync
[ "$KADEPLOY_KEXEC_TARGET" = deploy ] || umount -R "$root" || mount -o remount,ro "$root"
setsid sh -c 'sleep 1; sync; kexec -e' < /dev/null > /dev/null 2>&1 &
