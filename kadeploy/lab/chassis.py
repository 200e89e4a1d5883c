"""What a BMC runs to switch its machine: asks the supervisor, over its socket.

Called by ``ipmi_sim`` as ``chassis.py SOCKET NODE get power`` or ``… set power|reset|shutdown VALUE``; ``get`` answers
``power:0`` or ``power:1`` on the standard output, a failure is told by the exit status. It imports little, since it
starts at every query.
"""

import json
import socket
import sys

OPERATIONS = {
    ("get", "power", ""): "status",
    ("set", "power", "1"): "on",
    ("set", "power", "0"): "off",
    ("set", "reset", "1"): "reset",
    ("set", "shutdown", "1"): "shutdown",
}
"""Words of ``ipmi_sim`` → operation of the supervisor."""


def ask(path: str, operation: str, node: str, by: str = "bmc") -> dict[str, object]:
    """The supervisor's answer: ``ok``, and ``on`` or ``error``; a BMC may be faulty, who asks *by* hand is not."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(path)
        connection.sendall(json.dumps({"operation": operation, "node": node, "by": by}).encode() + b"\n")
        with connection.makefile() as stream:
            answer: dict[str, object] = json.loads(stream.readline())
    return answer


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 refused."""
    path, node, verb, what, *value = arguments
    if (verb, what) == ("get", "boot"):
        print("boot:none")
        return 0
    if (verb, what) == ("set", "boot"):  # these machines try the network first in any case
        return 0
    operation = OPERATIONS.get((verb, what, value[0] if value else ""))
    if operation is None:  # identify…: not what this machine has
        return 1
    answer = ask(path, operation, node)
    if not answer["ok"]:
        print(answer.get("error"))
        return 1
    if verb == "get":
        print(f"power:{int(bool(answer['on']))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
