"""Refusals as clients of the original know them: a status, a number, and the sentence in base64."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from litestar import Response

from kadeploy.errors import (
    AuthenticationError,
    BrokenOffError,
    ConfigError,
    CustomOperationError,
    DatabaseError,
    DestructiveEnvironmentError,
    EnvironmentRefusedError,
    FileError,
    KadeployError,
    LimitError,
    MissingOptionError,
    NodeListError,
    NothingChangedError,
    OptionError,
    ProfileRefusedError,
    RecordedAlreadyError,
    RightsError,
    TooManyAttemptsError,
    UnknownWorkflowError,
    VlanError,
)

CODE, INFO = "X-Application-Error-Code", "X-Application-Error-Info"

NUMBERS: Mapping[type[KadeployError], int] = {
    ConfigError: 0,
    UnknownWorkflowError: 1,
    NodeListError: 2,
    CustomOperationError: 8,
    VlanError: 9,
    MissingOptionError: 12,
    NothingChangedError: 14,
    OptionError: 4,
    ProfileRefusedError: 4,
    FileError: 5,
    RightsError: 6,
    RecordedAlreadyError: 10,
    EnvironmentRefusedError: 7,
    LimitError: 11,
    DatabaseError: 20,
    DestructiveEnvironmentError: 30,
    BrokenOffError: 15,
}
"""The original's numbers, a special kind before its general one; what is not here is `FAILED`."""
FAILED = 15
"""Something was carried out and failed."""
_STATUSES: Mapping[type[KadeployError], int] = {AuthenticationError: 401, TooManyAttemptsError: 429}
"""HTTP status of those whom nobody knows: they get no number."""
_OPERATIONS = ("/deployment", "/reboot", "/power", "/console")
_LONGEST = 4096
"""Bytes of a sentence that fit into a header."""


def number(error: KadeployError) -> int:
    """The original's number for *error*."""
    return next((code for kind, code in NUMBERS.items() if isinstance(error, kind)), FAILED)


def answer(error: KadeployError, headers: Mapping[str, str], method: str, path: str) -> Response[str]:
    """The answer to *method* of *path* that tells a refusal; *headers* are told as well."""
    status = next((code for kind, code in _STATUSES.items() if isinstance(error, kind)), 0)
    told = dict(headers) if status else {**headers, **numbered(number(error), str(error))}
    found = status or _status(error, method, path)
    return Response(f"{error}\n", status_code=found, headers=told, media_type="text/plain")


def _status(error: KadeployError, method: str, path: str) -> int:
    """A right that an operation would need is part of its request; what is another user's is forbidden."""
    begins = method in ("POST", "PUT")
    if isinstance(error, RightsError) and not (begins and path.startswith(_OPERATIONS)):
        return 403
    if isinstance(error, EnvironmentRefusedError) and path.startswith("/environments/"):
        return 404
    return 400


def not_understood(text: str, status: int) -> Response[str]:
    """The answer to what is no request of the original's."""
    headers = numbered(NUMBERS[OptionError], text)
    return Response(f"{text}\n", status_code=status, headers=headers, media_type="text/plain")


def numbered(code: int, text: str) -> dict[str, str]:
    """Headers of a refusal."""
    return {CODE: str(code), INFO: base64.b64encode(text.encode(errors="replace")[:_LONGEST]).decode("ascii")}
