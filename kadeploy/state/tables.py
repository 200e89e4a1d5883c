"""The tables of a site's state; :mod:`kadeploy.state.database` binds them to the site's database."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import peewee

from kadeploy.environments.environment import Environment
from kadeploy.errors import DatabaseError


class Row(peewee.Model):
    """What all tables share."""


class Moment(peewee.BigIntegerField):
    """Unix seconds."""

    END = 253_402_300_800
    """The year 10000, for which no calendar of ours has a name."""


class SchemaVersion(Row):
    """One row: which version of these tables the database holds."""

    version = peewee.IntegerField(primary_key=True)

    class Meta:
        """Table name."""

        table_name = "schema_version"


class EnvironmentRow(Row):
    """A recorded environment; the image and the archives are JSON of their structs, and *options* of what is rare."""

    id = peewee.BigAutoField()
    name = peewee.CharField(255)
    second_name = peewee.CharField(255, default="", column_name="alias")
    """A second name; a field called ``alias`` means something else to peewee."""
    arch = peewee.CharField(64, default="")
    version = peewee.BigIntegerField(default=1)
    user = peewee.CharField(255)
    description = peewee.TextField(default="")
    author = peewee.TextField(default="")
    image = peewee.TextField()
    preinstall = peewee.TextField(default="null")
    postinstalls = peewee.TextField(default="[]")
    kernel = peewee.TextField(default="")
    kernel_params = peewee.TextField(default="")
    initrd = peewee.TextField(default="")
    hypervisor = peewee.TextField(default="")
    hypervisor_params = peewee.TextField(default="")
    fdisktype = peewee.CharField(64, default="83")
    filesystem = peewee.CharField(64, default="")
    environment_kind = peewee.CharField(16, default="linux")
    visibility = peewee.CharField(16, default="private")
    demolishing_env = peewee.IntegerField(default=0)
    part = peewee.CharField(255, default="")
    options = peewee.TextField(null=True)

    class Meta:
        """A name and a version are unique per owner and architecture."""

        table_name = "environments"
        indexes = ((("name", "version", "user", "arch"), True),)

    @property
    def environment(self) -> Environment:
        """The row as the rest of the program knows it.

        Raises:
            DatabaseError: something in it is no value of ours.
        """
        return environment_of(tuple(getattr(self, name) for name in self._meta.sorted_field_names))


@lru_cache(maxsize=1024)
def environment_of(row: tuple[Any, ...]) -> Environment:
    """`EnvironmentRow.environment` of a whole row as the database tells it; a service tells the same ones all day."""
    known = dict(zip(EnvironmentRow._meta.sorted_field_names, row, strict=True))
    columns = {name: known[name] for name in Environment.__struct_fields__ if name not in _ELSEWHERE}
    columns["alias"] = known["second_name"]
    try:
        columns.update({name: msgspec.json.decode(columns[name]) for name in _JSON_COLUMNS})
        return msgspec.convert(columns | msgspec.json.decode(known["options"] or "{}"), Environment)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise DatabaseError(
            f"The environment {known['name']!r} version {known['version']} of {known['user']} is damaged in the "
            f"database: {error}. Put the database back from a backup, or remove row {known['id']} of its table "
            "environments."
        ) from error


_JSON_COLUMNS = ("image", "preinstall", "postinstalls")
_OPTIONS = ("kexec", "multipart", "partitions", "block_device", "boot_partition", "custom_variables")
_ELSEWHERE = (*_OPTIONS, "alias")


def environment_columns(environment: Environment) -> dict[str, Any]:
    """Column values of *environment*, for ``EnvironmentRow.insert``, ``create`` or ``update``."""
    columns: dict[str, Any] = msgspec.structs.asdict(environment)
    columns["second_name"] = columns.pop("alias")
    columns["options"] = {name: columns.pop(name) for name in _OPTIONS}
    columns.update({name: msgspec.json.encode(columns[name]).decode() for name in (*_JSON_COLUMNS, "options")})
    return columns


class Right(Row):
    """*user* may deploy on *part* of *node*; ``*`` stands for any. Over at *until* (Unix seconds), if set."""

    id = peewee.BigAutoField()
    user = peewee.CharField(255)
    node = peewee.CharField(255)
    part = peewee.CharField(255)
    until = Moment(null=True)

    class Meta:
        """One row per user, node and partition."""

        table_name = "rights"
        indexes = ((("user", "node", "part"), True), (("node",), False))


class NodeState(Row):
    """What was last done to a node, and with which environment (empty: none, or an anonymous one)."""

    hostname = peewee.CharField(255, primary_key=True)
    state = peewee.CharField(32)
    env_name = peewee.CharField(255, default="")
    env_version = peewee.BigIntegerField(null=True)
    env_owner = peewee.CharField(255, default="")
    env_arch = peewee.CharField(64, default="")
    date = Moment()
    user = peewee.CharField(255, default="")

    class Meta:
        """Table name."""

        table_name = "nodes"


class Claim(Row):
    """A node in the hands of one workflow; the primary key is what makes two claims impossible."""

    node = peewee.CharField(255, primary_key=True)
    wid = peewee.CharField(64, index=True, column_name="workflow")
    user = peewee.CharField(255)
    host = peewee.CharField(255)
    pid = peewee.BigIntegerField()
    process_start = peewee.CharField(32)
    boot_id = peewee.CharField(64)
    since = Moment()
    part = peewee.CharField(255, default="")
    """The partition that is worked on; of several, the one that is booted."""

    class Meta:
        """Table name."""

        table_name = "claims"


class Workflow(Row):
    """One operation on a set of nodes, running or ended, and the process that does it."""

    wid = peewee.CharField(64, primary_key=True)
    operation = peewee.CharField(16)
    user = peewee.CharField(255)
    env_name = peewee.CharField(255, default="")
    env_version = peewee.BigIntegerField(null=True)
    env_owner = peewee.CharField(255, default="")
    anonymous = peewee.BooleanField(default=False)
    started = Moment()
    ended = Moment(null=True, index=True)
    state = peewee.CharField(16, default="running")
    host = peewee.CharField(255)
    pid = peewee.BigIntegerField()
    process_start = peewee.CharField(32)
    boot_id = peewee.CharField(64)
    seen = Moment()
    """When its controller last gave a sign of life."""

    class Meta:
        """Table name."""

        table_name = "workflows"


class Progress(Row):
    """Where a node stands in a workflow."""

    workflow = peewee.ForeignKeyField(Workflow, column_name="wid", on_delete="CASCADE")
    node = peewee.CharField(255)
    cluster = peewee.CharField(255, default="")
    macro_step = peewee.CharField(255, default="")
    micro_step = peewee.CharField(255, default="")
    state = peewee.CharField(32, default="ok")
    told = peewee.CharField(64, default="")
    """How far the micro-step is, for people: ``42 %, 118 MB/s, 12 s left``."""

    class Meta:
        """One row per workflow and node."""

        table_name = "progress"
        primary_key = peewee.CompositeKey("workflow", "node")


class Log(Row):
    """What one operation did to one node: what kastat3 counts. Times in seconds, retries are tries minus one."""

    id = peewee.BigAutoField()
    wid = peewee.CharField(64, index=True)
    operation = peewee.CharField(16)
    user = peewee.CharField(255)
    hostname = peewee.CharField(255)
    step1 = peewee.CharField(255, default="")
    step2 = peewee.CharField(255, default="")
    step3 = peewee.CharField(255, default="")
    timeout_step1 = peewee.IntegerField(default=0)
    timeout_step2 = peewee.IntegerField(default=0)
    timeout_step3 = peewee.IntegerField(default=0)
    retry_step1 = peewee.IntegerField(default=0)
    retry_step2 = peewee.IntegerField(default=0)
    retry_step3 = peewee.IntegerField(default=0)
    start = Moment()
    step1_duration = peewee.IntegerField(default=0)
    step2_duration = peewee.IntegerField(default=0)
    step3_duration = peewee.IntegerField(default=0)
    env = peewee.CharField(300, default="")
    anonymous_env = peewee.BooleanField(default=False)
    md5 = peewee.CharField(64, default="")
    success = peewee.BooleanField()
    error = peewee.TextField(default="")
    given_up = peewee.CharField(255, default="")
    """Implementations that failed before another one of their macro-step was tried, with commas."""

    class Meta:
        """The first index answers failure rates alone, without a look at the rows; the second gives dates in order."""

        table_name = "log"
        indexes = ((("operation", "hostname", "start", "success"), False), (("start", "id"), False))


class LongText(peewee.TextField):
    """Text that MySQL has no room for in its usual one."""

    field_type = "LONGTEXT"


class DayRow(Row):
    """What the log tells of operations that began on a day, summed up; see `kadeploy.state.kept_days`."""

    day = peewee.BigIntegerField(primary_key=True)
    """Since 1970, UTC."""
    changes = peewee.BigIntegerField()
    """How often rows of it were written or removed."""
    sums = LongText(null=True)
    """Nothing: nobody has summed them up since."""

    class Meta:
        """Table name."""

        table_name = "days"


class Token(Row):
    """What a program shows to call the service as *user*; of its secret, only a digest is kept."""

    id = peewee.CharField(32, primary_key=True)
    user = peewee.CharField(255, index=True)
    digest = peewee.CharField(64)
    """SHA-256 of the secret, in hexadecimal digits."""
    note = peewee.CharField(255, default="")
    created = Moment()
    until = Moment()
    used = Moment(null=True)
    """When it last let somebody in, to the minute."""
    revoked = Moment(null=True)

    class Meta:
        """Table name."""

        table_name = "tokens"


class QuarantineRow(Row):
    """A node's last stay in quarantine: over at *until* (if set), or since somebody has released the node."""

    node = peewee.CharField(255, primary_key=True)
    since = Moment()
    put_by = peewee.CharField(255, default="")
    """The administrator; empty: the site's rule."""
    reason = peewee.TextField(default="")
    until = Moment(null=True)
    released = Moment(null=True)
    """When the node was let out before that; what it did earlier does not count any more."""
    released_by = peewee.CharField(255, default="")

    class Meta:
        """Table name."""

        table_name = "quarantine"


