# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""--anyblok-replicas, on a suite that knows nothing of it"""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from anyblok_multi_engines.testing import plugin

from .conftest import DRIVER

BLOK = '''
from anyblok.blok import Blok
from sqlalchemy import text


class Shop(Blok):
    version = "1.0.0"
    required = ["anyblok-core"]

    @classmethod
    def import_declaration_module(cls):
        from . import stock

    def update(self, latest_version):
        self.anyblok.execute(text("""
            create table view_log (n int);
            create function log_view() returns int language sql volatile
            as 'insert into view_log values (1) returning n';
            create function views() returns int language plpgsql stable as
            'begin if exists (select from stock) then return log_view();
            end if; return 0; end'
        """))
'''

MODELS = """
from anyblok import Declarations
from anyblok.column import Integer, String
from sqlalchemy import func, select

register = Declarations.register
Model = Declarations.Model


@register(Model)
class Stock:
    id = Integer(primary_key=True)
    name = String(nullable=False)
    left = Integer(default=0)

    @classmethod
    def names(cls):
        return [x.name for x in cls.query().all()]  # a page

    @classmethod
    def buy(cls, name):
        found = cls.query().filter_by(name=name).one()  # decides
        if found.left:
            cls.anyblok.Sale.insert(name=name)  # sells

    @classmethod
    def buy_well(cls, name):
        with cls.anyblok.use_primary():
            cls.buy_again(name)

    @classmethod
    def buy_again(cls, name):
        cls.query().filter_by(name=name).one()
        cls.anyblok.Sale.insert(name=name)

    @classmethod
    def buy_boldly(cls, name):
        cls.query().filter_by(name=name).one()  # anyblok-replicas: ok
        cls.anyblok.Sale.insert(name=name)

    @classmethod
    def look(cls):
        return cls.anyblok.scalar(select(func.views()))  # hidden write

    @classmethod
    def mislead(cls):
        with cls.anyblok.use_replicas():
            cls.insert(name="x")  # misled

    @classmethod
    def restock(cls, name):
        cls.insert(name=name)
        cls.anyblok.commit()
        return cls.query().filter_by(name=name).count()  # own write

    @classmethod
    def now(cls):
        cls.anyblok.execute(select(func.now(), func.random()))
        cls.anyblok.Sale.insert(name="now")

    @classmethod
    def careful(cls, name):
        savepoint = cls.anyblok.begin_nested()
        cls.query().filter_by(name=name).one()
        cls.anyblok.Sale.insert(name=name)
        savepoint.commit()


@register(Model)
class Sale:
    id = Integer(primary_key=True)
    name = String()
"""

CONFTEST = """
import os

from anyblok.config import Configuration
from anyblok.conftest import *


@pytest.fixture(scope="session")
def configuration_loaded():
    load_configuration()
    Configuration.set("db_ro_consistency", os.environ["CONSISTENCY"])
"""

TESTS = """
import pytest


@pytest.fixture
def stock(rollback_registry):
    rollback_registry.Stock.insert(name="pen", left=1)
    return rollback_registry.Stock


def test_names(stock):
    assert "pen" in stock.names()


def test_buy(stock):
    stock.buy("pen")
    assert stock.anyblok.Sale.query().count() == 1


@pytest.mark.parametrize(
    "method", ["buy_well", "buy_boldly", "careful"]
)
def test_buy_in_another_way(stock, method):
    getattr(stock, method)("pen")
    assert stock.anyblok.Sale.query().count() == 1


def test_look(stock):
    assert stock.look() == 1


def test_mislead(stock):
    stock.mislead()


def test_now(stock):
    stock.now()


def test_restock(stock):
    assert stock.restock("ink") == 1


@pytest.mark.parametrize("name", ["chalk", "clay", "gum", "glue", "lead"])
def test_restock_again(stock, name):
    assert stock.restock(name) == 1
"""

REPLICATED = """
import pytest
from sqlalchemy import func, select


PORT = select(func.current_setting("port"))


@pytest.mark.parametrize("number", range(3))
def test_real_replica(anyblok_replicated_registry, anyblok_cluster, number):
    registry, cluster = anyblok_replicated_registry, anyblok_cluster
    (replica,) = cluster.replicas
    assert registry.consistency_token() is None
    assert int(registry.scalar(PORT)) == replica.port
    assert registry.Stock.query().count() == 0
    registry.Stock.insert(name="pen")
    registry.commit()
    cluster.wait_for_replay()
    assert registry.Stock.query().count() == 1
    assert int(registry.scalar(PORT)) == replica.port
    # The next test doesn't know of it.
    replica.stop("immediate")
    registry.monitor.step()
    assert int(registry.scalar(PORT)) == cluster.primary.port
"""

