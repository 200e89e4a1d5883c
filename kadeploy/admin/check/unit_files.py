"""Units of systemd as their files say, whether systemd runs or not (systemd.unit(5))."""

from __future__ import annotations

from pathlib import Path

SERVICE = "kadeploy3d.service"
CONSOLES = "kadeploy3d-consoles.service"
BOOT_SERVER = "kadeploy-bootserver.service"
FOLDERS = tuple(Path(each) for each in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"))
"""What is above ``systemd/system``; a file in the first ones counts in place of its namesake in a later one."""


def folders() -> list[Path]:
    """Folders of units, the one that counts most first."""
    return [folder / "systemd/system" for folder in FOLDERS]


def find(unit: str) -> Path | None:
    """The file of *unit*; None: it is not installed."""
    return next((folder / unit for folder in folders() if (folder / unit).exists()), None)


def setting(unit: str, key: str) -> str:
    """The last value that *unit* and its drop-ins give *key*; empty where they give none."""
    found = [line for path in _files(unit) for line in _lines(path) if line.partition("=")[0].strip() == key]
    return found[-1].partition("=")[2].strip() if found else ""


def is_on(unit: str, key: str) -> bool:
    """Whether *unit* says yes to *key*."""
    return setting(unit, key).lower() in ("1", "yes", "true", "on")


def account(unit: str) -> str:
    """As whom *unit* runs."""
    return setting(unit, "User") or "root"


def _files(unit: str) -> list[Path]:
    """The unit's file, then its drop-ins by their names."""
    own = find(unit)
    drop_ins = {path.name: path for folder in reversed(folders()) for path in (folder / f"{unit}.d").glob("*.conf")}
    return ([own] if own else []) + [drop_ins[name] for name in sorted(drop_ins)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
