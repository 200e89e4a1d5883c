# shellcheck shell=bash
# Append $KADEPLOY_AUTHORIZED_KEYS to root's authorized keys in the system that lies in $KADEPLOY_KEYS_ROOT.
# Seen from inside: its /root may be a symbolic link, and none leads out of it.
exec python3 -IS -c '
import os

os.chroot(os.environ["KADEPLOY_KEYS_ROOT"])
folder = os.path.realpath("/root/.ssh")
os.makedirs(folder, exist_ok=True)
os.chmod(folder, 0o700)
with open(folder + "/authorized_keys", "ab+") as file:
    os.fchmod(file.fileno(), 0o600)
    file.seek(0)
    there = file.read()
    if there and not there.endswith(b"\n"):
        file.write(b"\n")
    known = set(there.split(b"\n")) | {b""}
    for key in os.environb[b"KADEPLOY_AUTHORIZED_KEYS"].split(b"\n"):
        if key not in known:
            file.write(key + b"\n")
'
