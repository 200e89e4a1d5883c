"""Container images made by hand, in the layout of the OCI image specification, and a registry that serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Layer = Mapping[str, str] | Path
"""Text of each file, ``->`` and a link's target, an empty folder where the name ends with a slash; or an archive."""

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
            elif text.startswith("->"):
                member.type, member.linkname = tarfile.SYMTYPE, text.removeprefix("->")
            else:
                member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return stream.getvalue()


def _put(blobs: Path, content: bytes, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": f"sha256:{digest}", "size": len(content)}


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Debian's registry, without TLS, whose files are in *folder*: its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"version": 0.1, "storage": {"filesystem": {"rootdirectory": str(folder)}}, "http": {"addr": address}}
    (folder / "config.yml").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log)
    try:
        _await(address, server)
        yield address
    finally:
        server.kill()
        server.wait()


def _await(address: str, server: subprocess.Popen[bytes]) -> None:
    host, port = address.split(":")
    limit = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the registry did not start"
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            assert time.monotonic() < limit
            time.sleep(0.05)
        else:
            return


def push(folder: Path, registry: str, name: str, *layers: Layer, **how: Any) -> str:
    """Put an image with these layers into a registry, as `layout` makes it in *folder*: its reference."""
    layout(folder, layers, **how)
    source, target = f"oci:{folder}:1", f"docker://{registry}/{name}"
    subprocess.run(["skopeo", "copy", "--dest-tls-verify=false", source, target], check=True, capture_output=True)
    return f"oci://{registry}/{name}"
