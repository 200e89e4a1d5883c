"""Archives of fsarchiver, made of file systems in files; needs root."""

from __future__ import annotations

import subprocess
from pathlib import Path


def save(path: Path, *raw: Path, level: int = 1) -> Path:
    """An archive of the file systems in these files; *level* is that of fsarchiver, 0 to 9."""
    devices: list[str] = []
    try:
        for file in raw:
            found = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True, check=True)
            devices.append(found.stdout.strip())
        subprocess.run(["fsarchiver", "-z", str(level), "savefs", path, *devices], capture_output=True, check=True)
    finally:
        for device in devices:
            subprocess.run(["losetup", "-d", device], check=True)
    return path
