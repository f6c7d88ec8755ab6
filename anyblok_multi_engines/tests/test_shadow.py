# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The shadow mode: what it notes, and that nothing else changes."""

import json
import logging
import os
import stat
import sys
from dataclasses import dataclass

import pytest
from sqlalchemy import func, select, text, update

from anyblok_multi_engines.errors import OptionError, ReplicaWriteError
from anyblok_multi_engines.routing.decision import Decision, Reason
from anyblok_multi_engines.shadow import files
from anyblok_multi_engines.shadow.record import MAX_ROWS, Record
from anyblok_multi_engines.testing import wait_until
from anyblok_multi_engines.tests.processes import process

HELLO = select(func.upper("hello"))


def line(back=0):
    """Return the place of the line that asks, or of one before it"""
    frame = sys._getframe(1)
    return f"{__file__}:{frame.f_lineno - back}"


def rows(table):
    """Return a table of a record, numbers behind the words"""
    return {key: tuple(numbers) for key, numbers in table.items()}


@pytest.fixture
def shadow(make_registry, shared_servers, tmp_path):
    """Give a function that makes a registry in shadow mode"""

    def make(**values):
        registry = make_registry(
            shared_servers.database,
            **{
                "db_wo_url": shared_servers.primary_url,
                "db_ro_shadow": True,
                "db_ro_shadow_dir": str(tmp_path / "seen"),
                **values,
            },
        )
        registry.Session.remove()
        wait_until("no catalogue was read", lambda: registry.shadow.is_ready)
        registry.shadow.forget()
        return registry

    return make


@pytest.fixture
def registry(shadow, shared_servers):
    """Give one whose replicas are there, and are looked at"""
    registry = shadow(db_ro_urls=shared_servers.replica_urls)
    wait_until(
        "the replicas were not asked",
        lambda: registry.health().shares and len(registry.health().servers) > 2,
    )
    yield registry
    registry.rollback()
    registry.Session.remove()
    shared_servers.cluster.primary.execute(
        "truncate book, shelf", database=shared_servers.database
    )


def test_try(registry, servers=None):
    registry.query("Model.Book").all()
    registry.query("Model.Book").all()
    registry.commit()
    registry.Book.insert(title="x")
    registry.query("Model.Book").all()
    registry.commit()
    registry.execute(text("select pg_advisory_lock(42) /* x */, 'bob'"))
    registry.execute(text("select pg_advisory_unlock_all()"))
    registry.rollback()
    print(registry.explain(HELLO))
    r = registry.shadow_report()
    print(r)
    print(json.dumps(r.as_json(), indent=1))
    assert 0
