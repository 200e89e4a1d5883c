"""The written forms of an environment: the wiki page's ``key : value`` lines, and the later YAML (or JSON) form.

`load` reads whichever it finds and `write` prints any of them; what is written can be read again. Each form has its
table: `_LINES` for the first, `_Document` for the second. `check` holds the rules that both share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from kadeploy import files
from kadeploy.caller import Account
from kadeploy.environments.environment import Archive, Environment, Struct
from kadeploy.environments.image import ARCHIVE_KINDS, COMPRESSIONS, IMAGE_KINDS, KINDS
from kadeploy.errors import EnvironmentRefusedError, FileError

try:
    from yaml import CSafeLoader as SafeLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

Form = Literal["wiki", "yaml", "json"]

MAX_BYTES = 1 << 20
"""Size of a description above which it is refused unread."""

ALWAYS = 10000
"""What ``demolishing_env : true`` stands for (wiki page: 10000 if the environment is demolishing)."""

_CONTENT_TYPES = (
    "text/plain",
    "text/yaml",
    "text/x-yaml",
    "application/octet-stream",
    "application/json",
    "application/yaml",
    "application/x-yaml",
)
"""What a web server may call a description; ``text/html`` would be an error page."""


def load(source: str, who: Account) -> list[Environment]:
    """Read the environments described in a file or at a URL, with the rights of *who*; ``-`` is standard input.

    Raises:
        FileError: it cannot be read.
        EnvironmentRefusedError: it is malformed; the text names the line or the key.
    """
    text = files.read_text(source, who, MAX_BYTES, content_types=_CONTENT_TYPES)
    local = not files.is_stream(source) and not files.is_url(source)
    return parse_all(text, source=str(files.local_path(source, who)) if local else source)


def parse(text: str, *, source: str) -> Environment:
    """The one environment that *text* describes; relative paths start at the folder of *source*.

    Raises:
        EnvironmentRefusedError: malformed, or several environments; the text names the line or the key.
    """
    environments = parse_all(text, source=source)
    if len(environments) != 1:
        raise EnvironmentRefusedError(
            f"{source}: {len(environments)} environments; expected one. Keep one in the file."
        )
    return environments[0]


def parse_all(text: str, *, source: str) -> list[Environment]:
    """The environments that *text* describes, at least one, in either form (see `parse`)."""
    content = text.removeprefix("\ufeff")
    form = _form(content)
    if form == "wiki":
        return [_from_lines(lines, source) for lines in _blocks(content, source)]
    documents = _documents(content, form, source)
    if not documents:
        raise EnvironmentRefusedError(f"{source}: describes no environment.")
    return [_from_document(document, source) for document in documents]


def write(environments: Iterable[Environment], form: Form) -> str:
    """*environments* in one of the written forms, which `parse_all` reads back; owner and checksums are left out."""
    return _WRITERS[form](list(environments))


# --- which form -------------------------------------------------------------------------------------------------

_OWN_KEY = re.compile(
    r"""^["']?(?P<yaml>image|os|boot|postinstalls|destructive|partition_type|multipart|options)["']?[ \t]*:"""
    r"|^[ \t]*(?P<wiki>tarball|environment_kind|postinstall|fdisktype)[ \t]*:",
    re.MULTILINE,
)
"""The first key that only one of the forms has."""


def _form(text: str) -> Form:
    start = text.lstrip()
    if start.startswith(("{", "[")):
        return "json"
    if start.startswith("---"):
        return "yaml"
    found = _OWN_KEY.search(text)
    return "yaml" if found and found["yaml"] else "wiki"


# --- key : value lines ------------------------------------------------------------------------------------------

_LINE = re.compile(r"\s*([A-Za-z_0-9]+)\s*:(.*)\Z", re.DOTALL)


class _Line(Struct, frozen=True, kw_only=True):
    """A value, and where it was written."""

    value: str
    where: str


def _blocks(text: str, source: str) -> list[dict[str, _Line]]:
    """The fields of each environment; a line of ``###`` begins the next one, as `write` prints it."""
    blocks: list[dict[str, _Line]] = [{}]
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if content and not content.strip("#") and len(content) > 2:
            blocks.append({})
        if not content or content.startswith("#"):
            continue
        key, found = _field(content, f"{source}, line {number}")
        if key in blocks[-1]:
            raise EnvironmentRefusedError(f"{found.where}: {key} is given twice ({blocks[-1][key].where}).")
        blocks[-1][key] = found
    given = [block for block in blocks if block]
    return given or [{}]


