# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Sessions on the servers, as an application has them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest

from anyblok_multi_engines.testing import Cluster

Connect = Callable[..., Any]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections by URL; they are closed after the test"""
    with ExitStack() as stack:

        def opened(url: str, timeout: int = 10) -> Any:
            # psycopg2 loses the SQLSTATE of a session that was ended.
            connection = psycopg.connect(url, connect_timeout=timeout)
            return stack.enter_context(closing(connection))

        yield opened


@pytest.fixture
def table(anyblok_cluster: Cluster) -> str:
    """Make a table "numbers" that holds 1 on all servers"""
    anyblok_cluster.primary.execute(
        "drop table if exists numbers",
        "create table numbers (n int)",
        "insert into numbers values (1)",
    )
    anyblok_cluster.wait_for_replay()
    return "numbers"
