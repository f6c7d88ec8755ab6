# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Servers fail, one by one, under threads and forked processes: 45 seconds.

``make chaos`` is two minutes of it.
"""

import os
import sys
from random import randrange

import pytest

from .chaos.__main__ import SHORT, SHORT_SECONDS
from .chaos.faults import KINDS
from .chaos.naive import Recipe
from .chaos.run import Run, chaos
from .conftest import DRIVER

SEED = os.environ.get("SEED") or str(randrange(10**6))

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="there is no fork here"
)


@pytest.fixture
def run(capsys, tmp_path):
    """Give a function that runs it, and says what it has shown"""

    def run(seconds, kinds, recipe=None):
        result = chaos(Run(seconds, SEED, DRIVER, kinds, recipe))
        with capsys.disabled():
            # What a worker of pytest-xdist says on its stdout is lost.
            print(f"\n{result}", file=sys.stderr)

        # For the report of a test that fails.
        print("\n".join(result.details())[:20_000])
        assert all(path.stat().st_size for path in result.write(tmp_path, "x"))
        assert {span.kind for span in result.spans} >= set(kinds)
        # Where replicas serve little, little is proved.
        assert result.from_replicas > 0.2
        return result

    return run


def test_nobody_notices(run):
    assert run(30.0, tuple(KINDS)).missed == {}


def test_usual_recipe_is_caught(run):
    missed = run(SHORT_SECONDS, SHORT, Recipe).missed
    assert missed.keys() >= {"failed reads", "stale"}
