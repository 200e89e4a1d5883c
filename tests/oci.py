"""Container images made by hand: folders in the layout of the OCI image specification."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Layer = Mapping[str, str] | Path
"""Text of each file, or an empty folder where the name ends with a slash; or an archive."""

_TYPE = "application/vnd.oci.image"


def layout(
    folder: Path, layers: Sequence[Layer], architecture: str = "amd64", diff_ids: Sequence[str] | None = None
) -> None:
    """Write an image, tagged ``1``."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    plain = [each.read_bytes() if isinstance(each, Path) else _archive(each) for each in layers]
    kept = [_put(blobs, gzip.compress(each, 1), "layer.v1.tar+gzip") for each in plain]
    sums = list(diff_ids or (f"sha256:{hashlib.sha256(each).hexdigest()}" for each in plain))
    config = {"architecture": architecture, "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": sums}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _put(blobs, json.dumps(config).encode(), "config.v1+json"),
        "layers": kept,
    }
    listed = _put(blobs, json.dumps(manifest).encode(), "manifest.v1+json")
    named = {**listed, "annotations": {"org.opencontainers.image.ref.name": "1"}}
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))


def _archive(files: Mapping[str, str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def _put(blobs: Path, content: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}
