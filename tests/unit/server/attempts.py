"""What mallory, an ordinary account, tries against what is victor's, or the site's: data, by kind.

``{NAME}`` stands for what the test knows: ids of victor's workflows, the SHA-256 of a file of theirs, tokens and so on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CLOSED = 0
"""In place of a status: the connection is closed without a word."""
NOTHING = 200
"""The answer is there, and empty: what is asked for is nowhere."""
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Attempt:
    """One attempt and the status of its refusal; texts are bytes of their own numbers (Latin-1)."""

    name: str
    method: str
    path: str
    status: int
    body: str = ""
    headers: Headers = ()
    shown: str | None = "Bearer {token}"
    """The ``Authorization`` header; None: there is none."""
    raw: str = ""
    """What is sent in place of all this."""
    socket: bool = False
    """Sent over the unix socket, as the account nobody."""
    certificate: str = ""
    is_noted: bool | None = None
    """Whether the audit log has it; None: it tries a change, or is refused for who asks."""
    patience: float = 60.0
    """Seconds that the service waits for the rest of it."""

    @property
    def has_to_be_noted(self) -> bool:
        """Whether it tries a change, or to be somebody, by what it says."""
        if self.is_noted is not None:
            return self.is_noted
        return self.method not in ("GET", "HEAD", "OPTIONS") or self.status in (401, 403, 429)


def get(name: str, path: str, status: int, *headers: tuple[str, str], **more: Any) -> Attempt:
    return Attempt(name, "GET", path, status, headers=headers, **more)


def put(name: str, path: str, status: int, body: Any = "", **more: Any) -> Attempt:
    return _with_body(name, "PUT", path, status, body, **more)


def patch(name: str, path: str, status: int, body: Any = "", **more: Any) -> Attempt:
    return _with_body(name, "PATCH", path, status, body, **more)


def post(name: str, path: str, status: int, body: Any = "", **more: Any) -> Attempt:
    return _with_body(name, "POST", path, status, body, **more)


def delete(name: str, path: str, status: int, **more: Any) -> Attempt:
    return Attempt(name, "DELETE", path, status, **more)


def _with_body(name: str, method: str, path: str, status: int, body: Any, **more: Any) -> Attempt:
    return Attempt(name, method, path, status, body if isinstance(body, str) else json.dumps(body), **more)


def deploy(name: str, status: int, /, **changes: Any) -> Attempt:
    """A deployment on mallory's own node, with *changes*."""
    wanted = {"type": "deploy", "nodes": ["gdx-4"], "environment": {"type": "recorded", "name": "mine"}}
    return post(name, "/v1/deployments", status, wanted | changes)


def power(name: str, nodes: Any, status: int, /, **changes: Any) -> Attempt:
    return post(name, "/v1/power", status, {"type": "power", "nodes": nodes, "operation": "on"} | changes)


def record(name: str, status: int = 400, /, **changes: Any) -> Attempt:
    """An environment of mallory's own, with *changes*, is to be recorded."""
    image = {"file": "server://{folder}/files/image.tgz", "kind": "tgz"}
    wanted = {"name": "new", "image": image, "kernel": "/vmlinuz", "filesystem": "ext4"} | changes
    return post(name, "/v1/environments", status, {"environments": [wanted]})


def image(file: str) -> dict[str, str]:
    return {"file": file, "kind": "tgz"}


def raw(name: str, text: str, status: int, **more: Any) -> Attempt:
    """Bytes that are no request as it should be; one that no program sees is not written down."""
    return Attempt(name, "", "", status, raw=text, **{"is_noted": False} | more)


RIGHTS = "/v1/rights?user=victor"
"""Somebody else's rights: refused to mallory with 403, whatever is put around the question."""
AUTHORIZED = "Host: x\r\nAuthorization: Bearer {token}\r\n"

# --- workflows, environments, rights, nodes, consoles -----------------------------------------------------------------

WORKFLOWS = (
    get("follow one that runs", "/v1/workflows/{running}/events", 403),
    get("follow one that has ended", "/v1/workflows/{ended}/events", 403),
    get("follow one from the middle", "/v1/workflows/{running}/events", 403, ("Last-Event-ID", "1")),
    get("follow one as a browser", "/v1/workflows/{running}/events", 403, ("Accept", "text/event-stream")),
    delete("cancel one that runs", "/v1/workflows/{running}", 403),
    delete("cancel one that has ended", "/v1/workflows/{ended}", 403),
    delete("cancel one in upper case", "/v1/workflows/{running}?force=true", 403),
    post("cancel by another method", "/v1/workflows/{running}", 405, headers=[("X-HTTP-Method-Override", "DELETE")]),
    post("cancel by a field of the form", "/v1/workflows/{running}?_method=DELETE", 405),
    put("end one by overwriting it", "/v1/workflows/{running}", 405, {"state": "ended"}),
    patch("give one to mallory", "/v1/workflows/{running}", 405, {"user": "mallory"}),
    delete("cancel all", "/v1/workflows", 405),
    delete("cancel by a pattern", "/v1/workflows/*", 400),
    delete("cancel what a path leads to", "/v1/workflows/..%2f..%2fruns%2f{running}", 404),
    delete("the original's cancel", "/power/{running}", 403),
    delete("the original's cancel of one that has ended", "/deployment/{ended}", 403),
    *(get(f"the original's {what}", f"/power/{{running}}/{what}", 403) for what in ("state", "status", "error")),
    *(
        get(f"the original's {what} of one that has ended", f"/deployment/{{ended}}/{what}", 403)
        for what in ("state", "status", "error")
    ),
    get("its log", "/power/{running}/logs", 403),
    get("its log by cluster", "/power/{running}/logs/gdx", 403),
    get("what commands said", "/deployment/{ended}/debugs", 403),
    get("what commands said on a node", "/deployment/{ended}/debugs/gdx-2.site", 403),
    get("its log as another kind", "/deployment/{running}/logs", 400),
    get("its log as YAML", "/power/{running}/state", 403, ("Accept", "application/x-yaml")),
    post(
        "operate on a node that they hold", "/v1/power", 403, {"type": "power", "nodes": ["gdx-1"], "operation": "off"}
    ),
    power("take a node from them", ["gdx-1"], 403, ignore_nodes_deploying=True),
    put("the original's way to take it", "/power", 400, {"nodes": ["gdx-1"], "status": "off", "force": True}),
    post(
        "start in their name",
        "/v1/power",
        403,
        {"type": "power", "nodes": ["gdx-1"], "operation": "on", "user": "victor"},
    ),
    post(
        "start in root's name",
        "/v1/reboots",
        403,
        {"type": "reboot", "nodes": ["gdx-4"], "kind": "simple_reboot", "user": "root"},
    ),
)

