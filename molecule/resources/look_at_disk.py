"""What this machine sees on the loop device that is a node's disk, as JSON: ``look_at_disk.py FILE``."""

import json
import subprocess
import sys
from typing import Any


def main(file: str) -> None:
    """Print the label and the partitions: type, bytes, file system and its label."""
    device = output("losetup", "--noheadings", "--output", "NAME", "--associated", file).strip()
    read = output("sfdisk", "--json", device)
    table = json.loads(read)["partitiontable"] if read else {"label": None, "partitions": []}
    parts = [seen(part) for part in table.get("partitions", [])]
    print(json.dumps({"label": table["label"], "partitions": parts}))


def seen(part: dict[str, Any]) -> dict[str, Any]:
    """One partition."""
    probed = output("blkid", "--probe", "--output", "export", part["node"])
    found = dict(line.split("=", 1) for line in probed.splitlines())
    size = part["size"] * 512
    return {"type": part["type"], "size": size, "filesystem": found.get("TYPE", ""), "name": found.get("LABEL", "")}


def output(*command: str) -> str:
    """What *command* says; nothing where there is nothing."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


if __name__ == "__main__":
    main(sys.argv[1])
