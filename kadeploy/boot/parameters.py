"""Kernel parameters on their way through each boot loader: how it takes them, and what it cannot carry.

The kernel parts its parameters at blanks, and double quotes hold a value together: ``foo="a b"`` and ``"foo=a b"`` are
the same to it (Linux, ``lib/cmdline.c``). The loaders in between have rules of their own:

=========  =========================================================================================================
pxelinux   hands on the rest of its line as it is, but fetches the file of ``initrd=`` itself
mboot      is PXELINUX's for Xen: ``---`` begins the next file
ipxe       replaces ``${…}``, ends commands at ``;``, ``&&`` and ``||``, and joins words with one blank each
grub       takes words; it quotes those that hold blanks, as a whole, and escapes quotes and backslashes in them
kexec      hands on what it gets
=========  =========================================================================================================

What a loader would hand on as something else is refused.
"""

from __future__ import annotations

import re

from kadeploy.errors import ProfileRefusedError

_GRUB_WORD = re.compile(
    r'\s*(?:"(?P<whole>[^"]+)"|(?P<name>[^"\s=]+=)"(?P<value>[^"]*)"|(?P<bare>[^"\s]+))(?=\s|$)', re.ASCII
)
_PLAIN = re.compile(r"[\w./:@%+,=~-]+")
_UNEVEN_BLANKS = re.compile(r'"[^"]*(?:  |\t)[^"]*"')
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def printable(value: object) -> str:
    """A value for a boot profile as text: none may end its line.

    Raises:
        ProfileRefusedError: it holds a control character.
    """
    text = str(value)
    if found := _CONTROL.search(text):
        raise ProfileRefusedError(
            f"{text[:60]!r} holds the control character {found[0]!r}: kernel parameters are one line."
        )
    return text


def with_root(params: str, root: str) -> str:
    """*params*, and in front of them the *root* file system's unless they name one themselves."""
    named = any(word.startswith("root=") for word in params.split())
    return params if named else f"{root} {params}".strip()


def pxelinux(params: str) -> str:
    """For the end of an ``APPEND`` line.

    Raises:
        ProfileRefusedError: PXELINUX would take a part of it for itself.
    """
    return _without(params, {"initrd="}, "PXELINUX would fetch the file of initrd= itself")


def mboot(params: str) -> str:
    """For one file of mboot.c32; raises as `pxelinux` does."""
    return _without(params, {"---"}, "PXELINUX begins the next file of Xen at ---")


def _without(params: str, beginnings: set[str], why: str) -> str:
    if any(word.startswith(tuple(beginnings)) for word in params.split()):
        raise _refused(params, why)
    return params


def ipxe(params: str) -> str:
    """For the end of a ``kernel`` command, which knows no quoting; raises as `pxelinux` does."""
    if "${" in params or {"&&", "||", ";"} & set(params.split()):
        raise _refused(params, "iPXE takes ${…}, &&, || and ; for its own")
    if params.endswith("\\"):
        raise _refused(params, "iPXE joins a line that ends with a backslash to the next one")
    if _UNEVEN_BLANKS.search(params):
        raise _refused(params, "iPXE makes one blank of several and of tabs, also between quotes")
    return params


def grub(params: str) -> str:
    """Words of a GRUB command, each with a blank in front and in quotes: ``;``, ``$`` and braces mean nothing.

    >>> grub('quiet foo="a b"')
    " 'quiet' 'foo=a b'"

    Raises:
        ProfileRefusedError: GRUB would change it.
    """
    return "".join(f" '{word}'" for word in _grub_words(params))


def _grub_words(params: str) -> list[str]:
    words, end = [], len(params.rstrip())
    position = 0
    while position < end:
        found = _GRUB_WORD.match(params, position)
        if found is None:
            raise _refused(params, "GRUB hands on double quotes around a whole value only")
        words.append(found["whole"] or found["bare"] or found["name"] + found["value"])
        position = found.end()
    if any(sign in word for word in words for sign in "\\'"):
        raise _refused(params, "GRUB puts a backslash in front of backslashes and single quotes")
    if any("\t" in word for word in words):
        raise _refused(params, "GRUB does not quote tabs")
    return words


def grub_file(path: str) -> str:
    r"""The path of a file as a word of GRUB.

    >>> grub_file("/boot/vmlinuz-6.1"), grub_file("/boot/my kernel")
    ('/boot/vmlinuz-6.1', "'/boot/my kernel'")
    """
    return path if _PLAIN.fullmatch(path) else "'" + path.replace("'", "'\\''") + "'"


def grub_menu(kernel: str, initrd: str, params: str) -> str:
    """The ``grub.cfg`` that boots a kernel from the file system that GRUB's ``root`` names; raises as `grub` does."""
    lines = ["set timeout=0", "set default=0", "menuentry 'deployed' {"]
    lines.append(f"  linux {grub_file(kernel)}{grub(params)}")
    if initrd:
        lines.append(f"  initrd {grub_file(initrd)}")
    return "".join(f"{printable(line)}\n" for line in (*lines, "}"))


def _refused(params: str, why: str) -> ProfileRefusedError:
    return ProfileRefusedError(f"the kernel parameters {params!r} would not arrive as they are: {why}; change them.")