PRIVATE, SHARED = "name=private&owner=victor", "name=shared&owner=victor"
ENVIRONMENTS = (
    get("read a private one", f"/v1/environments?{PRIVATE}", 400),
    get("read a private one by its whole name", "/v1/environments?name=private@victor:1", 400),
    get("read it where the original has it", "/environments/victor/private", 404),
    get("read its version where the original has it", "/environments/victor/private/1", 404),
    get("find it by a pattern", "/v1/environments?name=%25&owner=victor", 400),
    get("find it by SQL", "/v1/environments?name=x'%20OR%20'1'='1&owner=victor", 400),
    get("find it by SQL in a version", "/v1/environments?name=private&version=1%20OR%201=1", 400),
    get("find it by a name with a null", "/v1/environments?name=private%00&owner=victor", 400),
    get("find it as its owner in upper case", "/v1/environments?name=private&owner=VICTOR", 400),
    *(
        patch(f"publish a {what} one", f"/v1/environments?{query}", 403, {"visibility": "public"})
        for what, query in (("private", PRIVATE), ("shared", SHARED))
    ),
    patch("publish one's own", "/v1/environments?name=mine", 403, {"visibility": "public"}),
    patch("hide a shared one", f"/v1/environments?{SHARED}", 403, {"visibility": "private"}),
    patch("take its tag off", f"/v1/environments?{SHARED}", 403, {"demolishing": 0}),
    patch("record its checksums anew", f"/v1/environments?{SHARED}", 403, {"checksums": "tarball"}),
    delete("delete a shared one", f"/v1/environments?{SHARED}", 403),
    delete("delete a private one", f"/v1/environments?{PRIVATE}", 403),
    *(
        put(f"the original's {what}", "/environments/victor/shared", status, body)
        for what, status, body in (
            ("visibility", 403, {"visibility": "public"}),
            ("toggle_destructive", 400, {"toggle_destructive": True}),
            ("checksum", 403, {"update_image_checksum": True}),
        )
    ),
    delete("the original's delete", "/environments/victor/shared", 403),
    delete("the original's delete of a version", "/environments/victor/shared/1", 403),
    deploy("deploy a private one", 400, environment={"type": "recorded", "name": "private", "owner": "victor"}),
    deploy("deploy it by its whole name", 400, environment={"type": "recorded", "name": "private@victor"}),
    post(
        "the original's deployment of it",
        "/deployment",
        400,
        {"nodes": ["gdx-4"], "environment": {"name": "private", "user": "victor"}},
    ),
    post(
        "boot it",
        "/v1/reboots",
        400,
        {
            "type": "reboot",
            "nodes": ["gdx-4"],
            "kind": "env_recorded",
            "environment": {"type": "recorded", "name": "private", "owner": "victor"},
            "options": {"partition": 3},
        },
    ),
    post("move files of all", "/v1/environments/moves", 403, {"moves": [["server:///", "/tmp/"]]}),
    post("ask for the files of all", "/v1/environments/moved", 403, {"moves": [["server:///", "/tmp/"]]}),
    put("the original's move", "/environments", 403, {"update_files": {"/": "/tmp/"}}),
    post(
        "the original's, in another's name",
        "/environments",
        403,
        {
            "name": "x",
            "os": "linux",
            "user": "victor",
            "image": {"file": "server://{folder}/files/image.tgz", "kind": "tar", "compression": "gzip"},
            "filesystem": "ext4",
            "boot": {"kernel": "/vmlinuz"},
        },
    ),
    record("record a public one", 403, visibility="public"),
    record("a name of terminal escapes", name="\u001b]0;owned\u0007"),
    record("a name of two lines", name="x\nvisibility: public"),
    record("no name", name=" "),
    record("a name without end", name="n" * 100_000),
    record("half a character", name="\ud800"),
    record("a kernel outside of the image", kernel="/boot/../../etc/shadow"),
    record("a file system with options", filesystem="ext4 -F /dev/sda1"),
    record("a type that is a command", fdisktype="83;reboot"),
    record("a partition that is a path", part="/dev/../etc/passwd"),
    record("a disk that is a path", block_device="/dev/../etc"),
    record("kernel parameters of two lines", kernel_params="quiet\nKERNEL evil"),
    record("a variable of the site's", custom_variables={"SECRET": "mine"}),
    record("a variable that is a command", custom_variables={"A$(reboot)": "x"}),
    record("a version below nought", version=-1),
    record("a version without end", version=10**30),
    record("a field that there is not", is_admin=True),
    record("an architecture that is a path", arch="../x86_64"),
    record(
        "two partitions of one name",
        multipart=True,
        block_device="/dev/sda",
        boot_partition=1,
        partitions=[{"id": 0, "device": "/dev/sda1"}] * 2,
    ),
    record(
        "a script of two lines",
        postinstalls=[{"file": "server://{folder}/files/image.tgz", "kind": "tgz", "script": "a\nb"}],
    ),
)

