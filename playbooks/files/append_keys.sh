# Append $KADEPLOY_AUTHORIZED_KEYS to root's authorized keys in the system that lies in $KADEPLOY_KEYS_ROOT.
# Its /root may be a symbolic link, which is resolved there, not here.
set -eu
folder=$(python3 -c 'import os, sys; os.chroot(sys.argv[1]); print(os.path.realpath("/root/.ssh"))' "$KADEPLOY_KEYS_ROOT")
folder=${KADEPLOY_KEYS_ROOT%/}$folder
mkdir -p "$folder"
chmod 700 "$folder"
touch "$folder/authorized_keys"
while IFS= read -r key; do
  [ -n "$key" ] || continue
  grep -qxF -- "$key" "$folder/authorized_keys" || printf '%s\n' "$key" >> "$folder/authorized_keys"
done <<< "$KADEPLOY_AUTHORIZED_KEYS"
chmod 600 "$folder/authorized_keys"
