# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What goes wrong, as types. A leaf exists where a caller may catch it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from anyblok.config import ConfigurationException
from anyblok.registry import RegistryException
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm.exc import StaleDataError


class MultiEnginesException(RegistryException):
    """Base of the errors of this package"""


class OptionError(MultiEnginesException, ConfigurationException):
    """An option is wrong; the message names it and says what to write"""


class NoPrimaryError(MultiEnginesException):
    """A write was asked of a registry that only knows replicas"""


class NoReplicaError(MultiEnginesException):
    """A replica was asked for, and there is none that will do"""


class CommitUnknownError(MultiEnginesException, OperationalError):
    """The answer to a COMMIT is lost: whether it is committed is unknown

    It isn't run again. ``orig`` is the driver's error.
    """

    def __str__(self) -> str:
        reason = str(self.orig).strip().partition("\n")[0]
        return (
            f"The answer to a COMMIT was lost ({reason}): nobody knows whether "
            "its changes are in the database, all of them or none. Nothing is "
            "done again: roll back, look whether they are there, and do it "
            "again only if they aren't"
        )


class SnapshotLostError(MultiEnginesException, OperationalError):
    """The snapshot of a unit of work is gone with its replica

    Under REPEATABLE READ and SERIALIZABLE. Nothing was written: the unit of
    work may be done again from its beginning. ``orig`` is the driver's error.
    """

    def __str__(self) -> str:
        reason = str(self.orig).strip().partition("\n")[0]
        return (
            f"The replica that this unit of work reads from is lost ({reason}),"
            " and its snapshot with it: what follows would be of another one. "
            "Roll back, and do the unit of work again from its beginning"
        )


class ServerUnavailableError(MultiEnginesException):
    """A server did not answer where nothing else could take its place"""


class ReplicaWriteError(MultiEnginesException):
    """A write was asked of replicas; it has not been sent to any server"""


class UnknownServerError(MultiEnginesException):
    """A statement named a server that no option has configured"""


class ConsistencyTokenError(MultiEnginesException, ValueError):
    """What is given isn't a token of this database, or can't be one"""


class StaleRead(NamedTuple):
    """An instance that a replica has loaded, and that is another by now

    :param model: its name
    :param key: its primary key, by column
    :param columns: those that differ; none: the primary hasn't the row
    :param server: the replica that loaded it
    """

    model: str
    key: Mapping[str, Any]
    columns: tuple[str, ...]
    server: str

    def __str__(self) -> str:
        key = ", ".join(f"{x}={value!r}" for x, value in self.key.items())
        what = ", ".join(self.columns)
        return f"{self.model}({key}) was read from {self.server}, " + (
            f"and the primary has another {what}" if what else "and is gone"
        )


class StaleReadError(MultiEnginesException, StaleDataError):
    """What is changed was read from a replica, and is another on the primary

    Nothing is written. ``model``, ``key``, ``columns`` and ``server`` are
    those of the first of ``reads``.

    :param reads: all such instances of the flush
    """

    def __init__(self, reads: tuple[StaleRead, ...]) -> None:
        super().__init__(reads)
        self.reads = reads
        self.model, self.key, self.columns, self.server = reads[0]

    def __str__(self) -> str:
        more = len(self.reads) - 1
        return (
            f"{self.reads[0]}"
            + (f" ({more} more like it)" if more else "")
            + "; nothing was written. Roll back, and do it again under "
            "registry.use_primary()"
        )
