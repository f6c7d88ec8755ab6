# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Statements with their verdicts: is it a read that a replica may serve?

:mod:`.schema` is the database; :mod:`.core`, :mod:`.orm` and :mod:`.texts`
are the statements. The verdict of a trap isn't believed either: the test
shows what the standby refuses of it, or what it leaves there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from . import core, orm, texts

#: Traps that the standby neither refuses nor remembers; by rule, no reads.
HARMLESS_TRAPS = "not provable"
#: Traps that are behind a condition that is false, or work unseen.
UNSEEN = "not seen"
#: Neither: both verdicts are right.
EITHER = "either"


@dataclass(frozen=True, eq=False)
class Case:
    """A statement, or what a program does, and whether it is a read

    :param fact: what there is to see
    :param style: core, orm or text
    :param what: a statement, or a function that a program would be
    :param trap: what makes it no read; None for a read
    """

    fact: str
    style: str
    what: Any
    trap: str | None = None

    def __str__(self) -> str:
        return ": ".join(x for x in (self.style, self.trap, self.fact) if x)

    @property
    def is_read(self) -> bool:
        """Return True where a replica may and should serve it"""
        return self.trap is None

    @property
    def is_no_read(self) -> bool:
        """Return True where no replica may be asked"""
        return self.trap not in (None, EITHER)

    @property
    def is_harmless(self) -> bool:
        """Return True where a replica could serve it, provably or not"""
        return self.trap in (None, EITHER, HARMLESS_TRAPS)


def corpus(registry: Any) -> list[Case]:
    """Return every case

    :param registry: of AnyBlok, with the models of test4
    """
    tables = registry.Book.__table__, registry.Shelf.__table__
    return [
        *cases("core", core.reads(*tables), core.traps(*tables), core.EITHER),
        *cases("orm", orm.reads(registry), orm.traps(registry), {}),
        *cases("text", texts.READS, texts.TRAPS, texts.EITHER),
    ]


def cases(
    style: str,
    reads: dict[str, Any],
    traps: dict[str, dict[str, Any]],
    either: dict[str, Any],
) -> Iterator[Case]:
    """Yield the cases of one style"""
    groups = {None: reads, **traps, EITHER: either}
    for trap, group in groups.items():
        for fact, what in group.items():
            what = text(what) if isinstance(what, str) else what
            yield Case(fact, style, what, trap)
