# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is asked of a server to check it, and what it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..health.probe import without_transaction

T = TypeVar("T")


def rows(
    driver: Any, question: str, parameters: Sequence[Any] | None = None
) -> list[Any]:
    """Return the answer to a question, without a transaction around it

    :param driver: a connection of psycopg2 or psycopg, without a transaction
    :param question: SQL
    :param parameters: of the driver's
    :exception: the driver's
    """
    with without_transaction(driver), driver.cursor() as cursor:
        cursor.execute(question, parameters)
        return list(cursor.fetchall())
