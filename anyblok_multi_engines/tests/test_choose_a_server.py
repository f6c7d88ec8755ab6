# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of the page "Choose a server" does what the page says."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from anyblok_multi_engines.errors import ReplicaWriteError, StaleReadError

HOWTO = Path(__file__).parents[2] / "doc" / "howto"
PROGRAM = HOWTO / "choose_a_server.py"

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="an installed package has no documentation"
)


@pytest.fixture(scope="module")
def page():
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)))


@pytest.fixture
def registry(servers, make_registry):
    return make_registry.eventual(servers)


@pytest.fixture
def behind(servers, registry):
    """Replicas have one book with 3 copies, of which the primary has 5"""
    registry.Book.insert(title="one", copies=3)
    registry.commit()
    servers.cluster.wait_for_replay()
    for replica in servers.cluster.replicas:
        replica.pause_replay()

    registry.Book.insert(title="two", copies=4)
    registry.Book.query().filter_by(title="one").one().copies = 5
    registry.commit()


def copies_of(registry, title):
    with registry.use_primary():
        book = registry.Book.query().filter_by(title=title).one()
        registry.commit()
        return book.copies


def test_reads_from_the_primary(page, registry, behind):
    page.take_a_copy(registry, "one")
    assert copies_of(registry, "one") == 4


def test_decorates(page, registry, behind):
    count_copies = page.job_of(registry)
    for _ in range(2):
        assert count_copies() == 9
        registry.rollback()


def test_reports_from_replicas(page, registry, behind):
    assert page.report(registry) == [("one", 3)]


def test_nothing_is_written_by_mistake(page, registry):
    registry.session.add(registry.Book(title="x"))
    with registry.use_replicas(), pytest.raises(ReplicaWriteError):
        registry.commit()


def test_names_a_server(page, registry, behind):
    assert page.ask_one_server(registry) == (2, 1, 1)
    registry.rollback()
    assert set(page.ask_in_the_call(registry)) == {"one", "two"}


def test_retries(page, registry, behind):
    seen = []

    def work(registry):
        book = registry.Book.query().filter_by(title="one").one()
        seen.append(book.copies)
        book.copies += 1
        return book.copies

    assert page.done(registry, work) == 6
    assert seen == [3, 5]
    assert copies_of(registry, "one") == 6


def test_error_is_as_told(registry, behind):
    book = registry.Book.query().filter_by(title="one").one()
    book.copies += 1
    with pytest.raises(StaleReadError) as raised:
        registry.commit()

    told = str(raised.value).replace("replica1", "replica2")
    page = HOWTO.parent / "explanation" / "write-guard.rst"
    assert f"(id={book.id})" in told
    told = told.replace(f"(id={book.id})", "(id=1)")
    assert told in " ".join(page.read_text(encoding="utf-8").split())


def test_explains(page, registry, capsys):
    page.explain(registry)
    printed = capsys.readouterr().out.replace("replica1", "replica2")
    text = (HOWTO / "choose-a-server.rst").read_text(encoding="utf-8")
    assert len(printed.splitlines()) == 3
    for line in printed.splitlines():
        assert f"   {line}\n" in text
