"""Certificates for tests: an authority of one's own, and what it signs.

They have the extensions that RFC 5280 asks for, and Python since 3.13, unless they are to be as made by hand.
"""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Makes keys and certificates in *folder* with ``openssl``; *by_hand* with no extension that can be left out."""

    def __init__(self, folder: Path, name: str = "authority", *, by_hand: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self.by_hand = by_hand
        usage = () if by_hand else ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self._openssl("req", "-x509", *_NEW, "-keyout", "ca.key", "-out", "ca.pem", "-subj", f"/CN={name}", *usage)

    def issue(self, name: str, *more: str, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 1) -> Path:
        """A certificate for *name* and its key, in one file, which its owner alone can read; *days* may be negative."""
        keys = "" if self.by_hand else "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        (self.folder / "extensions").write_text(f"subjectAltName={names}\n{keys}")
        self._openssl("req", *_NEW, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", str(days), "-extfile", "extensions", *more)
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
        file = self.folder / f"{name}.pem"
        file.write_text(file.read_text() + (self.folder / f"{name}.key").read_text())
        file.chmod(0o600)
        return file

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
