"""What makes the pages, as they stand in the repository, a site: mkdocs calls the functions ``on_…``.

A page links to what a reader of the repository sees: other pages, and files of the source. In the site, the pages of
`ABOVE` are pages as well, and other files of the repository are copied as plain text, so that every link leads
somewhere without a server of the source. Headings have the anchors that forges give them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx import slugs

from kadeploy.cli import reference

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages beside ``docs/``, and what they are in the site; README's place is taken by the site's own first page."""
SOURCE = "source"
"""Folder of the site for files of the repository."""

_FENCE = re.compile(r"^( *)(```+).*?^\1\2$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[(?P<words>[^\]]*)\]\((?P<link>[^)\s:#]+)(?P<anchor>#[^)\s]*)?\)")
_ITEM = re.compile(r"(?:[-*]|\d+\.) +")
_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
_CODE = re.compile(r"`([^`]+)`")
_BAR = "\\|"


def on_config(config: Any) -> None:
    """Give headings the anchors of forges."""
    config.mdx_configs["toc"]["slugify"] = slugs.slugify(case="lower")


def on_files(files: Files, config: Any) -> None:
    """Add the pages that are not in ``docs/``, and the files to which pages link."""
    for name, place in ABOVE.items():
        if files.get_file_from_path(place) is None:
            text = (ROOT / name).read_text(encoding="utf-8")
            files.append(File.generated(config, place, content=_rewritten(text, name, place)))
    files.append(File.generated(config, "reference/messages.md", content=reference.messages()))
    pages = [each for each in files if each.is_documentation_page()]
    for target in sorted({target for page in pages for target in _sources(page)}):
        files.append(File.generated(config, _copied(target), abs_src_path=str(ROOT / target)))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of ``docs/`` lead to where their targets are in the site, and write what forges read otherwise."""
    place = page.file.src_uri
    is_done = place in ABOVE.values() and place != "index.md"
    return markdown if is_done else _rewritten(markdown, f"docs/{place}", place)


def _rewritten(text: str, written: str, place: str) -> str:
    """*text* of the file *written*, for the page *place* of the site."""
    folder = PurePosixPath(place).parent

    def lead(found: re.Match[str]) -> str:
        target = _target(found["link"], written)
        aim = _place(target)
        if not aim:
            return found[0]  # which is told as broken
        words = _title(target) if found["words"] in _names(target) and aim.endswith(".md") else found["words"]
        return f"[{words}]({os.path.relpath(aim, folder)}{found['anchor'] or ''})"

    indented = "\n".join(_indented(text.split("\n")))
    return _outside_blocks(indented, lambda part: _ROW.sub(_row, _LINK.sub(lead, part)))


def _names(target: str) -> set[str]:
    """What a link to a file is called that is known by its path: each end of that."""
    parts = target.split("/")
    return {"/".join(parts[start:]) for start in range(len(parts))}


def _place(target: str) -> str:
    """Where a file of the repository is in the site; empty where it is in neither."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return ABOVE.get(target) or (_copied(target) if (ROOT / target).is_file() else "")


@cache
def _title(target: str) -> str:
    """First heading of a page: in the site nobody knows it by its file."""
    path = ROOT / target
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return next(
        (line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), PurePosixPath(target).name
    )


def _row(found: re.Match[str]) -> str:
    """A row of a table: forges take the backslash in front of a bar away in code too."""
    return _CODE.sub(lambda code: _literal(code[1]) if _BAR in code[1] else code[0], found[0])


def _literal(code: str) -> str:
    """A code span as HTML, in which no sign is Markdown's."""
    signs = {sign: f"&#{ord(sign)};" for sign in "*_[]|"}
    return f"<code>{escape(code.replace(_BAR, '|')).translate(str.maketrans(signs))}</code>"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    """What belongs to a list is indented by four: forges are content with as much as the item's own text."""
    offset, is_code = 0, False
    for line in lines:
        item = _ITEM.match(line)
        if item and not is_code:
            offset = len(item[0])
        elif line and not line.startswith(" " * (offset or 1)):
            offset = 0
        is_code ^= line.lstrip().startswith("```")
        yield line if item or not offset or not line else " " * 4 + line[offset:]


def _outside_blocks(text: str, change: Callable[[str], str]) -> str:
    parts, end = [], 0
    for block in _FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join((*parts, change(text[end:])))


def _sources(page: File) -> set[str]:
    """Files of the repository, beside pages, to which a page links."""
    place = page.src_uri
    written = next((name for name, other in ABOVE.items() if other == place and name != "README.md"), f"docs/{place}")
    text = (ROOT / written).read_text(encoding="utf-8") if (ROOT / written).is_file() else page.content_string
    targets = {_target(found["link"], written) for found in _LINK.finditer(_FENCE.sub("", text))}
    return {
        target
        for target in targets
        if not target.startswith(("docs/", "..")) and target not in ABOVE and (ROOT / target).is_file()
    }


def _target(link: str, written: str) -> str:
    """The path, from the repository's top, to which *link* leads in the file *written*."""
    return os.path.normpath(str(PurePosixPath(written).parent / link))


def _copied(target: str) -> str:
    return f"{SOURCE}/{target}.txt"
