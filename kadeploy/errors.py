"""Exceptions for requests that we refuse; a node that fails is a value, not an exception.

KadeployError                 exit code 1: refused, no node touched
├── ConfigError               a site or cluster file is wrong (file, key, what was expected)
├── NodeListError             empty range, unknown node, malformed pattern
├── EnvironmentRefused        unknown, malformed, or changed since it was recorded
├── RightsError               the user lacks a right (names node and partition)
├── FileError                 unreadable, too big, wrong kind, not fetched
├── OptionError               options that contradict each other or make no sense
├── DatabaseError             the state database cannot be used
├── DestructiveEnvironment    exit code 2: kareboot3 -c found a demolishing environment
└── Interrupted               exit code 130: the user asked to stop
"""

from __future__ import annotations


class KadeployError(Exception):
    """A request that is refused; its text says what to do next."""

    exit_code = 1


class ConfigError(KadeployError):
    """A configuration file is missing or wrong."""


class NodeListError(KadeployError):
    """The nodes of a request cannot be determined."""


class EnvironmentRefused(KadeployError):
    """The environment is unknown, malformed or no longer what was recorded."""


class RightsError(KadeployError):
    """The user may not do this on these nodes."""


class FileError(KadeployError):
    """A file named by the user cannot be used."""


class OptionError(KadeployError):
    """The options of the request contradict each other or are malformed."""


class DatabaseError(KadeployError):
    """The state database cannot be used."""


class DestructiveEnvironment(KadeployError):
    """A node runs an environment that may have destroyed the production system."""

    exit_code = 2


class Interrupted(KadeployError):
    """The user interrupted the request."""

    exit_code = 130