def _field(line: str, where: str) -> tuple[str, _Line]:
    match = _LINE.match(line)
    if match is None:
        raise EnvironmentRefusedError(f"{where}: expected `key : value`, found {_short(line)}.")
    key = match[1]
    if key not in _LINES:
        raise EnvironmentRefusedError(f"{where}: unknown key {_short(key)}; the keys are {', '.join(_LINES)}.")
    return key, _Line(value=match[2].strip(), where=where)


def _from_lines(lines: Mapping[str, _Line], source: str) -> Environment:
    """An empty value means the same as none at all."""
    given = {key: line for key, line in lines.items() if line.value}
    missing = [key for key in ("name", "tarball", "environment_kind", "fdisktype") if key not in given]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        wanted = ", ".join(f"`{key} : …`" for key in missing)
        raise EnvironmentRefusedError(f"{source}: {', '.join(missing)} {verb} missing: add {wanted}.")
    fields: dict[str, Any] = {}
    for key, line in given.items():
        field, read = _LINES[key]
        try:
            fields[field] = read(line.value)
        except ValueError as error:
            raise EnvironmentRefusedError(f"{line.where}: {key}: {error}.") from error
    return check(_converted(fields, source), source)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError(f"expected a number of at most nine digits, found {_short(text)}")
    return int(text)


def _demolishing(text: str) -> int:
    words = {"true": ALWAYS, "yes": ALWAYS, "false": 0, "no": 0}
    return words[text.lower()] if text.lower() in words else _number(text)


def _image(text: str) -> dict[str, str]:
    file, bar, kind = (part.strip() for part in text.partition("|"))
    if not bar or not file:
        raise ValueError(f"expected file|kind, found {_short(text)}")
    return {"file": file, "kind": _one_of(kind, IMAGE_KINDS, "kind")}


def _archive(text: str) -> dict[str, str]:
    parts = [part.strip() for part in text.split("|")]
    if len(parts) != 3 or not all(parts):
        raise ValueError(f"expected file|kind|script (script: none to only unpack), found {_short(text)}")
    return {"file": parts[0], "kind": _one_of(parts[1], ARCHIVE_KINDS, "kind"), "script": parts[2]}


def _archives(text: str) -> list[dict[str, str]]:
    return [_archive(part) for part in text.split(",") if part.strip()]


def _word(*choices: str) -> Callable[[str], str]:
    return lambda text: _one_of(text, choices, "value")


def _one_of(text: str, choices: Iterable[str], noun: str) -> str:
    if text not in choices:
        raise ValueError(f"unknown {noun} {_short(text)}; expected one of {', '.join(choices)}")
    return text


_LINES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "name": ("name", str),
    "version": ("version", _number),
    "description": ("description", str),
    "author": ("author", str),
    "tarball": ("image", _image),
    "preinstall": ("preinstall", _archive),
    "postinstall": ("postinstalls", _archives),
    "kernel": ("kernel", str),
    "kernel_params": ("kernel_params", str),
    "initrd": ("initrd", str),
    "hypervisor": ("hypervisor", str),
    "hypervisor_params": ("hypervisor_params", str),
    "fdisktype": ("fdisktype", str),
    "filesystem": ("filesystem", str),
    "environment_kind": ("environment_kind", _word("linux", "xen", "other")),
    "visibility": ("visibility", _word("private", "shared", "public")),
    "demolishing_env": ("demolishing_env", _demolishing),
    "part": ("part", str),
}
"""Key of the wiki form, in the order in which it is printed → field of `Environment`, and how its value is read."""


def _to_lines(environments: list[Environment]) -> str:
    """With several, a line ``###`` in front of each."""
    blocks = ["".join(f"{key} : {value}\n" for key, value in _written(each) if value != "") for each in environments]
    return "".join(f"###\n{block}" for block in blocks)


