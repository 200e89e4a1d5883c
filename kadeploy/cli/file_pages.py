"""Man pages of section 5: what may stand in each file that people write, from the meanings that the program has.

``python -m kadeploy.cli.file_pages docs/man5`` writes them anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kadeploy import __version__
from kadeploy.admin import commented
from kadeploy.cli import reference
from kadeploy.cli.manpages import literal
from kadeploy.client.servers import Client
from kadeploy.config.cluster import Cluster
from kadeploy.config.site import Site
from kadeploy.environments import document, lines
from kadeploy.workers.settings import Worker


class Page(NamedTuple):
    """What a page tells besides the keys."""

    kind: type[Any]
    summary: str
    files: Mapping[str, str]
    about: Sequence[str]
    """Paragraphs."""
    example: str
    """A file that has what is required, and a little more."""
    others: Sequence[str]
    """Pages to read on."""


PAGES: Mapping[str, Page] = {
    "kadeploy-site.yml": Page(
        Site,
        "the configuration of a site",
        {"/etc/kadeploy/site.yml": "Unless KADEPLOY_CONFIG_DIR names another folder. It is root's."},
        (
            "A file in YAML. kadeploy-site init writes one that has every key, set or as a comment, and kadeploy-site "
            "check tells what is wrong with it. An unknown key is refused. The service reads a changed file within a "
            "second, and goes on with the one before where something is wrong.",
        ),
        """\
name: paris
state_dir: /var/lib/kadeploy
server_address: 10.0.0.1
ssh:
  private_key: /var/lib/kadeploy/keys/site_ed25519
  host_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHaq7bhOPDK1mHvvcHQ0LvgcVxuPyG2ja9pXQQ8UIwPf
boot:
  tftp_root: /srv/kadeploy/tftp
  http_root: /srv/kadeploy/http
  http_url: http://10.0.0.1/
almighty_users: [root, ada]
""",
        ("kadeploy-cluster.yml(5)", "kadeploy-site(1)", "kadeploy3d(1)"),
    ),
    "kadeploy-cluster.yml": Page(
        Cluster,
        "the configuration of a cluster of like nodes",
        {"/etc/kadeploy/clusters/NAME.yml": "One for each cluster, which is called as its file is."},
        (
            "A file in YAML. kadeploy-site init --cluster NAME writes one that has every key, set or as a comment. An "
            "unknown key is refused. Ranges of names, addresses and BMCs of one entry have one length.",
        ),
        """\
nodes:
  - {name: "gdx-[1-100].paris.example", address: "10.0.1.[1-100]", bmc: "10.0.2.[1-100]"}
disk:
  device: /dev/sda
  table: msdos
  partitions:
    - {number: 1, size: 4GiB, role: swap}
    - {number: 2, size: 20GiB, role: prod}
    - {number: 3, size: 50GiB, role: deploy}
    - {number: 5, role: tmp}
power: {driver: ipmi, user: ADMIN, password_file: /var/lib/kadeploy/keys/bmc-gdx}
""",
        ("kadeploy-site.yml(5)", "kadeploy-site(1)"),
    ),
    "kadeploy-client.yml": Page(
        Client,
        "the services that a user's tools know by name",
        {
            "~/.config/kadeploy/client.yml": "The user's own.",
            "/etc/kadeploy/client.yml": "Of everybody who has none. KADEPLOY_CLIENT names another file.",
        },
        ("A file in YAML. Secrets are in files of their own, which the user alone may read.",),
        """\
default: paris
servers:
  paris: {url: "https://kadeploy.paris.example:25300", token_file: token}
""",
        ("kadeploy3(1)", "kadeploy3d(1)"),
    ),
    "kadeploy-worker.yml": Page(
        Worker,
        "the settings of a worker",
        {"/etc/kadeploy/worker.yml": "On the worker's machine; --settings names another file."},
        (
            "A file in YAML. An unknown key is refused. Secrets are in files of their own, which the worker's account "
            "alone may read. kadeploy-worker reads it when it starts.",
        ),
        """\
url: https://kadeploy.paris.example:25300
token_file: /etc/kadeploy/worker-token
database_file: /etc/kadeploy/worker-database
clusters: [gdx, gros]
shards: 4
""",
        ("kadeploy-worker(1)", "kadeploy-site.yml(5)", "kadeploy-cluster.yml(5)"),
    ),
    "kadeploy-environment": Page(
        document.FORM,
        "the description of an environment",
        {"NAME.dsc, NAME.yml": "Wherever its user keeps it: kaenv3 -a records it, kadeploy3 -a deploys it."},
        (
            "A file in YAML or JSON with these keys, or lines as those of Kadeploy 3.1, see LINES. An unknown key is "
            "left out with a warning. Files are absolute paths, URLs, or relative to the description.",
        ),
        """\
name: debian12
version: 2024090216
os: linux
image: {file: /srv/images/debian12.tar.zst, kind: tar, compression: zstd}
boot: {kernel: /vmlinuz, initrd: /initrd.img}
filesystem: ext4
""",
        ("kaenv3(1)", "kadeploy3(1)", "kadeploy-site(1)"),
    ),
}
"""By name."""


def page(name: str) -> str:
    """The man page *name* of section 5, in roff: groff_man(7)."""
    found = PAGES[name]
    written = [f'.TH {literal(name.upper())} 5 "" "Kadeploy {__version__}" "Kadeploy"']
    written += [".SH NAME", literal(f"{name} - {found.summary}"), ".SH DESCRIPTION"]
    written += [line for paragraph in found.about for line in (".PP", literal(paragraph))][1:]
    written += [".SH KEYS", literal("Keys without a default are required, but for sections. null: it is not set.")]
    for place, section in reference.sections(found.kind):
        written += [f".SS {literal(place)}"] if place else []
        written += [line for key in commented.keys(section) for line in _key(key)]
    if found.kind is document.FORM:
        written += [".SH LINES", literal("KEY : VALUE, a line each; here with the field that each one is.")]
        written += [part for line, field in lines.KEYS.items() for part in _term(line, literal(str(field)))]
    written += [".SH EXAMPLE", ".nf", *map(literal, found.example.splitlines()), ".fi"]
    written += [".SH FILES", *(part for path, what in found.files.items() for part in _term(path, literal(what)))]
    others = (other.removesuffix(")").partition("(") for other in found.others)
    written += [".SH SEE ALSO", " ,\n".join(f".BR {literal(other)} ({section})" for other, _, section in others)]
    return "\n".join(written) + "\n"


def _key(key: commented.Key) -> list[str]:
    """What it is called, what it may be, and what it means."""
    typed = reference.typed(key.kind).replace("`", "")
    default = "" if key.required or key.section else f"Default: {json.dumps(key.default)}."
    told = " ".join(filter(None, (key.meaning, default)))
    return _term(key.name, literal(told or "Required."), f" ({typed})")


def _term(word: str, meaning: str, more: str = "") -> list[str]:
    return [".TP", f"\\fB{literal(word)}\\fR{literal(more)}", meaning]


def main(arguments: Sequence[str]) -> int:
    """Write the pages into a folder."""
    if len(arguments) != 1:
        print(f"usage: python -m {__spec__.name} FOLDER", file=sys.stderr)
        return 1
    for name in PAGES:
        (Path(arguments[0]) / f"{name}.5").write_text(page(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