class NotificationRow(Row):
    """What *user* wants to be told of the ends of their operations, and how."""

    user = peewee.CharField(255, primary_key=True)
    mail = peewee.BooleanField(default=False)
    address = peewee.CharField(255, default="")
    """Where mail goes; empty: the one that the site gives the user."""
    webhook = peewee.TextField(default="")
    """URL that is called; empty: none."""
    secret = peewee.CharField(64, default="")
    """What calls are signed with: it has to be known, a digest would not do."""
    outcome = peewee.CharField(16, default="always")
    operations = peewee.CharField(64, default="")
    """Which, in words."""
    since = Moment()
    """What ended before is not told."""

    class Meta:
        """Table name."""

        table_name = "notifications"


class Outbox(Row):
    """The end of a workflow that its user is told, or was told, on one channel."""

    wid = peewee.CharField(64)
    channel = peewee.CharField(16)
    user = peewee.CharField(255)
    made = Moment()
    tries = peewee.IntegerField(default=0)
    due = Moment(null=True, index=True)
    """When it is tried next; nothing: it was told, or given up."""
    sent = Moment(null=True)
    error = peewee.TextField(default="")
    """Why the last try failed."""

    class Meta:
        """The key is what has each end told once."""

        table_name = "outbox"
        primary_key = peewee.CompositeKey("wid", "channel")


TABLES = (
    SchemaVersion,
    EnvironmentRow,
    Right,
    NodeState,
    Claim,
    Workflow,
    Progress,
    Log,
    DayRow,
    Token,
    QuarantineRow,
    NotificationRow,
    Outbox,
)
