"""A stranger beside our servers: nginx, in one process, which serves the same bytes from files."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log {log};
  default_type application/octet-stream;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
{servers}}}
"""
_ANSWERS = """\
  map_hash_bucket_size 256;
  map $request_uri $answer {{
{answers}  }}
  server {{
    listen unix:{socket};
    root {folder};
    location / {{ try_files /$answer =404; }}
  }}
"""
_FILES = """\
  server {{
    listen {address}:{port} backlog=4096;
    root {root};
  }}
"""


def is_here() -> bool:
    """Whether it is installed (Debian's `nginx-light` is enough)."""
    return shutil.which("nginx", path="/usr/sbin:/usr/bin") is not None


@contextmanager
def serving(folder: Path, answers: Mapping[str, bytes]) -> Iterator[Path]:
    """Serve *answers* by target from files of *folder*: the unix socket."""
    folder.mkdir(exist_ok=True)
    lines, path = [], folder / "nginx.sock"
    for rank, (target, content) in enumerate(answers.items()):
        (folder / str(rank)).write_bytes(content)
        lines.append(f'    "{target}" {rank};\n')
    servers = _ANSWERS.format(folder=folder, socket=path, answers="".join(lines))
    with _running(folder, servers, "off", path.exists):
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def serving_files(folder: Path, root: Path, address: str, port: int) -> Iterator[int]:
    """Serve the files below *root*, with a log, as a site would; what it needs is in *folder*: the process."""
    folder.mkdir(exist_ok=True)

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((address, port)) == 0

    servers = _FILES.format(root=root, address=address, port=port)
    with _running(folder, servers, f"{folder}/access.log", listens) as pid:
        yield pid


@contextmanager
def _running(folder: Path, servers: str, log: str, listens: Callable[[], bool]) -> Iterator[int]:
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, log=log, servers=servers))
    words = ["/usr/sbin/nginx", "-e", str(folder / "nginx.log"), "-c", str(configuration)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        try:
            while not listens():
                time.sleep(0.05)
                if process.poll() is not None:
                    raise SystemExit(f"nginx: {(folder / 'nginx.log').read_text()}")
            yield process.pid
        finally:
            process.terminate()