RIGHTS_OF_OTHERS = (
    post("give oneself all", "/v1/rights", 403, {"user": "mallory", "nodes": ["*"], "parts": ["*"]}),
    post(
        "take nodes over",
        "/v1/rights",
        403,
        {"user": "mallory", "nodes": ["gdx-1.site"], "parts": ["/dev/sda3"], "overwrite": True},
    ),
    post(
        "longer than one has",
        "/v1/rights",
        403,
        {"user": "mallory", "nodes": ["gdx-4.site"], "parts": ["/dev/sda3"], "until": 4_000_000_000},
    ),
    post(
        "until the end of time", "/v1/rights", 400, {"user": "mallory", "nodes": ["*"], "parts": ["*"], "until": 10**30}
    ),
    post("the original's grant", "/rights", 403, {"username": "mallory", "nodes": ["gdx-1"], "overwrite": True}),
    post("the original's grant of everything", "/rights", 403, {}),
    delete("take somebody's", "/v1/rights?user=victor&nodes=gdx-1.site&parts=*", 403),
    delete("take root's", "/v1/rights?user=root&nodes=*&parts=*", 403),
    delete("the original's revocation", "/rights/victor", 403),
    delete("the original's revocation on a node", "/rights/victor/gdx-1.site", 403),
    get("see all", "/v1/rights", 403),
    get("see somebody's", RIGHTS, 403),
    get("see somebody's beside one's own", "/v1/rights?user=mallory&user=victor", 403),
    get("see somebody's, name in upper case", "/v1/rights?user=MALLORY", 403),
    get("see somebody's, name with a blank", "/v1/rights?user=mallory%20", 403),
    get("see somebody's, name with a null", "/v1/rights?user=mallory%00", 403),
    get("see nobody's", "/v1/rights?user=", 403),
    get("the original's list", "/rights", 403),
    get("the original's of one", "/rights/victor", 403),
    get("the original's of one on a node", "/rights/victor/gdx-1.site", 403),
    power("a node of others", ["gdx-1"], 403),
    power("a node of nobody", ["gdx-8"], 403),
    power("one of others among one's own", ["gdx-4", "gdx-1"], 403),
    power("a range that reaches beyond one's own", ["gdx-[4-6]"], 400),
    power("another part of the node", ["gdx-4"], 403, user="victor"),
    deploy("on another partition", 403, options={"partition": 2}),
    deploy("on another disk", 403, options={"block_device": "/dev/sdb", "partition": 3}),
    deploy("on the whole disk", 403, options={"block_device": "/dev/sda", "whole_device": True}),
    deploy("on a disk that is a path", 400, options={"block_device": "/dev/../etc/passwd", "partition": 3}),
    deploy(
        "with an environment that wants another partition",
        403,
        environment={
            "type": "described",
            "environment": {
                "name": "x",
                "image": image("server://{folder}/files/image.tgz"),
                "kernel": "/vmlinuz",
                "filesystem": "ext4",
                "part": "/dev/sda2",
            },
        },
    ),
    post(
        "the original's deployment on another partition",
        "/deployment",
        400,
        {"nodes": ["gdx-4"], "environment": {"name": "mine"}, "deploy_part": 2},
    ),
)

NODES = (
    get("states of a billion nodes", "/v1/nodes?nodes=%5B1-999999999%5D", 400),
    get("ranges of ranges", "/v1/nodes?nodes=gdx-%5B1-%5B2-3%5D%5D", 400),
    get("many ranges in one name", "/v1/nodes?nodes=" + "%5B1-9%5D" * 12, 400),
    get("a range backwards", "/v1/nodes?nodes=gdx-%5B9-1%5D", 400),
    get("a number of 5,000 digits", "/v1/nodes?nodes=gdx-" + "9" * 5000, 400),
    get("a node that is a path", "/v1/nodes?nodes=..%2f..%2fetc%2fpasswd", 400),
    get("digits of another script", "/v1/nodes?nodes=gdx-%EF%BC%91", 400),
    get("who has a node that there is not", "/v1/holders?nodes=gdx-99", 400),
    get("a node by its place in the original's", "/nodes/..%2fgdx-1", 404),
    put("overwrite states", "/v1/nodes", 405, [{"hostname": "gdx-1.site", "state": "deployed"}]),
    delete("forget states", "/v1/nodes?nodes=gdx-1", 405),
    power("all of them", ["*"], 400),
    power("none", [], 400),
    power("an empty name", [""], 400),
    power("a name of two lines", ["gdx-4.site\ngdx-1.site"], 400),
    power("a name in upper case", ["GDX-1.SITE"], 400),
    power("a name with a nought before its number", ["gdx-04"], 400),
    power("a name that is an option", ["--all"], 400),
    power("names as one text", "gdx-4", 400),
    power("names as an object", {"gdx-4": 1}, 400),
    power("a hundred thousand names", ["gdx-4.site"] * 100_000, 413),
    deploy("a VLAN that is an option", 400, options={"vlan": "-x"}),
    deploy("a VLAN that is a host elsewhere", 400, options={"vlan": "9.evil.example"}),
    deploy("a time-out that is a program", 400, options={"reboot_timeout": "__import__('os').system('id')"}),
    deploy("a time-out that takes for ever", 400, options={"kexec_timeout": "9**9**9**9"}),
    deploy("a file system that is a command", 400, options={"reformat_tmp": "ext4;id"}),
    deploy("a breakpoint that is a path", 400, options={"breakpoint": "../../x:y"}),
    deploy(
        "a playbook that is a path",
        400,
        force_steps={"SetDeploymentEnv": [{"implementation": "../../../tmp/x"}], "BroadcastEnv": [], "BootNewEnv": []},
    ),
    deploy(
        "a playbook of another step",
        400,
        force_steps={
            step: [{"implementation": "PowerOff"}] for step in ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
        },
    ),
    deploy("half of the steps", 400, force_steps={"BroadcastEnv": [{"implementation": "BroadcastEnvDummy"}]}),
    deploy(
        "tries without end",
        400,
        force_steps={
            step: [{"implementation": f"{step}Dummy", "retries": 10**30}]
            for step in ("SetDeploymentEnv", "BroadcastEnv", "BootNewEnv")
        },
    ),
    deploy(
        "a boot profile's word for a node of others",
        400,
        options={"pxe_profile": "X NODE_SINGULARITY", "singularities": {"gdx-1.site": "x"}},
    ),
    get("what commands of others would do", "/v1/statistics/rows", 405),
    post(
        "columns that are none",
        "/v1/statistics/rows",
        400,
        {"selection": {}, "fields": ["user, (SELECT digest FROM tokens)"]},
        is_noted=False,
    ),
    post(
        "an order that is SQL",
        "/v1/statistics/rows",
        400,
        {"selection": {}, "fields": ["user"], "order": ["user; DROP TABLE log"]},
        is_noted=False,
    ),
    post(
        "an attribute of the table's",
        "/v1/statistics/rows",
        400,
        {"selection": {}, "fields": ["_meta"]},
        is_noted=False,
    ),
    post(
        "a step that there is not",
        "/v1/statistics/rows",
        400,
        {"selection": {}, "fields": ["user"], "min_retries": 1, "steps": [9]},
        is_noted=False,
    ),
    post("a time beyond all calendars", "/v1/statistics/rates", 400, {"since": -(10**30)}, is_noted=False),
    get("an operation that is a path", "/stats/..%2frights", 404),
)

