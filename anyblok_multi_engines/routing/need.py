# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a statement needs of a server."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """How much is known of a statement"""

    READ = "read"  #: proven to be a plain read
    UNPROVEN = "unproven"  #: may write, may lock: nobody has shown it doesn't
    WRITE = "write"  #: is known to write or to lock


@dataclass(frozen=True)
class Need:
    """What a statement needs of a server

    :param kind: only a READ may leave the primary
    :param because: the part of the statement that says so; None for a READ
    :param unknown: True where the catalogue has not heard of a name: it may
        have been created since the catalogue was read
    :param sources: of a READ, the names of the relations and of the
        application's functions from which it reads
    """

    kind: Kind
    because: str | None = None
    unknown: bool = False
    sources: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def is_read(self) -> bool:
        """Return True where a replica can serve the statement"""
        return self.kind is Kind.READ


READ = Need(Kind.READ)
NO_STATEMENT = Need(Kind.UNPROVEN, "no statement: a bare connection")
