# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Which server an application's statements go to, for its own tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import event

from ..callers import place_of_caller
from ..events import DecisionMade, Listeners
from ..routing.decision import PRIMARY, Decision
from ..routing.intent import REPLICA
from ..routing.statements import shape_of


class RecordedDecision(NamedTuple):
    """Where a statement went, and who asked for it

    :param server: its name; None: there was none, and the session has raised
    :param reason: a :class:`~anyblok_multi_engines.routing.decision.Reason`
    :param place: ``file:line`` of the code that executed it
    :param made: all that is known of it
    """

    server: str | None
    reason: str
    place: str
    made: DecisionMade

    @property
    def sql(self) -> str:
        """Return the statement without its values, or what a flush writes"""
        made = self.made
        if made.statement is not None:
            try:
                return shape_of(made.statement)
            except Exception:
                # As the session will say, or the application's own element.
                return f"a {type(made.statement).__name__}"

        if made.mapper is not None:
            return f"a flush of {made.mapper.class_.__name__}"

        return "a connection"

    def __str__(self) -> str:
        return f"{self.place}: {self.made.decision}: {self.sql}"


@contextmanager
def recorded_decisions(
    registry: Any = None,
) -> Iterator[list[RecordedDecision]]:
    """Record where statements go in a block, in every thread of the process

    :param registry: of AnyBlok; None: all of them
    """
    recorded: list[RecordedDecision] = []

    def record(made: DecisionMade) -> None:
        decision: Decision = made.decision
        recorded.append(
            RecordedDecision(
                decision.server_name,
                decision.reason.value,
                place_of_caller(),
                made,
            )
        )

    target = Listeners if registry is None else registry
    event.listen(target, "decision", record)
    try:
        yield recorded
    finally:
        event.remove(target, "decision", record)


@contextmanager
def assert_served_by(
    server: str, registry: Any = None
) -> Iterator[list[RecordedDecision]]:
    """Assert that a block has statements, and that a server takes them all

    A decorator as well. Of a statement that was run again elsewhere, each
    attempt counts.

    :param server: ``"primary"``, ``"replica"``: any of them; or one's name
    :param registry: of AnyBlok; None: all of them
    :exception: AssertionError, with each statement that went elsewhere
    """
    with recorded_decisions(registry) as recorded:
        yield recorded

    if not recorded:
        raise AssertionError(
            f"Nothing was asked that {server} could have served: no statement "
            "was decided, as in a registry without replicas"
        )

    elsewhere = [x for x in recorded if not _is_served_by(x, server)]
    if elsewhere:
        raise AssertionError(
            f"{len(elsewhere)} of {len(recorded)} statements not served by "
            f"{server}:\n" + "\n".join(f"  {x}" for x in elsewhere)
        )


def _is_served_by(recorded: RecordedDecision, server: str) -> bool:
    name = recorded.server
    if server == REPLICA and name is not None:
        registry = recorded.made.registry
        return name != PRIMARY and bool(registry.is_replica(name))

    return name == server
