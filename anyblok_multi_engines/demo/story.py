# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The story: a cluster, an application, and two faults."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from ..testing import Cluster, wait_until
from . import commands
from .commands import Interpreter
from .results import ALL_UP, BACK, KILLED, ONE_UNIT, PAUSED, Results
from .screen import Screen

DATABASE = "demo"
READS = 40
WRITES = 10

# What the table calls a step of a unit of work.
WORKS = {
    "write": "writes",
    "read": "reads",
    "read after write": "reads after it",
}


def tell(screen: Screen) -> Results:
    """Run the whole story, and return what was measured

    :param screen: shows how far it is
    :exception: DemoError, and the errors of the cluster
    """
    cluster = Cluster(replicas=2)
    try:
        with screen.step("Starting a primary and two streaming replicas"):
            cluster.start()

        ports = (f"{it.name} on port {it.port}" for it in cluster.servers)
        screen.note(", ".join(ports))
        # In the cluster's directory, which is removed whatever happens.
        with TemporaryDirectory(dir=cluster.primary.data.parent) as directory:
            return _tell(screen, cluster, Path(directory))
    finally:
        cluster.close()


def _tell(screen: Screen, cluster: Cluster, directory: Path) -> Results:
    commands.write_distribution(directory)
    env = commands.environment(directory)
    options = options_of(cluster)

    createdb = ["anyblok_createdb", *options, "--install-bloks", commands.BLOK]
    screen.command(createdb)
    with screen.step("Creating the database, installing the blok"):
        commands.run(createdb, env)
        cluster.wait_for_replay()

    script = commands.write_script(directory)
    interpreter = [
        *("anyblok_interpreter", *options, "--logging-level", "INFO"),
        *("--script", str(script)),
    ]
    screen.command([*interpreter[:-1], script.name])
    with Interpreter(interpreter, env, directory) as application:
        with screen.step("Loading the registry, starting the script"):
            application.wait_until_ready()

        return Story(screen, cluster, application).run()


def options_of(cluster: Cluster) -> list[str]:
    """Return the options that name the servers

    :param cluster: of the servers
    """
    return [
        *("--db-name", DATABASE),
        *("--db-wo-url", cluster.primary.url(DATABASE)),
        "--db-ro-urls",
        *(replica.url(DATABASE) for replica in cluster.replicas),
    ]


class Story:
    """What happens to one running application

    :param screen: shows how far it is
    :param cluster: of the servers
    :param application: that uses them
    """

    def __init__(
        self, screen: Screen, cluster: Cluster, application: Interpreter
    ) -> None:
        self._screen = screen
        self._cluster = cluster
        self._application = application
        self._names = {server.port: server.name for server in cluster.servers}
        self._results = Results()

    def run(self) -> Results:
        """Run it, and return what was measured"""
        step = self._screen.step
        with step("Writing and reading"):
            self._write_and_read(ALL_UP)

        with step("Reading, writing and reading in one unit of work"):
            self._read_write_read()

        replica1, replica2 = self._cluster.replicas
        with step("Pausing the replay of replica1, writing and reading"):
            replica1.pause_replay()
            self._write_and_read(PAUSED)
            replica1.resume_replay()

        with step("Killing replica2, writing and reading"):
            replica2.kill()
            self._write_and_read(KILLED)

        self._results.warnings = self._application.log()
        self._screen.log(self._results.warnings)
        with step("Starting replica2 again, reading"):
            replica2.start()
            wait_until("replica2 did not take reads again", self._all_ready)
            self._measure(BACK, "read", READS)

        return self._results

    def _write_and_read(self, situation: str) -> None:
        """Write, let the replicas that can catch up, and read"""
        self._measure(situation, "write", WRITES)
        self._measure(situation, "read", READS)

    def _read_write_read(self) -> None:
        """Each of these units of work begins with replicas that are fresh"""
        for _ in range(WRITES):
            self._measure(ONE_UNIT, "read, write, read", 1)

    def _measure(self, situation: str, unit: str, times: int) -> None:
        """Have units of work done, and count what the servers say"""
        self._cluster.wait_for_replay()
        fresh = self._books()
        for step in self._application.ask(unit, times):
            work = step["work"]
            # A read after a write must see one more.
            expected = fresh + (work == "read after write")
            row = self._results.row(situation, WORKS.get(work, work))
            row.add(step, self._names, expected)

    def _books(self) -> int:
        """Return how many books are committed: the primary is asked"""
        query = "select count(*) from book"
        ((books,),) = self._cluster.primary.query(query, database=DATABASE)
        return int(books)

    def _all_ready(self) -> bool:
        status = self._application.ask("health")
        return all(it == "ready" for it in status.values())
