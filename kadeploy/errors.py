"""All exceptions of ours. A request that we refuse raises one; a node that fails is a value, not an exception.

KadeployError                     exit code 1: refused, no node touched
├── ConfigError                   a site or cluster file is wrong (file, key, what was expected)
├── NodeListError                 empty range, unknown node, malformed pattern
│   └── PairingError              ranges that tell of the same nodes do not go together
├── EnvironmentRefusedError       unknown, malformed, or changed since it was recorded
│   └── RecordedAlreadyError      its name and version are taken
├── ProfileRefusedError           a value does not fit into a boot profile
├── RightsError                   the user lacks a right (names node and partition)
├── AuthenticationError           whoever calls the service has not shown who they are (HTTP 401)
├── TooManyAttemptsError          they have tried too often and have to wait (HTTP 429)
├── LimitError                    the user has as much running as the site allows one user
├── QuarantineError               all nodes of the request are in quarantine
├── NodeHeldError                 a workflow that runs holds the node (HTTP 409)
├── FileError                     unreadable, too big, wrong kind, not fetched
│   └── FileBusyError             being sent by another client of the same user; try again in a while
├── ServiceError                  the site's service cannot be reached, or failed
├── OptionError                   options that contradict each other or make no sense
│   ├── MissingOptionError        one is needed that is not there
│   ├── CustomOperationError      an operation of the user's own is malformed, or for a step that is not there
│   ├── VlanError                 nodes cannot be put into the VLAN
│   ├── UnknownWorkflowError      no workflow is called so, or nothing of it is kept
│   └── NothingChangedError       everything is so already
├── DatabaseError                 the state database cannot be used
├── DestructiveEnvironmentError   exit code 2: kareboot3 -c found a demolishing environment
├── BrokenOffError                exit code 4: ended in mid-run by what has nothing to do with nodes
└── UserInterruptError            exit code 130: the user asked to stop

Six more never leave the place where they arise: they become a node's outcome, the answer of the lab's BMC, the end of
a connection, what a user's page tells of a notification, or a ConfigError with the name of its file.

OSError
└── UnreachableError              a node's ssh server cannot be entered, or was lost
Exception
├── MachineError                  a machine of the lab did not do what was asked
├── NotEnteredError               a BMC lets nobody in, or does not answer
├── NotToldError                  a mail server, or a webhook, did not take a notification
├── MalformedError                a text is no YAML, or has a key twice
└── UnsoundMessageError           the client of a console says what it may not say
"""

from __future__ import annotations

from kadeploy.printable import printable


class KadeployError(Exception):
    """A request that is refused; its text says what to do next."""

    exit_code = 1

    def __str__(self) -> str:
        """Fit to be shown: it may quote a web server, or a file."""
        return printable(super().__str__())


class ConfigError(KadeployError):
    """A configuration file is missing or wrong."""


class NodeListError(KadeployError):
    """The nodes of a request cannot be determined."""


class PairingError(NodeListError):
    """Ranges that cannot be paired."""

    key = ""
    """Of the wrong one."""
    said = ""
    """What is wrong with it."""

    @classmethod
    def of(cls, key: str, said: str) -> PairingError:
        """The one of *key*."""
        error = cls(f"{key}: {said}")
        error.key, error.said = key, said
        return error


class EnvironmentRefusedError(KadeployError):
    """The environment is unknown, malformed or no longer what was recorded."""


class RecordedAlreadyError(EnvironmentRefusedError):
    """An environment of that name and version is recorded, or public, already."""


class ProfileRefusedError(KadeployError):
    """A value does not fit into a boot profile."""


class RightsError(KadeployError):
    """The user may not do this on these nodes."""


class AuthenticationError(KadeployError):
    """Whoever calls the service has not shown who they are."""


class TooManyAttemptsError(KadeployError):
    """Too many attempts to show who calls have failed, or are being looked at just now."""

    def __init__(self, text: str, seconds: int = 1) -> None:
        super().__init__(text)
        self.seconds = seconds
        """Until the next attempt is looked at."""


class LimitError(KadeployError):
    """The user has as much running as the site allows one user."""


class QuarantineError(KadeployError):
    """All nodes of a request are in quarantine."""


class NodeHeldError(KadeployError):
    """The node is in the hands of a workflow that runs."""


class FileError(KadeployError):
    """A file named by the user cannot be used."""


class ServiceError(KadeployError):
    """The site's service cannot be reached, or failed."""


class FileBusyError(FileError):
    """The user is sending this file already, from elsewhere or over a connection that was cut a moment ago."""


class OptionError(KadeployError):
    """The options of the request contradict each other or are malformed."""


class MissingOptionError(OptionError):
    """An option is needed that the request does not have."""


class CustomOperationError(OptionError):
    """A custom operation is malformed, or belongs to a step that is not there."""


class VlanError(OptionError):
    """The nodes cannot be put into the VLAN that is asked for."""


class UnknownWorkflowError(OptionError):
    """No workflow is called so, or nothing of it is kept any more."""


class NothingChangedError(OptionError):
    """What is asked for is so already."""


class DatabaseError(KadeployError):
    """The state database cannot be used."""


class DestructiveEnvironmentError(KadeployError):
    """A node runs an environment that may have destroyed the production system."""

    exit_code = 2


class BrokenOffError(KadeployError):
    """An operation that had begun cannot go on: the disk is full, or the database is gone."""

    exit_code = 4


class UserInterruptError(KadeployError):
    """The user interrupted the request."""

    exit_code = 130


class UnreachableError(OSError):
    """A node's ssh server cannot be entered, or was lost; its text says what to look at."""


class MachineError(Exception):
    """A machine of the lab did not do what was asked; the text says why."""


class NotEnteredError(Exception):
    """Nobody answers, or the BMC does not let us in; raised by a driver, within its process."""


class NotToldError(Exception):
    """A mail server, or a webhook, did not take a notification; the text says why."""


class MalformedError(Exception):
    """A text that is no YAML, or has a key twice: the line, the place where there is one, and what is wrong."""

    def __init__(self, line: int, place: tuple[str | int, ...], said: str) -> None:
        super().__init__(said)
        self.line, self.place = line, place


class UnsoundMessageError(Exception):
    """The client of a console says what it may not say; *code* is that of RFC 6455 for it."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
