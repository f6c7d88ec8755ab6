# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Sessions in several processes, against replicas that come and go: a minute.

``make soak SECONDS=600`` goes on for as long as asked.
"""

import os
import sys
from random import randrange

import pytest

from .soak.broken import forgets_what_it_has_seen
from .soak.run import soak

SEED = os.environ.get("SEED") or str(randrange(10**6))


@pytest.fixture
def run(servers, capsys):
    """Give a function that runs sessions, and says what it has shown"""
    options = {
        "db_name": servers.database,
        "db_wo_url": servers.primary_url,
        "db_ro_urls": servers.replica_urls,
    }

    def run(consistency, seconds, spoil=None):
        outcome = soak(
            servers.cluster, options, consistency, seconds, SEED, spoil
        )
        with capsys.disabled():
            # What a worker of pytest-xdist says on its stdout is lost.
            print(f"\n{outcome}", file=sys.stderr)

        assert outcome.failed == []
        # Where replicas serve little, little is proved.
        assert outcome.from_replicas > 0.3
        return outcome

    return run


def lines(violations):
    """Return what a failed test shall show of violations"""
    return [str(x) for x in violations[:5]]


def test_session(run):
    outcome = run("session", 22.0)
    assert lines(outcome.violations()) == []
    # What others have committed isn't promised, and is found to be missing.
    assert outcome.violations("strong")


def test_registry(run):
    outcome = run("registry", 9.0)
    assert lines(outcome.violations()) == []
    assert outcome.violations("strong")


def test_strong(run):
    assert lines(run("strong", 20.0).violations()) == []


def test_no_promise_is_caught(run):
    outcome = run("eventual", 4.0)
    assert lines(outcome.violations()) == []
    assert outcome.violations("session")


def test_broken_router_is_caught(run):
    outcome = run("session", 5.0, forgets_what_it_has_seen)
    assert outcome.violations()