INI = """
[pytest]
addopts = -p no:cacheprovider
pythonpath = .
anyblok_bloks = shop
anyblok_cluster_replicas = 1
"""


class Suite:
    """An application and its tests, in a directory"""

    def __init__(self, root):
        self.root = root
        for name, text in (
            ("shop/__init__.py", BLOK),
            ("shop/stock.py", MODELS),
            ("shop-1.0.dist-info/METADATA", "Name: shop\nVersion: 1.0\n"),
            (
                "shop-1.0.dist-info/entry_points.txt",
                "[bloks]\nshop = shop:Shop\n",
            ),
            ("tests/conftest.py", CONFTEST),
            ("tests/test_shop.py", TESTS),
            ("real/test_real.py", REPLICATED),
            ("pytest.ini", INI),
        ):
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    def run(self, *arguments, consistency="session"):
        """Run pytest as an application does, and our plugin alone"""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q"),
                *("-p", "anyblok_multi_engines.testing.plugin", *arguments),
            ],
            cwd=self.root,
            env={
                **os.environ,
                "ANYBLOK_DATABASE_DRIVER": DRIVER,
                "ANYBLOK_DATABASE_NAME": "shop",
                "CONSISTENCY": consistency,
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "PYTHONPATH": os.pathsep.join([*sys.path, str(self.root)]),
            },
            capture_output=True,
            text=True,
            timeout=100,
        )
        return Run(done)


class Run:
    """What a run of pytest has said"""

    def __init__(self, done):
        self.status = done.returncode
        self.text = done.stdout + done.stderr

    @property
    def found(self):
        """Return (line, kind) of each finding"""
        return set(
            re.findall(r"^shop/stock.py:(\d+): (.*), in ", self.text, re.M)
        )


def line(comment):
    """Return the number of the line of the models with a comment"""
    lines = MODELS.splitlines()
    [found] = [n for n, x in enumerate(lines, 1) if x.endswith(f"# {comment}")]
    return str(found)


DECIDES = (line("decides"), "a write after a late read")
WRITES = (line("hidden write"), "a write that is taken for a read")
RAISES = (line("misled"), "ReplicaWriteError")
LATE = (line("own write"), "a late read")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return Suite(tmp_path_factory.mktemp("shop"))


def test_entry_point():
    [found] = entry_points(group="pytest11", name="anyblok_multi_engines")
    assert found.load() is plugin


def test_plugin_is_cheap():
    """Nobody who doesn't use it pays for SQLAlchemy or AnyBlok"""
    heavy = "{'anyblok', 'sqlalchemy', 'psycopg', 'psycopg2'}"
    subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys\n"
            "import anyblok_multi_engines.testing.plugin\n"
            "import anyblok_multi_engines.testing.fixtures\n"
            f"assert {heavy}.isdisjoint(sys.modules)",
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_lagging_names_the_lines_that_would_break(suite):
    run = suite.run("--anyblok-replicas=lagging", "tests")
    assert run.found == {DECIDES, WRITES, RAISES}, run.text
    assert f"then writes at shop/stock.py:{line('sells')}\n" in run.text
    assert "rows: 1 on the primary, 0 on a replica that is late" in run.text
    assert "25006: cannot execute INSERT in a read-only" in run.text
    assert "seen in tests/test_shop.py::test_buy\n" in run.text
    assert "14 passed" in run.text
    assert run.status == 1


def test_eventual_reads_may_miss_the_session_s_own_commit(suite):
    """In a worker of xdist, too, and without changing the exit status"""
    run = suite.run(
        *("-p", "xdist.plugin", "-n1", "tests"),
        *("--anyblok-replicas=lagging", "--anyblok-replicas-exit-zero"),
        consistency="eventual",
    )
    assert run.found == {DECIDES, WRITES, RAISES, LATE}, run.text
    assert "14 passed" in run.text
    assert run.status == 0


def test_random_gives_late_answers(suite):
    run = suite.run(
        "--anyblok-replicas=random", "--anyblok-replicas-seed=3", "tests"
    )
    answered = (line("a page"), "a test that fails on a late read")
    assert answered in run.found, run.text
    assert "drawn by seed 3" in run.text
    # Of its own commit the session is sure, however late a replica is.
    assert line("own write") not in {number for number, _ in run.found}
    assert "FAILED tests/test_shop.py::test_names" in run.text


def test_readonly_refuses_writes_alone(suite):
    """And the fixtures are there in the same run"""
    run = suite.run("--anyblok-replicas=readonly", "tests", "real")
    assert run.found == {WRITES, RAISES}, run.text
    assert "17 passed" in run.text
