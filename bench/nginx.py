"""A stranger beside the service: nginx, which serves the same bytes from files, on a unix socket too."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/nginx-body;
  proxy_temp_path {folder}/nginx-proxy;
  fastcgi_temp_path {folder}/nginx-fastcgi;
  uwsgi_temp_path {folder}/nginx-uwsgi;
  scgi_temp_path {folder}/nginx-scgi;
  map_hash_bucket_size 256;
  map $request_uri $answer {{
{answers}  }}
  server {{
    listen unix:{socket};
    root {folder};
    location / {{ try_files /$answer =404; }}
  }}
}}
"""


def is_here() -> bool:
    """Whether it is installed (Debian's `nginx-light` is enough)."""
    return shutil.which("nginx", path="/usr/sbin:/usr/bin") is not None


@contextmanager
def serving(folder: Path, answers: Mapping[str, bytes]) -> Iterator[Path]:
    """Serve *answers* by target from files of *folder*, in one process: the socket."""
    folder.mkdir(exist_ok=True)
    lines, socket = [], folder / "nginx.sock"
    for rank, (target, content) in enumerate(answers.items()):
        (folder / str(rank)).write_bytes(content)
        lines.append(f'    "{target}" {rank};\n')
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, socket=socket, answers="".join(lines)))
    words = ["/usr/sbin/nginx", "-e", str(folder / "nginx.log"), "-c", str(configuration)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        try:
            while not socket.exists():
                time.sleep(0.05)
                if process.poll() is not None:
                    raise SystemExit(f"nginx: {(folder / 'nginx.log').read_text()}")
            yield socket
        finally:
            process.terminate()
            socket.unlink(missing_ok=True)
