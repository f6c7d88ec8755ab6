# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""AnyBlok's own models with replicas, outside of unittest mode.

Each test waits until the replicas have what was committed: that a session
sees its own commits on a replica that is behind is no claim of this version.
"""

import pytest
from sqlalchemy import text


@pytest.fixture
def servers(shared_servers):
    return shared_servers


@pytest.fixture
def registry(shared_registry):
    return shared_registry


@pytest.fixture
def committed(servers, registry):
    """Give a function that commits, and waits for the replicas"""

    def commit():
        registry.commit()
        servers.cluster.wait_for_replay()

    return commit


REPLICAS = ("replica1", "replica2")


def test_insert_update_delete(registry, servers, committed):
    shelf = registry.Shelf.insert(name="a")
    assert shelf.number
    book = registry.Book.insert(title="t", shelf=shelf, facts={"a": [1]})
    committed()
    assert registry.Book.query().one().facts == {"a": [1]}
    assert servers.served_by(registry) in REPLICAS
    book.update(copies=3, facts={"b": 2})
    committed()
    assert registry.Book.query().filter_by(copies=3).one().facts == {"b": 2}
    assert [x.title for x in registry.Shelf.query().one().books] == ["t"]
    book.delete()
    committed()
    assert registry.Book.query().count() == 0
    assert servers.served_by(registry) in REPLICAS


def test_statements_by_query(registry, committed):
    registry.Book.multi_insert({"title": "a"}, {"title": "b"})
    committed()
    Book = registry.Book
    Book.execute_sql_statement(
        Book.update_sql_statement().where(Book.title == "a").values(copies=9)
    )
    assert Book.query().filter_by(copies=9).count() == 1
    committed()
    Book.execute_sql_statement(
        Book.delete_sql_statement().where(Book.copies == 9)
    )
    committed()
    assert Book.query().all().title == ["b"]
    book = Book.query().one()
    book.update(byquery=True, copies=4)
    committed()
    assert Book.query().one().copies == 4
    Book.query().one().delete(byquery=True)
    committed()
    assert Book.query().count() == 0


def test_parameters(registry, committed):
    Parameter = registry.System.Parameter
    Parameter.set("p", 1)
    assert Parameter.get("p") == 1
    committed()
    assert Parameter.get("p") == 1
    Parameter.set("p", {"x": 2})
    assert Parameter.get("p") == {"x": 2}
    committed()
    assert Parameter.pop("p") == {"x": 2}
    committed()
    assert not Parameter.is_exist("p")


@pytest.mark.parametrize("no_gap", [True, False])
def test_sequences(registry, committed, no_gap):
    sequence = registry.System.Sequence.insert(
        code=f"code {no_gap}", formater="{code}-{seq:03d}", no_gap=no_gap
    )
    committed()
    first = 1
    values = []
    for _ in range(3):
        values.append(sequence.nextval())
        committed()

    assert values == [
        f"code {no_gap}-{number:03d}" for number in range(first, first + 3)
    ]
    assert (
        registry.System.Sequence.nextvalBy(code=f"code {no_gap}")
        == f"code {no_gap}-004"
    )
    registry.commit()


def test_caches(registry, committed):
    assert registry.Shelf.how_many() == 0
    registry.Shelf.insert(name="a")
    committed()
    assert registry.Shelf.how_many() == 0
    registry.System.Cache.invalidate("Model.Shelf", "how_many")
    committed()
    assert registry.Shelf.how_many() == 1
    # As another process does:
    registry.Shelf.insert(name="b")
    registry.execute(
        text(
            "INSERT INTO system_cache (registry_name, method) "
            "VALUES ('Model.Shelf', 'how_many')"
        )
    )
    committed()
    assert registry.Shelf.how_many() == 1
    registry.System.Cache.clear_invalidate_cache()
    assert registry.Shelf.how_many() == 2


def test_bloks(registry):
    Blok = registry.System.Blok
    assert "anyblok-core" in Blok.list_by_state("installed")
    assert Blok.is_installed("test-me-blok4")
    assert not Blok.is_installed("test-me-blok1")


def test_documentation_reads_the_whole_registry(registry):
    doc = registry.Documentation()
    doc.auto_doc()
    registry.rollback()