CONSOLE = "/v1/nodes/gdx-1.site/console"
UPGRADE = (
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)
CONSOLES = (
    get("ask for a node of others", "/v1/consoles?node=gdx-1", 403),
    post("the original's question", "/console", 400, {"node": "gdx-1"}),
    post("the original's question with a range", "/console", 400, {"node": "gdx-[4-5]"}),
    get("open one of others", CONSOLE, 101, *UPGRADE, is_noted=True),
    get("open one of a node that there is not", "/v1/nodes/gdx-99.site/console", 101, *UPGRADE, is_noted=True),
    get(
        "open one from a page elsewhere",
        "/v1/nodes/gdx-4.site/console",
        101,
        *UPGRADE,
        ("Origin", "https://evil.example"),
        is_noted=True,
    ),
    get(
        "open one from a page without a place",
        "/v1/nodes/gdx-4.site/console",
        101,
        *UPGRADE,
        ("Origin", "null"),
        is_noted=True,
    ),
    get("open one without a token", CONSOLE, 403, *UPGRADE, shown=None),
    get("open one with a token that has ended", CONSOLE, 403, *UPGRADE, shown="Bearer {expired}"),
    get("open one as root", CONSOLE, 403, *UPGRADE, ("X-Kadeploy-User", "root")),
    get("open one by the word of a front end", CONSOLE, 403, *UPGRADE, ("X-Remote-Ident", "victor")),
    get(
        "open one with a token as protocol",
        CONSOLE,
        403,
        *UPGRADE,
        ("Sec-WebSocket-Protocol", "bearer, {victors}"),
        shown=None,
    ),
    get("open one without a key", CONSOLE, 400, *UPGRADE[:3], is_noted=False),
    get(
        "open one of another version",
        CONSOLE,
        426,
        *UPGRADE[:2],
        ("Sec-WebSocket-Version", "99"),
        UPGRADE[3],
        is_noted=False,
    ),
    get("ask for it as a page", CONSOLE, 405),
    post("write to it as to a form", CONSOLE, 405, "ls"),
    get("upgrade what is no console", RIGHTS, 403, *UPGRADE, is_noted=False),
    get(
        "upgrade to another protocol", RIGHTS, 403, ("Connection", "close, Upgrade, HTTP2-Settings"), ("Upgrade", "h2c")
    ),
    get("a recording of others", "/v1/recording?name=gdx-1.site/{recording}", 403),
    get("a recording by a path", "/v1/recording?name=gdx-4.site/../gdx-1.site/{recording}", NOTHING),
    get("a file beside the recordings", "/v1/recording?name=gdx-4.site/../../audit.jsonl", NOTHING),
    get("recordings of a node that is a path", "/v1/recordings?node=../../etc", 400),
)

SHA256 = "0" * 64
MINE = "/v1/files/{mine}"
UPLOAD = {"pxe_profile": "DEFAULT x\n"}
FILES = (
    get("fetch one of others", "/v1/files/{theirs}", 405),
    delete("delete one of others", "/v1/files/{theirs}", 405),
    post("send one by another method", "/v1/files/{theirs}", 405, "x"),
    patch("send one that was not announced", f"/v1/files/{SHA256}?offset=0", 400, "x"),
    patch("go on with one of others", "/v1/files/{theirs}?offset=0", 400, "x"),
    patch("from beyond what is there", f"{MINE}?offset=9", 400, "x"),
    patch("from beyond its end", f"{MINE}?offset=1000000", 400, "x"),
    patch("from before its beginning", f"{MINE}?offset=-1", 400, "x"),
    patch("from a number without end", f"{MINE}?offset={'9' * 40}", 400, "x"),
    patch("from no number", f"{MINE}?offset=0x10", 400, "x"),
    patch("from nowhere", MINE, 400, "x"),
    patch("more than was announced", f"{MINE}?offset=0", 400, "x" * 17),
    patch("what has another digest", f"{MINE}?offset=0", 400, "x" * 16),
    put("of no size", MINE, 400),
    put("of a size below nought", f"{MINE}?size=-1", 400),
    put("beyond the quota", f"/v1/files/{SHA256}?size={10**15}", 400),
    put("of a size without end", f"{MINE}?size={'9' * 40}", 400),
    put("of a size that is none", f"{MINE}?size=ten", 400),
    put("a digest in upper case", f"/v1/files/{'A' * 64}?size=1", 400),
    put("a digest that is short", f"/v1/files/{'0' * 63}?size=1", 400),
    put("a digest that is long", f"/v1/files/{'0' * 65}?size=1", 400),
    put("a digest with a line's end", f"/v1/files/{'0' * 64}%0a?size=1", 400),
    put("a digest with a null", f"/v1/files/{'0' * 64}%00?size=1", 400),
    put("a digest that is a path", "/v1/files/..%2f..%2f..%2ftmp%2fx?size=1", 404),
    put("a digest that is a folder", "/v1/files/..?size=1", 400),
    put("a name beside the folder", "/v1/files/%2e%2e?size=1", 400),
    put("a digest of other digits", f"/v1/files/{'%EF%BC%90' * 64}?size=1", 400),
    put("a name of the service's own kind", f"/v1/files/{'0' * 64}-16.part?size=1", 400),
    *(
        record(f"an image {what}", image=image(file))
        for what, file in (
            ("beyond the folder of all", "server://{folder}/secret"),
            ("by a way out of the folder", "server://{folder}/files/../secret"),
            ("of the system", "server:///etc/shadow"),
            ("of another machine", "server://elsewhere/etc/shadow"),
            ("of the service's process", "server:///proc/self/environ"),
            ("that is a device", "server:///dev/zero"),
            ("that nobody has measured", "/home/victor/secret.tgz"),
            ("by ftp", "ftp://127.0.0.1/x.tgz"),
            ("by gopher", "gopher://127.0.0.1:25/_HELO"),
            ("in the name itself", "data:,x"),
            ("of a port that there is not", "http://127.0.0.1:99999/x.tgz"),
            ("of a port where nobody is", "http://127.0.0.1:9/x.tgz"),
            ("with a line's end in its name", "http://127.0.0.1:9/x\r\nX-Evil: 1"),
            ("of a name with a null", "/tmp/x\u0000.tgz"),
            ("of no name", ""),
        )
    ),
    post(
        "a digest that is a path, for an environment",
        "/v1/environments",
        400,
        {
            "environments": [{"name": "x", "image": image("/x.tgz"), "kernel": "/v", "filesystem": "ext4"}],
            "fingerprints": {"/x.tgz": {"size": 1, "md5": "0" * 32, "sha256": "../" * 21 + "x"}},
        },
    ),
    deploy(
        "an image of others by its digest",
        400,
        environment={
            "type": "described",
            "environment": {"name": "x", "image": image("/x.tgz"), "kernel": "/vmlinuz", "filesystem": "ext4"},
        },
        files={"/x.tgz": "{theirs}"},
    ),
    deploy(
        "an image by a digest that is a path",
        400,
        environment={
            "type": "described",
            "environment": {"name": "x", "image": image("/x.tgz"), "kernel": "/vmlinuz", "filesystem": "ext4"},
        },
        files={"/x.tgz": "../victor/{theirs}"},
    ),
    deploy(
        "an image that is half sent",
        400,
        environment={
            "type": "described",
            "environment": {"name": "x", "image": image("/x.tgz"), "kernel": "/vmlinuz", "filesystem": "ext4"},
        },
        files={"/x.tgz": "{mine}"},
    ),
    *(
        deploy(f"a file for the boot server {what}", 400, options=UPLOAD, uploads=[file])
        for what, file in (
            ("of the system", "server:///etc/shadow"),
            ("of the site", "server://{folder}/secret"),
            ("of a client", "/etc/shadow"),
            ("that is a folder above", "server://{folder}/files/.."),
            ("that is an option", "server://{folder}/files/-x"),
            ("of two lines", "server://{folder}/files/a\nb"),
        )
    ),
    deploy(
        "a file for nodes",
        400,
        options={
            "custom_operations": [
                {
                    "action": "send",
                    "file": "server:///etc/shadow",
                    "destination": "/x",
                    "implementation": "BroadcastEnvDummy",
                    "micro_step": "dummy",
                }
            ]
        },
    ),
    post(
        "the original's file for nodes",
        "/deployment",
        400,
        {
            "nodes": ["gdx-4"],
            "environment": {"name": "mine"},
            "custom_operations": {
                "BroadcastEnvDummy": {
                    "dummy": {
                        "operations": [{"action": "send", "name": "x", "file": "/etc/shadow", "destination": "/x"}]
                    }
                }
            },
        },
    ),
    *(
        post(
            f"keys {what}",
            "/deployment",
            400,
            {"nodes": ["gdx-4"], "environment": {"name": "mine"}, "ssh_authorized_keys": keys},
        )
        for what, keys in (
            ("of root", "/root/.ssh/id_ed25519"),
            ("by a URL of this machine", "file:///etc/shadow"),
            ("that are private", "-----BEGIN OPENSSH PRIVATE KEY-----\nx y\n"),
            ("of another service", "http://127.0.0.1:9/keys"),
        )
    ),
)

