# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A real primary with streaming replicas, to test an application against.

It needs no installed PostgreSQL and no container: the programs come with
``pip install anyblok_multi_engines[testing]``. It doesn't import AnyBlok,
until somebody asks for what is said of a registry's decisions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .binaries import Binaries, find_binaries
from .cluster import Cluster
from .errors import BinariesNotFound, ClusterError
from .proxy import TcpProxy
from .server import PostgresServer
from .waiting import wait_until

if TYPE_CHECKING:
    from .decisions import (
        RecordedDecision,
        assert_served_by,
        recorded_decisions,
    )

__all__ = [
    "Binaries",
    "BinariesNotFound",
    "Cluster",
    "ClusterError",
    "PostgresServer",
    "RecordedDecision",
    "TcpProxy",
    "assert_served_by",
    "find_binaries",
    "recorded_decisions",
    "wait_until",
]


def __getattr__(name: str) -> Any:
    """Import what needs AnyBlok: pytest's entry point is in this package"""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    from . import decisions

    return getattr(decisions, name)


def __dir__() -> list[str]:
    """Return the names, for the reference and for who types in a shell"""
    return __all__
