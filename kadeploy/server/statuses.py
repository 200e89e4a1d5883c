"""What a refusal is in HTTP."""

from __future__ import annotations

from kadeploy.errors import (
    AuthenticationError,
    ConfigError,
    DatabaseError,
    FileBusyError,
    KadeployError,
    NodeHeldError,
    RightsError,
    TooManyAttemptsError,
)

STATUSES: dict[type[KadeployError], int] = {
    AuthenticationError: 401,
    RightsError: 403,
    FileBusyError: 409,
    NodeHeldError: 409,
    TooManyAttemptsError: 429,
    ConfigError: 503,
    DatabaseError: 503,
}
"""HTTP status of refusals; all others are 400."""


def status_of(error: KadeployError) -> int:
    """HTTP status of the answer to a request that *error* has refused."""
    return next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 400)
