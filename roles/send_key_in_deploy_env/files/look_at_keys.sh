# shellcheck shell=bash
# root's authorized keys in the system that lies in $KADEPLOY_KEYS_ROOT, and those that there will be.
exec python3 -IS -c '
import os, sys

os.chroot(os.environ["KADEPLOY_KEYS_ROOT"])
try:
    with open("/root/.ssh/authorized_keys", "rb") as file:
        there = file.read()
except FileNotFoundError:
    there = b""
added = b"" if not there or there.endswith(b"\n") else b"\n"
known = set(there.split(b"\n")) | {b""}
missing = [key for key in os.environb[b"KADEPLOY_AUTHORIZED_KEYS"].split(b"\n") if key not in known]
if missing:
    there_then = there + added + b"".join(key + b"\n" for key in missing)
else:
    there_then = there
sys.stdout.buffer.write(there + b"\x1e\n" + there_then)
'
