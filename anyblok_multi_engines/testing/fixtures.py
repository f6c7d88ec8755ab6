# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Pytest fixtures: a cluster for the session, healed after each test.

The entry point of :mod:`~.plugin` brings them along.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .application import Rows
    from .cluster import Cluster
    from .server import PostgresServer

#: The cluster of the session, once it is started.
started: pytest.StashKey[Cluster] = pytest.StashKey()
#: Where a test's server logs began, in bytes by name of the server.
log_starts: pytest.StashKey[dict[str, int]] = pytest.StashKey()


@pytest.fixture(scope="session")
def anyblok_cluster_options(pytestconfig: pytest.Config) -> dict[str, Any]:
    """Arguments for the session's Cluster; override it to have others.

    :rtype: dict of arguments, here the option anyblok_cluster_replicas
    """
    return {"replicas": int(pytestconfig.getini("anyblok_cluster_replicas"))}


@pytest.fixture(scope="session")
def anyblok_cluster_session(
    anyblok_cluster_options: dict[str, Any], pytestconfig: pytest.Config
) -> Iterator[Cluster]:
    """The cluster of the session, started when it is first asked for.

    Ask for it where a fixture of a wider scope prepares databases; a test
    asks for ``anyblok_cluster``. When a test fails, what the servers have
    logged since its start is in the report.

    :rtype: :class:`~.cluster.Cluster`
    """
    from .cluster import Cluster

    with Cluster(**anyblok_cluster_options) as cluster:
        pytestconfig.stash[started] = cluster
        yield cluster


@pytest.fixture
def anyblok_cluster(
    anyblok_cluster_session: Cluster, pytestconfig: pytest.Config
) -> Iterator[Cluster]:
    """The cluster of the session, for one test that may break it.

    Afterwards its proxies are closed and every fault is undone.

    :rtype: :class:`~.cluster.Cluster`
    """
    # An application may have overridden the session's.
    pytestconfig.stash[started] = anyblok_cluster_session
    yield anyblok_cluster_session
    anyblok_cluster_session.close_proxies()
    anyblok_cluster_session.heal()


@pytest.fixture(scope="session")
def anyblok_replicated_database(
    anyblok_cluster_session: Cluster, pytestconfig: pytest.Config
) -> Iterator[tuple[Any, Rows]]:
    """A registry of the application's bloks on the cluster, and its rows.

    The bloks are those of pytest's option anyblok_bloks, or else those that
    are installed in the database that AnyBlok's options name.

    :rtype: (registry, Rows)
    """
    from .application import replicated_registry

    with replicated_registry(
        anyblok_cluster_session,
        "anyblok_replicated",
        pytestconfig.getini("anyblok_bloks"),
    ) as made:
        yield made


@pytest.fixture
def anyblok_replicated_registry(
    anyblok_replicated_database: tuple[Any, Rows], anyblok_cluster: Cluster
) -> Iterator[Any]:
    """A registry of the application's bloks whose replicas serve its reads.

    It commits for real, and routes as in production. Afterwards every row is
    as it was before; sequences go on.

    :rtype: AnyBlok's registry
    """
    from .application import begin_anew

    registry, rows = anyblok_replicated_database
    begin_anew(registry)
    yield registry
    registry.rollback()
    registry.Session.remove()
    anyblok_cluster.heal()
    rows.restore()
    registry.System.Cache.invalidate_all()
    registry.rollback()


def servers_of(config: pytest.Config) -> Sequence[PostgresServer]:
    """The servers of the session's cluster.

    :param config: pytest's
    :rtype: none before their start, and after their end
    """
    cluster = config.stash.get(started, None)
    return cluster.servers if cluster and cluster.is_running else ()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note where the servers' logs are, before any fixture of the test.

    :param item: the test
    """
    item.stash[log_starts] = {
        server.name: server.log_size for server in servers_of(item.config)
    }


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the servers' logs to the report of a test that failed.

    :param item: the test
    :rtype: the report
    """
    report = yield
    if report.failed:
        starts = item.stash.get(log_starts, {})
        for server in servers_of(item.config):
            said = server.log(starts.get(server.name, 0))
            if said:
                title = f"PostgreSQL log of {server.name}"
                report.sections.append((title, said))
    return report