# --- who asks ---------------------------------------------------------------------------------------------------------

FORGED = "kd3_" + "a" * 16 + "_" + "a" * 52
TOKENS = (
    get("none", "/v1/", 401, shown=None),
    get("an empty header", "/v1/", 401, shown=""),
    get("a scheme alone", "/v1/", 401, shown="Bearer"),
    get("a forged one", "/v1/", 401, shown=f"Bearer {FORGED}"),
    get("one that has ended", "/v1/", 401, shown="Bearer {expired}"),
    get("one that was revoked", "/v1/", 401, shown="Bearer {revoked}"),
    get("one without its last sign", "/v1/", 401, shown="Bearer {victors_short}"),
    get("one with another's secret", "/v1/", 401, shown="Bearer {victors_swapped}"),
    get("its id alone", "/v1/", 401, shown="Bearer {victors_id}"),
    get("one in upper case", "/v1/", 401, shown="Bearer {victors_upper}"),
    get("SQL", "/v1/", 401, shown="Bearer kd3_' OR '1'='1"),
    get("a pattern", "/v1/", 401, shown="Bearer kd3_%_%"),
    get("a null in it", "/v1/", 401, shown="Bearer kd3_%00"),
    get("letters that look alike", "/v1/", 401, shown="Bearer \xc3\xa1{victors}"),
    get("one of 5,000 signs", "/v1/", 401, shown="Bearer " + "a" * 5000),
    get("two in a header", "/v1/", 401, shown="Bearer {token}, Bearer {victors}"),
    get("two headers, one's own first", "/v1/", 401, ("Authorization", "Bearer {victors}")),
    get("two headers, an empty one last", "/v1/", 401, ("authorization", "")),
    get("as a password", "/v1/", 401, shown="Basic {basic_token}"),
    get("under another scheme", "/v1/", 401, shown="Token {victors}"),
    get("under no scheme", "/v1/", 401, shown="{victors}"),
    get("as a digest", "/v1/", 401, shown='Digest username="victor", response="x"'),
    get("by Kerberos", "/v1/", 401, shown="Negotiate YII="),
    get("in the address", "/v1/?token={victors}&access_token={victors}", 401, shown=None),
    get("in a cookie", "/v1/", 401, ("Cookie", "token={victors}; Authorization=Bearer {victors}"), shown=None),
    get("in the header for proxies", "/v1/", 401, ("Proxy-Authorization", "Bearer {victors}"), shown=None),
    get("in a header of others", "/v1/", 401, ("X-Auth-Token", "{victors}"), ("X-Api-Key", "{victors}"), shown=None),
    post("in the body", "/v1/power", 401, {"token": "{victors}"}, shown=None),
    get("a password that is wrong", "/v1/", 401, shown="Basic {basic_wrong}"),
    get("no password", "/v1/", 401, shown="Basic {basic_none}"),
    get("the hash as a password", "/v1/", 401, shown="Basic {basic_hash}"),
    get("a password with a null behind it", "/v1/", 401, shown="Basic {basic_null}"),
    get("a password of another's name", "/v1/", 401, shown="Basic {basic_case}"),
    get("a name that is a path", "/v1/", 401, shown="Basic {basic_path}"),
    get("a name of two lines", "/v1/", 401, shown="Basic {basic_lines}"),
    get("a password that is no base64", "/v1/", 401, shown="Basic !!!!"),
    get("a certificate of strangers", "/v1/", CLOSED, shown=None, certificate="strangers", is_noted=False),
    get("a certificate that has expired", "/v1/", CLOSED, shown=None, certificate="expired", is_noted=False),
    get("a certificate of two names", "/v1/", 401, shown=None, certificate="two_names"),
    post(
        "a good password from a page elsewhere",
        "/v1/power",
        403,
        {"type": "power", "nodes": ["gdx-1"], "operation": "off"},
        shown="Basic {basic_right}",
        headers=[("Origin", "https://evil.example"), ("Content-Type", "text/plain")],
    ),
    get(
        "a good password by a picture elsewhere",
        "/power?nodes=gdx-1",
        403,
        ("Sec-Fetch-Site", "cross-site"),
        shown="Basic {basic_right}",
    ),
)