def _written(environment: Environment) -> list[tuple[str, Any]]:
    image, preinstall = environment.image, environment.preinstall
    texts: dict[str, Any] = {
        "image": f"{image.file}|{image.kind}",
        "preinstall": _archive_text(preinstall) if preinstall else "",
        "postinstalls": ",".join(map(_archive_text, environment.postinstalls)),
    }
    return [(key, texts.get(field, getattr(environment, field))) for key, (field, _) in _LINES.items()]


def _archive_text(archive: Archive) -> str:
    return f"{archive.file}|{archive.kind}|{archive.script}"


# --- YAML and JSON ----------------------------------------------------------------------------------------------

_COMPRESSIONS = {each.name: each.tar for each in COMPRESSIONS if each.archives}
_IMAGES: Mapping[tuple[str, str], str] = {(kind.form, kind.compression.name): name for name, kind in KINDS.items()}


class _Image(Struct, frozen=True, kw_only=True):
    file: str
    kind: str
    compression: str | int


class _Archive(Struct, frozen=True, kw_only=True):
    archive: str
    compression: str
    script: str = "none"


class _Boot(Struct, frozen=True, kw_only=True):
    kernel: str = ""
    initrd: str = ""
    kernel_params: str = ""
    hypervisor: str = ""
    hypervisor_params: str = ""


