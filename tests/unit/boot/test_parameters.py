"""Kernel parameters arrive at the kernel as the description has them, by every loader, or are refused with a reason."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.boot import parameters
from kadeploy.errors import ProfileRefusedError

TEXTS = st.text(st.one_of(st.sampled_from("ab =\"'\\$;&|{}#-\t"), st.characters(exclude_categories=["Cc", "Cs"])))


def parsed(line: str) -> list[tuple[str, str | None]]:
    """A command line as Linux takes it apart (`next_arg` in lib/cmdline.c): names and values."""
    found = []
    rest = line.strip(" \t")
    while rest:
        quoted = inside = rest[0] == '"'
        rest = rest[1:] if quoted else rest
        equals = end = 0
        for end, sign in enumerate(rest):
            if sign in " \t" and not inside:
                break
            if not equals and sign == "=":
                equals = end
            inside ^= sign == '"'
        else:
            end = len(rest)
        word, rest = rest[:end], rest[end:].lstrip(" \t")
        value = word[equals + 1 :] if equals else None
        if value is not None and value.startswith('"'):
            value = value[1:].removesuffix('"')
        if quoted and value is not None:
            value = value.removesuffix('"')
        name = word[:equals] if equals else word.removesuffix('"') if quoted else word
        found.append((name, value))
    return found


def by_grub(params: str) -> str:
    """What GRUB makes of its words (`grub_create_loader_cmdline` in grub-core/lib/cmdline.c)."""
    words = shlex.split(parameters.grub(params), comments=False)
    escaped = ["".join(f"\\{sign}" if sign in "\\'\"" else sign for sign in word) for word in words]
    return " ".join(f'"{word}"' if " " in word else word for word in escaped)


def by_ipxe(params: str) -> str:
    """iPXE joins its words with one blank each."""
    return " ".join(re.split("[ \t]+", parameters.ipxe(params)))


LOADERS: dict[str, Callable[[str], str]] = {
    "grub": by_grub,
    "ipxe": by_ipxe,
    "pxelinux": parameters.pxelinux,
    "mboot": lambda params: " ".join(parameters.mboot(params).split(" ")),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "params",
    [
        "quiet console=ttyS0,115200",
        'foo="a b" x',
        '"foo=a b"',
        'foo="" bar="c"',
        "  a   b ",
        "a=b=c a;b $x {y} #z",
        "é=ü",
    ],
)
def test_what_is_usual_reaches_the_kernel_by_every_loader(loader: str, params: str) -> None:
    assert parsed(LOADERS[loader](params)) == parsed(params)


@given(st.sampled_from(sorted(LOADERS)), TEXTS)
def test_a_parameter_arrives_as_it_is_or_is_refused(loader: str, params: str) -> None:
    try:
        arrived = LOADERS[loader](params)
    except ProfileRefusedError:
        return
    assert parsed(arrived) == parsed(params)


@pytest.mark.parametrize(
    ("loader", "params", "reason"),
    [
        (parameters.grub, "path=C:\\x", "backslash"),
        (parameters.grub, "a='b'", "single quotes"),
        (parameters.grub, 'a=b"c d"', "around a whole value"),
        (parameters.grub, 'a="b', "around a whole value"),
        (parameters.grub, 'a="b\tc"', "tabs"),
        (parameters.pxelinux, "quiet initrd=/other", "initrd="),
        (parameters.mboot, "quiet --- x", "---"),
        (parameters.ipxe, "a=${b}", "for its own"),
        (parameters.ipxe, 'a="b  c"', "one blank"),
        (parameters.ipxe, "a=b\\", "backslash"),
    ],
)
def test_what_a_loader_would_change_is_refused_with_the_reason(
    loader: Callable[[str], str], params: str, reason: str
) -> None:
    with pytest.raises(ProfileRefusedError, match=reason):
        loader(params)


def test_the_menu_on_the_disk_is_one_that_grub_reads_and_blanks_in_paths_are_kept() -> None:
    text = parameters.grub_menu("/boot/my kernel", "/boot/it's", 'root=/dev/sda3 ro a=$b;{ "c=d e"')
    assert "  linux '/boot/my kernel' 'root=/dev/sda3' 'ro' 'a=$b;{' 'c=d e'\n" in text
    assert "  initrd '/boot/it'\\''s'\n" in text
    checked = subprocess.run(["grub-script-check"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_menu_on_the_disk_has_no_line_of_a_users() -> None:
    with pytest.raises(ProfileRefusedError, match="control character"):
        parameters.grub_menu("/vmlinuz\nreboot", "", "")