HEADERS = (
    get("root", "/v1/", 401, ("X-Kadeploy-User", "root")),
    get("somebody", "/v1/", 401, ("X-Kadeploy-User", "victor")),
    get("oneself, and somebody", "/v1/", 401, ("X-Kadeploy-User", "mallory"), ("x-kadeploy-user", "victor")),
    get("in mixed case", "/v1/", 401, ("x-KADEPLOY-uSeR", "root")),
    get("nobody", "/v1/", 401, ("X-Kadeploy-User", "")),
    get("a path", "/v1/", 401, ("X-Kadeploy-User", "../root")),
    get("a list", "/v1/", 401, ("X-Kadeploy-User", "mallory, root")),
    get("by a front end", "/v1/", 401, ("X-Remote-Ident", "root")),
    get("by a front end of another site", "/v1/", 401, ("X-Api-User-CN", "root")),
    get("by a front end, without a token", "/v1/", 401, ("X-Remote-Ident", "root"), shown=None),
    get("as root on the socket, without a token", "/v1/", 401, ("X-Kadeploy-User", "root"), shown=None),
    *(
        get(f"{name}, which means nothing", RIGHTS, 403, (name, value))
        for name, value in (
            ("X_Kadeploy_User", "root"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Real-IP", "127.0.0.1"),
            ("Forwarded", "for=127.0.0.1;proto=https"),
            ("X-Forwarded-User", "root"),
            ("Remote-User", "root"),
            ("X-SSL-Client-CN", "root"),
            ("X-Original-URL", "/version"),
            ("X-Rewrite-URL", "/version"),
            ("X-HTTP-Method-Override", "OPTIONS"),
            ("X-Forwarded-Host", "localhost"),
            ("X-Forwarded-Prefix", "/version"),
            ("Cookie", "user=root; is_administrator=true"),
            ("Accept", "*/*;q=0, text/x-python"),
            ("Accept-Encoding", "gzip;q=1e999"),
            ("Range", "bytes=0-1,-1"),
            ("If-None-Match", "*"),
            ("Expect", "200-ok"),
            ("Last-Event-ID", "9" * 5000),
            ("Host", "localhost"),
        )
    ),
    raw("a blank before the colon", f"GET {RIGHTS} HTTP/1.1\r\n{AUTHORIZED}X-Kadeploy-User : root\r\n\r\n", 400),
    raw("a blank before the name", f"GET {RIGHTS} HTTP/1.1\r\n X-Kadeploy-User: root\r\n{AUTHORIZED}\r\n", 400),
    get("on the socket: root", "/v1/", 401, ("X-Kadeploy-User", "root"), socket=True),
    get("on the socket: oneself", "/v1/", 401, ("X-Kadeploy-User", "nobody"), socket=True),
    get("on the socket: in mixed case", "/v1/", 401, ("x-kadeploy-USER", "victor"), socket=True),
    get("on the socket: twice", "/v1/", 401, ("X-Kadeploy-User", "victor"), ("X-Kadeploy-User", "root"), socket=True),
    get("on the socket: by a front end", "/v1/", 401, ("X-Remote-Ident", "root"), socket=True),
    get("on the socket: by another front end", "/v1/", 401, ("X-Api-User-Cn", "root"), socket=True),
    get("on the socket: a good token", "/v1/", 401, ("Authorization", "Bearer {victors}"), socket=True),
    get("on the socket: a good password", "/v1/", 401, ("Authorization", "Basic {basic_right}"), socket=True),
    get("on the socket: rights of somebody", RIGHTS, 403, socket=True),
    get("on the socket: a workflow of somebody", "/v1/workflows/{running}/events", 403, socket=True),
    delete("on the socket: cancel it", "/v1/workflows/{running}", 403, socket=True),
    delete("on the socket: an environment of somebody", f"/v1/environments?{SHARED}", 403, socket=True),
    post(
        "on the socket: rights for oneself",
        "/v1/rights",
        403,
        {"user": "nobody", "nodes": ["*"], "parts": ["*"]},
        socket=True,
    ),
    post(
        "on the socket: a node",
        "/v1/power",
        403,
        {"type": "power", "nodes": ["gdx-1"], "operation": "off"},
        socket=True,
    ),
    get("on the socket: a console", CONSOLE, 101, *UPGRADE, socket=True, is_noted=True),
    get("on the socket: a console as root", CONSOLE, 403, *UPGRADE, ("X-Kadeploy-User", "root"), socket=True),
)

# --- HTTP itself ------------------------------------------------------------------------------------------------------

INNER = f"GET {RIGHTS} HTTP/1.1\r\n{AUTHORIZED}Connection: close\r\n\r\n"
"""A request that is hidden in another one: were it seen, it would be refused, and written down."""
HIDDEN = f"DELETE /v1/workflows/{{running}} HTTP/1.1\r\n{AUTHORIZED}Connection: close\r\n\r\n"
POST = f"POST /v1/power HTTP/1.1\r\n{AUTHORIZED}"
GET = f"GET {RIGHTS} HTTP/1.1\r\n"
SMUGGLED = (
    raw("a length and pieces", f"{POST}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}", 400),
    raw(
        "pieces and a length",
        f"{POST}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n1\r\nx\r\n0\r\n\r\n{HIDDEN}",
        400,
    ),
    raw("two lengths", f"{POST}Content-Length: 2\r\nContent-Length: {len(HIDDEN)}\r\n\r\n{{}}{HIDDEN}", 400),
    raw("two lengths in one header", f"{POST}Content-Length: 2, 2\r\n\r\n{{}}{HIDDEN}", 400),
    raw("a length with a sign", f"{POST}Content-Length: +2\r\n\r\n{{}}{HIDDEN}", 400),
    raw("a length below nought", f"{POST}Content-Length: -1\r\n\r\n{HIDDEN}", 400),
    raw("a length that is no number", f"{POST}Content-Length: 0x2\r\n\r\n{{}}{HIDDEN}", 400),
    raw("a length without end", f"{POST}Content-Length: {'9' * 40}\r\n\r\n{{}}", 400),
    raw("a length of nothing", f"{POST}Content-Length:\r\n\r\n{HIDDEN}", 400),
    raw("pieces under another name", f"{POST}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{HIDDEN}", 400),
    raw("pieces, then as they are", f"{POST}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{HIDDEN}", 400),
    raw("pieces behind a tab of another kind", f"{POST}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{HIDDEN}", 400),
    raw(
        "pieces in an older HTTP",
        f"POST /v1/power HTTP/1.0\r\n{AUTHORIZED}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    raw("a piece of a size that is none", f"{POST}Transfer-Encoding: chunked\r\n\r\nzz\r\n{HIDDEN}", 400),
    raw("a piece of a size below nought", f"{POST}Transfer-Encoding: chunked\r\n\r\n-1\r\n{HIDDEN}", 400),
    raw(
        "a piece of a size that is too large a number", f"{POST}Transfer-Encoding: chunked\r\n\r\n{'f' * 17}\r\nx", 400
    ),
    raw("a piece longer than it says", f"{POST}Transfer-Encoding: chunked\r\n\r\n1\r\n{{}}\r\n0\r\n\r\n", 400),
    raw("a piece that ends by a line's end alone", f"{POST}Transfer-Encoding: chunked\r\n\r\n2\n{{}}\n0\n\n", 400),
    raw("lines that end in one sign", GET.replace("\r", "") + AUTHORIZED.replace("\r", "") + "\n", 400),
    raw("a line's end within a header", f"{GET}{AUTHORIZED}X-A: b\rX-Kadeploy-User: root\r\n\r\n", 400),
    raw("a header that goes on in the next line", f"{GET}{AUTHORIZED}X-A: b\r\n X-Kadeploy-User: root\r\n\r\n", 400),
    raw("a null in a header", f"{GET}{AUTHORIZED}X-A: b\0c\r\n\r\n", 400),
    raw("a null in a header's name", f"{GET}{AUTHORIZED}X-Kadeploy-User\0: root\r\n\r\n", 400),
    raw("a header without a colon", f"{GET}{AUTHORIZED}X-Kadeploy-User root\r\n\r\n", 400),
    raw("a header without a name", f"{GET}{AUTHORIZED}: root\r\n\r\n", 400),
    raw("a null in the address", f"GET /v1/rights\0?user=victor HTTP/1.1\r\n{AUTHORIZED}\r\n", 400),
    raw("a blank in the address", f"GET /v1/rights?user=victor x HTTP/1.1\r\n{AUTHORIZED}\r\n", 400),
    raw(
        "the address of another server",
        f"GET https://elsewhere{RIGHTS} HTTP/1.1\r\n{AUTHORIZED}Connection: close\r\n\r\n",
        403,
        is_noted=True,
    ),
    raw("the address of a server alone", f"GET elsewhere:443 HTTP/1.1\r\n{AUTHORIZED}\r\n", 400),
    raw("no version", f"GET {RIGHTS}\r\n\r\n", 401, is_noted=True),
    raw("another version", f"GET {RIGHTS} HTTP/9.9\r\n{AUTHORIZED}\r\n", 400),
    raw("the beginning of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    raw("no HTTP", "\x16\x03\x01\x00\xa5\x01\x00\x00" * 8, 400),
    raw("SSH", "SSH-2.0-OpenSSH_9.2\r\n", 400),
    raw("a head without end", f"{GET}{AUTHORIZED}X-A: " + "a" * (1 << 20), 400),
    raw("headers without end", f"{GET}{AUTHORIZED}" + "X-A: b\r\n" * 150_000, 400),
    raw("an address without end", "GET /" + "a" * (1 << 20), 400),
    raw("a piece's note without end", f"{POST}Transfer-Encoding: chunked\r\n\r\n2;a=" + "a" * (1 << 20), 400),
    raw(
        "headers behind the pieces without end",
        f"{POST}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n" + "X-A: b\r\n" * 150_000,
        400,
    ),
    raw("several, one behind the other", GET + AUTHORIZED + "\r\n" + INNER, 403, is_noted=True),
    raw(
        "one within the body of another",
        f"{POST}Content-Length: {{hidden_length}}\r\nConnection: close\r\n\r\n{HIDDEN}",
        400,
        is_noted=True,
    ),
)

METHODS = (
    Attempt("TRACE", "TRACE", "/v1/", 405, is_noted=True),
    Attempt("CONNECT", "CONNECT", "elsewhere:443", 400, is_noted=False),
    Attempt("a method of WebDAV", "PROPFIND", "/v1/rights", 405, is_noted=True),
    Attempt("a method of caches", "PURGE", "/v1/rights", 405, is_noted=True),
    Attempt("a method that there is not", "FETCH", "/v1/rights", 400, is_noted=False),
    Attempt("a method in lower case", "delete", "/v1/workflows/{running}", 400, is_noted=False),
    Attempt("the head of what is others'", "HEAD", RIGHTS, 405),
    put("overwrite rights", "/v1/rights", 405, {"user": "mallory"}),
    patch("change rights", "/v1/rights", 405, {"user": "mallory"}),
    delete("delete deployments", "/v1/deployments", 405),
    put("overwrite the site", "/v1/site", 405, {"almighty_users": ["mallory"]}),
    patch("change the configuration", "/v1/configuration", 405, {"site": {}}),
    post("make a node", "/nodes", 405, {"name": "x"}),
    post("write where nothing is", "/v1/nowhere", 404, "x"),
    delete("delete the past", "/v1/statistics/rows", 405, is_noted=False),
)

JSON = '{"type": "power", "nodes": ["gdx-1"], "operation": "on"}'
BODIES = (
    post("none", "/v1/power", 400),
    post("null", "/v1/power", 400, "null"),
    post("half of one", "/v1/power", 400, JSON[:-1]),
    post("one and something behind it", "/v1/power", 400, JSON + "x"),
    post("two", "/v1/power", 400, JSON + JSON),
    post("brackets without end", "/v1/power", 400, "[" * 100_000),
    post("objects without end", "/v1/power", 400, '{"a":' * 100_000),
    post(
        "a key twice, one's own first",
        "/v1/power",
        403,
        '{"type": "power", "nodes": ["gdx-4"], "nodes": ["gdx-1"], "operation": "on"}',
    ),
    post(
        "a key in two spellings",
        "/v1/power",
        400,
        '{"type": "power", "nodes": ["gdx-4"], "\\u004eodes": ["gdx-1"], "operation": "on"}',
    ),
    post(
        "a key of the language",
        "/v1/power",
        400,
        '{"type": "power", "nodes": ["gdx-4"], "operation": "on", "__class__": "x"}',
    ),
    post(
        "a key of JavaScript",
        "/v1/power",
        400,
        '{"type": "power", "nodes": ["gdx-4"], "operation": "on", "__proto__": {}}',
    ),
    post("another kind of request", "/v1/power", 400, JSON.replace('"power"', '"deploy"')),
    post("a word that there is not", "/v1/power", 400, JSON.replace('"on"', '"explode"')),
    post("no number", "/v1/rights", 400, '{"user": "mallory", "nodes": ["*"], "parts": ["*"], "until": NaN}'),
    post(
        "a number without end", "/v1/rights", 400, '{"user": "mallory", "nodes": ["*"], "parts": ["*"], "until": 1e999}'
    ),
    post("half a character", "/v1/power", 400, '{"type": "power", "nodes": ["\\ud800"], "operation": "on"}'),
    post(
        "half a character as a user",
        "/v1/power",
        400,
        '{"type": "power", "nodes": ["gdx-4"], "operation": "on", "user": "\\udfff"}',
    ),
    post(
        "a null as a user",
        "/v1/power",
        403,
        '{"type": "power", "nodes": ["gdx-4"], "operation": "on", "user": "\\u0000"}',
    ),
    post("no UTF-8", "/v1/power", 400, '{"type": "power", "nodes": ["\xff\xfe"], "operation": "on"}'),
    post("UTF-16", "/v1/power", 400, "\xff\xfe" + "\0".join(JSON) + "\0"),
    post("UTF-7", "/v1/power", 400, "+AHs-}", headers=[("Content-Type", "application/json; charset=utf-7")]),
    post("a byte more than there may be", "/v1/power", 413, " " * ((1 << 20) + 1 - len(JSON)) + JSON),
    post("packed, without saying so", "/v1/power", 400, "\x1f\x8b\x08\0\0\0\0\0\0\x03" + "\0" * 100),
    post(
        "packed", "/v1/power", 400, "\x1f\x8b\x08\0\0\0\0\0\0\x03" + "\0" * 100, headers=[("Content-Encoding", "gzip")]
    ),
    post(
        "XML that names a file",
        "/v1/power",
        400,
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/shadow">]><x>&e;</x>',
        headers=[("Content-Type", "text/xml")],
    ),
    post(
        "YAML that makes an object",
        "/v1/power",
        400,
        "!!python/object/apply:os.system ['id']",
        headers=[("Content-Type", "application/x-yaml")],
    ),
    post(
        "a form",
        "/v1/power",
        400,
        "type=power&nodes=gdx-1&operation=on",
        headers=[("Content-Type", "application/x-www-form-urlencoded")],
    ),
    post(
        "a form of parts",
        "/v1/power",
        400,
        "--x\r\nContent-Disposition: form-data; name=nodes\r\n\r\ngdx-1\r\n--x--\r\n",
        headers=[("Content-Type", "multipart/form-data; boundary=x")],
    ),
    post(
        "MessagePack",
        "/v1/power",
        400,
        "\x83\xa4type\xa5power\xa5nodes\x91\xa5gdx-1\xa9operation\xa2on",
        headers=[("Content-Type", "application/x-msgpack")],
    ),
    post("with the type of a page's", "/v1/power", 403, JSON, headers=[("Content-Type", "text/plain")]),
    post("a description of brackets", "/environments", 400, '{"name": ' + "[" * 50_000 + "]" * 50_000 + "}"),
    post("the original's, a list", "/deployment", 400, "[]"),
    post(
        "the original's, an unknown key",
        "/deployment",
        400,
        {"nodes": ["gdx-4"], "environment": {"name": "mine"}, "sudo": True},
    ),
    post(
        "the original's, a number of many digits",
        "/deployment",
        400,
        {"nodes": ["gdx-4"], "environment": {"name": "mine", "version": "9" * 5000}},
    ),
)

ADDRESSES = (
    get("a folder above", f"/v1/../v1{RIGHTS[3:]}", 404),
    get("a folder above, written otherwise", "/v1/nodes/%2e%2e/rights?user=victor", 404),
    get("a folder above, written twice otherwise", "/v1/%252e%252e/rights", 404),
    get("a slash, written otherwise", "/v1%2frights?user=victor", 403),
    get("a slash too many", "/v1//rights?user=victor", 403),
    get("two slashes in front", f"//elsewhere{RIGHTS}", 404),
    get("a slash of another kind", "/v1\\rights?user=victor", 404),
    get("upper case", "/V1/RIGHTS?user=victor", 404),
    get("a parameter of the path", "/v1/rights;user=victor", 404),
    get("a question mark, written otherwise", "/v1/rights%3fuser=victor", 404),
    get("a null behind it", "/v1/rights%00", 404),
    get("a line's end behind it", "/v1/rights%0d%0aX-Kadeploy-User:%20root", 404),
    get("UTF-8 that is longer than it has to be", "/v1/nodes%c0%af..%c0%afrights", 404),
    get("signs that look alike", "/v1/%EF%BD%92ights", 404),
    get("half an escape", "/v1/rights%2?user=victor", 404),
    get("a format behind it", "/v1/rights.json?user=victor", 404),
    get("what is meant to be public, and out of it", "/v1/schema/..%2frights", 404),
    get("a file of the system", "/..%2f..%2f..%2fetc%2fpasswd", 404),
    get("a file of the site", "/site.yml", 404),
    get("the audit log", "/audit.jsonl", 404),
    get("the database", "/state/kadeploy.db", 404),
    get("a page that runs scripts of strangers", "/v1/schema/swagger", 404),
    get("a page for the service's makers", "/debug", 404),
)

SLOW = (
    raw("a head that does not end", f"{GET}{AUTHORIZED}X-A: b\r\n", CLOSED, patience=0.5),
    raw("nothing at all", "", CLOSED, patience=0.5),
    raw("a body that does not come", f"{POST}Content-Length: 9\r\n\r\n", CLOSED, patience=0.5),
    raw("a body that does not end", f"{POST}Content-Length: 1000\r\n\r\n" + " " * 900, CLOSED, patience=0.5),
    raw(
        "a file that nobody takes",
        "PATCH /v1/files/x?offset=0 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx",
        401,
        is_noted=True,
        patience=0.5,
    ),
    raw("pieces that do not end", f"{POST}Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n", CLOSED, patience=0.5),
)

KINDS: Mapping[str, Sequence[Attempt]] = {
    "workflow": WORKFLOWS,
    "environment": ENVIRONMENTS,
    "rights": RIGHTS_OF_OTHERS,
    "nodes": NODES,
    "console": CONSOLES,
    "file": FILES,
    "token": TOKENS,
    "header": HEADERS,
    "smuggled": SMUGGLED,
    "method": METHODS,
    "body": BODIES,
    "address": ADDRESSES,
    "slow": SLOW,
}
ATTEMPTS = {f"{kind}: {each.name}": each for kind, attempts in KINDS.items() for each in attempts}