class _Document(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The later form, in the order in which it is printed; ``part`` and numbers in ``destructive`` are additions."""

    name: str
    version: int = 1
    description: str = ""
    author: str = ""
    visibility: Literal["private", "shared", "public"] = "private"
    destructive: bool | int = False
    os: Literal["linux", "xen", "other"]
    image: _Image
    preinstall: _Archive | None = None
    postinstalls: list[_Archive] | None = None
    boot: _Boot | None = None
    filesystem: str = ""
    partition_type: int = 0
    multipart: Literal[False] = False
    part: str = ""


def _documents(text: str, form: Form, source: str) -> list[Any]:
    try:
        if form == "json":
            return _listed(msgspec.json.decode(text))
        found = [part for part in yaml.load_all(text, Loader=SafeLoader) if part is not None]
    except (yaml.YAMLError, msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: not valid {form.upper()}: {_one_line(error)}.") from error
    return [environment for part in found for environment in _listed(part)]


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _from_document(found: Any, source: str) -> Environment:
    if isinstance(found, dict) and found.get("multipart"):
        raise EnvironmentRefusedError(f"{source}: multipart: environments on several partitions are not supported.")
    try:
        document = msgspec.convert(found, _Document)
    except (msgspec.ValidationError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: {_one_line(error)}. Correct this key of the description.") from error
    boot = document.boot or _Boot()
    destructive = document.destructive
    fields: dict[str, Any] = {
        "name": document.name,
        "version": document.version,
        "description": " ".join(document.description.splitlines()),
        "author": " ".join(document.author.splitlines()),
        "image": _image_of(document.image, source),
        "preinstall": _archive_of(document.preinstall, source, "preinstall") if document.preinstall else None,
        "postinstalls": [
            _archive_of(archive, source, f"postinstalls[{rank}]")
            for rank, archive in enumerate(document.postinstalls or ())
        ],
        "fdisktype": f"{document.partition_type:02x}" if document.partition_type else "83",
        "filesystem": document.filesystem,
        "environment_kind": document.os,
        "visibility": document.visibility,
        "demolishing_env": int(destructive) * (ALWAYS if isinstance(destructive, bool) else 1),
        "part": document.part,
    } | msgspec.structs.asdict(boot)
    return check(_converted(fields, source), source)


def _image_of(image: _Image, source: str) -> dict[str, str]:
    kind = _IMAGES.get((image.kind, str(image.compression)))
    if kind is None:
        known = ", ".join(f"{kind}/{compression}" for kind, compression in _IMAGES)
        raise EnvironmentRefusedError(
            f"{source}: image: unknown kind and compression {_short(f'{image.kind}/{image.compression}')}; "
            f"expected one of {known}."
        )
    return {"file": image.file, "kind": kind}


def _archive_of(archive: _Archive, source: str, key: str) -> dict[str, str]:
    try:
        compression = _one_of(archive.compression, _COMPRESSIONS, "compression")
    except ValueError as error:
        raise EnvironmentRefusedError(f"{source}: {key}.compression: {error}.") from error
    return {"file": archive.archive, "kind": _COMPRESSIONS[compression], "script": archive.script}


def _document(environment: Environment) -> dict[str, Any]:
    kind = KINDS[environment.image.kind]
    counter = environment.demolishing_env
    boot = {name: getattr(environment, name) for name in _Boot.__struct_fields__}
    document = _Document(
        name=environment.name,
        version=environment.version,
        description=environment.description,
        author=environment.author,
        visibility=environment.visibility,
        destructive=bool(counter) if counter in (0, ALWAYS) else counter,
        os=environment.environment_kind,
        image=_Image(file=environment.image.file, kind=kind.form, compression=kind.compression.name),
        preinstall=_document_archive(environment.preinstall) if environment.preinstall else None,
        postinstalls=[_document_archive(archive) for archive in environment.postinstalls] or None,
        boot=_Boot(**boot) if any(boot.values()) else None,
        filesystem=environment.filesystem,
        partition_type=int(environment.fdisktype, 16),
        part=environment.part,
    )
    built: dict[str, Any] = msgspec.to_builtins(document)
    always = {"version": document.version, "visibility": document.visibility}
    order = {name: rank for rank, name in enumerate(_Document.__struct_fields__)}
    return dict(sorted((built | always).items(), key=lambda item: order[item[0]]))


def _document_archive(archive: Archive) -> _Archive:
    return _Archive(archive=archive.file, compression=KINDS[archive.kind].compression.name, script=archive.script)


def _to_yaml(environments: list[Environment]) -> str:
    return yaml.safe_dump_all(
        map(_document, environments), explicit_start=True, sort_keys=False, allow_unicode=True, width=10_000
    )


def _to_json(environments: list[Environment]) -> str:
    """One environment is an object, several are a list."""
    documents = [_document(environment) for environment in environments]
    text = msgspec.json.encode(documents[0] if len(documents) == 1 else documents)
    return msgspec.json.format(text, indent=2).decode() + "\n"


_WRITERS: Mapping[Form, Callable[[list[Environment]], str]] = {"wiki": _to_lines, "yaml": _to_yaml, "json": _to_json}


def _converted(fields: Mapping[str, Any], source: str) -> Environment:
    try:
        return msgspec.convert(fields, Environment)
    except (msgspec.ValidationError, RecursionError) as error:
        raise EnvironmentRefusedError(f"{source}: {_one_line(error)}.") from error


# --- rules that both forms share ----------------------------------------------------------------------------------

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LENGTHS: Mapping[str, int] = {
    "name": 255,
    "description": 4096,
    "author": 255,
    "kernel": 1024,
    "kernel_params": 2048,
    "initrd": 1024,
    "hypervisor": 1024,
    "hypervisor_params": 2048,
    "filesystem": 32,
    "part": 255,
}
"""Texts of an environment, and how long they may be."""
_MAX_FILE = 2048
_MAX_NUMBER = 10**9 - 1


def check(environment: Environment, source: str) -> Environment:
    """*environment* with blanks trimmed and paths made absolute, if it makes sense.

    Raises:
        EnvironmentRefusedError: says which field is wrong and what was expected.
    """
    try:
        tidied = _tidied(environment, source)
        _check_fields(tidied)
        _check_boot_files(tidied)
        _check_mandatory(tidied)
    except ValueError as error:
        raise EnvironmentRefusedError(f"{source}: {error}.") from error
    return tidied


def _tidied(environment: Environment, source: str) -> Environment:
    texts = {name: _text(name, getattr(environment, name), limit) for name, limit in _LENGTHS.items()}
    preinstall, image = environment.preinstall, environment.image
    return msgspec.structs.replace(
        environment,
        **texts,
        image=msgspec.structs.replace(image, file=_file("tarball", image.file, source)),
        preinstall=_tidied_archive("preinstall", preinstall, source) if preinstall else None,
        postinstalls=tuple(_tidied_archive("postinstall", archive, source) for archive in environment.postinstalls),
    )


def _tidied_archive(field: str, archive: Archive, source: str) -> Archive:
    script = _text(f"{field} script", archive.script, _MAX_FILE)
    if not script:
        raise ValueError(f"{field}: the script is empty; write none to only unpack the archive")
    if any(mark in archive.file + script for mark in ",|"):
        raise ValueError(f"{field}: names of archives and scripts cannot contain , or |")
    return msgspec.structs.replace(archive, file=_file(field, archive.file, source), script=script)


def _text(field: str, text: str, limit: int) -> str:
    tidy = text.strip()
    if _CONTROL.search(tidy):
        raise ValueError(f"{field}: line ends, tabs and other control characters are not allowed")
    if len(tidy) > limit:
        raise ValueError(f"{field}: {len(tidy)} characters; at most {limit} are allowed")
    return tidy


def _file(field: str, text: str, source: str) -> str:
    """An absolute path or an http(s) URL."""
    file = _text(field, text, _MAX_FILE)
    if "|" in file:
        raise ValueError(f"{field}: names of files cannot contain |")
    if files.is_url(file):
        _refusing(files.check_url, file, field)
        return file
    if not file:
        raise ValueError(f"{field}: expected the name of a file")
    path = _text(field, str(_refusing(files.local_path, file, field)), _MAX_FILE)
    if path.startswith("~"):
        raise ValueError(f"{field}: {_short(path)}: write the whole path")
    if path.startswith("/"):
        return path
    if files.is_url(source):
        raise ValueError(f"{field}: {_short(path)} is relative, but the description came from a URL: write a whole one")
    return _text(field, str(_folder(source) / path), _MAX_FILE)


def _folder(source: str) -> Path:
    """Where relative paths start: beside the description, for one on standard input where the user is."""
    return Path.cwd() if files.is_stream(source) else files.local_path(source).absolute().parent


def _refusing(function: Callable[[str], Any], text: str, field: str) -> Any:
    try:
        return function(text)
    except FileError as error:
        raise ValueError(f"{field}: {str(error).rstrip('.')}") from error


def _check_fields(environment: Environment) -> None:
    if not environment.name:
        raise ValueError("name: expected a name")
    for field in ("version", "demolishing_env"):
        if not 0 <= getattr(environment, field) <= _MAX_NUMBER:
            raise ValueError(f"{field}: expected a number from 0 to {_MAX_NUMBER}")
    patterns = {
        "fdisktype": (r"[0-9A-Fa-f]{2}", "two hexadecimal digits, such as 83"),
        "filesystem": (r"([A-Za-z0-9][A-Za-z0-9._+-]*)?", "the name of a file system, such as ext4"),
        "part": (r"(/dev/(?!.*\.\.)[A-Za-z0-9/_.:-]+)?", "a block device, such as /dev/sda3"),
    }
    for field, (pattern, expected) in patterns.items():
        value = getattr(environment, field)
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{field}: expected {expected}, found {_short(value)}")


def _check_boot_files(environment: Environment) -> None:
    """Paths in the image; environments of kind other may say anything there (wiki page, "Differences")."""
    for field in ("kernel", "initrd", "hypervisor"):
        path = getattr(environment, field)
        if ".." in path.split("/"):
            raise ValueError(f"{field}: {_short(path)}: .. is not allowed")
        if path and environment.environment_kind != "other" and not path.startswith("/"):
            raise ValueError(f"{field}: {_short(path)}: expected an absolute path in the image, such as /boot/vmlinuz")


_MANDATORY: Mapping[str, tuple[str, ...]] = {
    "linux": ("kernel", "filesystem"),
    "xen": ("kernel", "filesystem", "hypervisor"),
    "other": (),
}
"""What an archive needs, by kind of environment, to be unpacked and booted; a dd image brings its own."""


def _check_mandatory(environment: Environment) -> None:
    kind = environment.environment_kind
    if environment.image.is_dd:
        return
    needed = _MANDATORY[kind] if environment.preinstall or kind != "other" else ("filesystem",)
    for field in needed:
        if not getattr(environment, field):
            raise ValueError(f"{field} is missing: an archive ({environment.image.kind}) of kind {kind} needs it")


def _short(text: str) -> str:
    """*text* fit for a message: quoted, on one line, not too long."""
    return repr(text if len(text) <= 60 else f"{text[:57]}…")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
