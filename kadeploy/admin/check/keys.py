"""Keys: the site's own lets it into the deployment system, whose host key is the one that the site expects."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kadeploy.admin.check.asked import ask
from kadeploy.admin.check.subject import Subject
from kadeploy.admin.findings import Finding, Look
from kadeploy.boot import served
from kadeploy.environments.image import COMPRESSIONS

PRIVATE = Look("keys", "private")
PUBLIC = Look("keys", "public")
HOST = Look("keys", "host-key")
INITRD = Look("keys", "initrd")
ENTERS = Look("keys", "authorized")
SHOWS = Look("keys", "host-key-of-image")

AUTHORIZED = "root/.ssh/authorized_keys"
HOST_KEY = "etc/ssh/ssh_host_ed25519_key.pub"
_LIMIT = 60.0
"""Seconds that an initrd may take to be unpacked."""
_LONGEST = 1 << 20
"""Bytes of a file of keys."""
_PLAIN_CPIO = b"07070"


def check(subject: Subject) -> Iterator[Finding]:
    """What is wrong with keys."""
    key, found = _site_key(Path(subject.site.ssh.private_key))
    yield from found
    host_key = _words(subject.site.ssh.host_key)
    if len(host_key) < 2 or _fingerprint(" ".join(host_key)) is None:
        yield HOST.fail(
            f"ssh.host_key: {subject.site.ssh.host_key!r} is no public key",
            f"set it to the first two words of {HOST_KEY} in the deployment system, ssh-ed25519 AAAA…",
        )
    else:
        yield HOST.ok(f"ssh.host_key: {_fingerprint(' '.join(host_key))}")
    for initrd in _initrds(subject):
        yield from _of_image(initrd, key, host_key)


def _words(line: str) -> list[str]:
    """Kind and text of a public key, without its comment."""
    return line.split()[:2]


def _fingerprint(line: str) -> str | None:
    """``SHA256:…`` of a public key; None: it is none, or nobody can tell."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", "-"], input=f"{line}\n", capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return line.rsplit(maxsplit=1)[-1][-16:] if line.startswith(("ssh-", "ecdsa-")) else None
    return done.stdout.split()[1] if done.returncode == 0 else None


# --- the site's key -----------------------------------------------------------------------------------------------


def _site_key(path: Path) -> tuple[list[str], list[Finding]]:
    """The public half of the site's key, empty where it cannot be told, and what is found of it."""
    if not path.exists():
        advice = f"ssh-keygen -t ed25519 -N '' -f {shlex.quote(str(path))}, and build the deployment system with it"
        return [], [PRIVATE.fail(f"ssh.private_key: there is no file {path}", advice)]
    ended = ask("ssh-keygen", "-y", "-P", "", "-f", str(path))
    if ended is None:
        return [], [PRIVATE.warn("ssh-keygen is not installed: keys are not looked at", "apt install openssh-client")]
    if ended.rc != 0:
        return [], [_unreadable(path, ended.said)]
    key = _words(ended.stdout)
    found = [PRIVATE.ok(f"ssh.private_key: {path} ({key[0]})")]
    public = path.with_name(f"{path.name}.pub")
    with suppress(OSError, UnicodeDecodeError):
        if _words(public.read_text(encoding="utf-8")) != key:
            advice = (
                f"ssh-keygen -y -f {shlex.quote(str(path))} > {shlex.quote(str(public))}, if {path} is the right one"
            )
            found.append(PUBLIC.fail(f"{public} is not the public half of {path}", advice))
    return key, found


def _unreadable(path: Path, said: str) -> Finding:
    if "passphrase" in said:
        advice = f"take it away: ssh-keygen -p -N '' -f {shlex.quote(str(path))}"
        return PRIVATE.fail(f"ssh.private_key: {path} has a passphrase, which nobody is there to type", advice)
    if "ermission" in said or "bad permissions" in said:
        advice = f"run this as root, and see that others cannot read it: chmod 600 {shlex.quote(str(path))}"
        return PRIVATE.warn(f"ssh.private_key: {path} cannot be looked at: {said}", advice)
    return PRIVATE.fail(
        f"ssh.private_key: {path} is no private key: {said}", "name the site's private key, not its .pub"
    )


# --- the deployment system ----------------------------------------------------------------------------------------


def _initrds(subject: Subject) -> list[Path]:
    """Those of the deployment system that are files here."""
    loaders = [cluster.loader for cluster, _ in subject.members]
    found = [served.path(subject.site, each, each.initrd) for each in loaders]
    return [path for path in dict.fromkeys(found) if path is not None]


def _of_image(initrd: Path, key: list[str], host_key: list[str]) -> Iterator[Finding]:
    if not initrd.is_file():
        return  # `boot` tells it
    authorized, why = _content(initrd, AUTHORIZED)
    shown, _ = _content(initrd, HOST_KEY) if authorized else ("", "")
    if not authorized or not shown:
        reason = why or f"it has no {AUTHORIZED if not authorized else HOST_KEY}"
        yield INITRD.warn(
            f"{initrd}: keys in it cannot be looked at: {reason}",
            "compare them by hand, or build it with kadeploy-site",
        )
        return
    lines = [line.split() for line in authorized.splitlines() if not line.startswith("#")]
    if key and any(key[1] in words for words in lines):  # options may stand in front of a key
        yield ENTERS.ok(f"{initrd}: the site's key is let in")
    elif key:
        yield ENTERS.fail(
            f"{initrd}: the site's key is not among the {len(lines)} that are let in",
            "build the deployment system anew with this key, or name the key that it was built with as ssh.private_key",
        )
    seen = _words(shown)
    if seen == host_key:
        yield SHOWS.ok(f"{initrd}: it shows the host key that the site expects")
    else:
        shows = _fingerprint(" ".join(seen)) or "none"
        yield SHOWS.fail(
            f"{initrd}: it shows another host key ({shows}) than ssh.host_key says: every node would be refused as "
            "somebody else",
            f"set ssh.host_key in site.yml: {' '.join(seen)}",
        )


def _content(initrd: Path, name: str) -> tuple[str, str]:
    """What is in the file *name* of an initrd; or why it cannot be told, empty when it is not in there."""
    try:
        with initrd.open("rb", buffering=0) as packed:  # its descriptor is read by others, too
            unpack = _unpack(packed.read(16))
            if unpack is None:
                return "", "it is compressed in a way that is not known here"
            packed.seek(0)
            return _extracted(packed.fileno(), unpack, name), ""
    except FileNotFoundError as error:
        return "", f"{error.filename} is not installed"
    except subprocess.TimeoutExpired:
        return "", f"it is not unpacked within {_LIMIT:g} s"
    except OSError as error:
        return "", f"{error.strerror}"


def _unpack(head: bytes) -> list[str] | None:
    if head.startswith(_PLAIN_CPIO):
        return ["cat"]
    return next((list(each.unpack_here) for each in COMPRESSIONS if head.startswith(each.magic)), None)


def _extracted(packed: int, unpack: list[str], name: str) -> str:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(unpack, stdin=packed, stdout=subprocess.PIPE, stderr=quiet) as unpacking:
        try:
            done = subprocess.run(
                ["cpio", "--extract", "--to-stdout", "--quiet", name, f"./{name}"],
                stdin=unpacking.stdout,
                capture_output=True,
                timeout=_LIMIT,
                check=False,
            )
        finally:
            unpacking.kill()
    return done.stdout[:_LONGEST].decode(errors="replace")
