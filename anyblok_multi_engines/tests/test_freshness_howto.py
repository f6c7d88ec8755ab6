# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of the page "Read what is fresh enough" does what the page says."""

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

HOWTO = Path(__file__).parents[2] / "doc" / "howto"
PROGRAM = HOWTO / "freshness.py"

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="an installed package has no documentation"
)


@pytest.fixture(scope="module")
def page():
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


@pytest.fixture
def elsewhere(registry):
    """Run a function in another thread, which has another session"""

    def run(function, *args):
        try:
            return function(registry, *args)
        finally:
            registry.Session.remove()

    with ThreadPoolExecutor(max_workers=1) as pool:
        yield lambda *args: pool.submit(run, *args).result()


@pytest.fixture
def behind(servers):
    for replica in servers.cluster.replicas:
        replica.pause_replay()


@pytest.mark.parametrize("read", ["receive", "read_in_a_block"])
def test_reads_after_a_token(page, registry, behind, elsewhere, read):
    message = page.send(registry, "one")
    assert elsewhere(getattr(page, read), message) == "one"


def test_bounds_the_age(page, registry, servers, elsewhere):
    page.send(registry, "one")
    servers.cluster.wait_for_replay()
    assert elsewhere(page.count_books) == 1
