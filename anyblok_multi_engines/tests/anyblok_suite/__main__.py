# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Compare AnyBlok's own suite without and with the plugin.

Exit status: 0 when every test that is good without the plugin is the same
with it, on every SQLAlchemy; 1 when one is not, or was not run, or when a
run cannot be trusted; 2 for bad arguments.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock

from rich.console import Console

from anyblok_multi_engines.testing import Cluster

from .environments import (
    Environment,
    PreparationFailed,
    Recipe,
    prepared,
    write_constraints,
)
from .facts import postgresql
from .outcomes import (
    Baseline,
    differences,
    merged,
    read_baseline,
    unstable_tests,
    write_baseline,
)
from .report import Verdict, show
from .suite import Address, Run, Suite

SQLALCHEMY = {
    "2.0": "sqlalchemy>=2.0,<2.1",
    "2.1": "sqlalchemy>=2.1,<2.2",
}
HERE = Path(__file__).parent
PROJECT = HERE.parents[2]
LIMIT = 30 * 60.0
LAG = 1.0
"""A standby that replays at once hides a read that should not be there."""
RECORDED_RUNS = 2
"""A baseline is recorded from so many runs: one shows nothing unstable."""

STARTING = Lock()
"""Clusters are started one at a time."""


class Unusable(Exception):
    """A run gave nothing that can be compared."""


@dataclass(frozen=True)
class Track:
    """The runs on one SQLAlchemy: one thread.

    :param version: "2.0"
    :param arguments: the command line's
    :param console: shows progress
    :param stop: ends the runs when set
    """

    version: str
    arguments: argparse.Namespace
    console: Console
    stop: Event

    @property
    def name(self) -> str:
        return f"SQLAlchemy {self.version}"

    @property
    def directory(self) -> Path:
        directory: Path = self.arguments.directory
        return directory / f"sqlalchemy-{self.version}"

    @property
    def baseline_file(self) -> Path:
        return self.kept(f"sqlalchemy{self.version.replace('.', '')}.json")

    @property
    def constraints_file(self) -> Path:
        name = f"constraints-sqlalchemy{self.version.replace('.', '')}.txt"
        return self.kept(name)

    def kept(self, name: str) -> Path:
        directory: Path = self.arguments.baseline
        return directory / name

    def say(self, line: str) -> None:
        """Show a line of progress."""
        now = time.strftime("%H:%M:%S")
        self.console.print(
            f"{now} {self.name} {line}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def verdict(self) -> Verdict:
        """Run what must be run, and compare.

        :rtype: Verdict
        """
        verdict = Verdict(self.name)
        try:
            with_plugin = self.environment("with")
            baseline, source = self.baseline()
            verdict = replace(verdict, baseline=baseline, source=source)
            run = self.run("with", with_plugin)
        except (PreparationFailed, Unusable) as error:
            return replace(verdict, troubles=(str(error),))
        return replace(
            verdict,
            run=run,
            differences=differences(baseline, run.results),
            troubles=tuple(run.troubles),
        )

    def baseline(self) -> tuple[Baseline, str]:
        """The results without the plugin, and where they are from.

        :rtype: (Baseline, str)
        :exception: PreparationFailed
        :exception: Unusable
        """
        kept = read_baseline(self.baseline_file)
        if kept is None:
            self.say(f"has no baseline in {self.baseline_file}")
        elif self.arguments.fresh:
            self.say("runs without the plugin, as was asked")
        else:
            reasons = kept.mismatches(self.versions(self.environment("with")))
            if not reasons:
                return kept, "kept"
            self.say(f"cannot use its baseline: {'; '.join(reasons)}")
        fresh = self.recorded(1)
        # What is known to be unstable stays so in the versions at hand.
        return replace(fresh, unstable=kept.unstable if kept else {}), "fresh"

    def recorded(self, times: int) -> Baseline:
        """Run without the plugin.

        :param times: how often
        :rtype: Baseline
        :exception: PreparationFailed
        :exception: Unusable
        """
        without = self.environment("without")
        versions = self.versions(without)
        runs = [self.run("without", without) for _ in range(times)]
        for run in runs:
            if run.troubles:
                raise Unusable("without the plugin: " + "\n".join(run.troubles))
        results = [run.results for run in runs]
        return Baseline(
            versions=versions,
            results=merged(*results),
            unstable=unstable_tests(results),
        )

    def record(self) -> Baseline:
        """Run without the plugin, and keep that.

        :rtype: Baseline
        """
        baseline = self.recorded(RECORDED_RUNS)
        write_baseline(self.baseline_file, baseline)
        if not self.constraints_file.exists():
            write_constraints(
                self.environment("without"),
                self.constraints_file,
                self.directory / "pip.log",
            )
        return baseline

    def environment(self, side: str) -> Environment:
        """The environment of a side, made when needed.

        :param side: "with" or "without" the plugin
        :rtype: Environment
        :exception: PreparationFailed
        """
        directory = self.directory / side
        directory.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(
            directory=directory / "venv",
            sqlalchemy=SQLALCHEMY[self.version],
            constraints=self.constraints_file,
            project=self.arguments.project if side == "with" else None,
        )
        start = time.monotonic()
        environment = prepared(recipe, directory / "pip.log")
        if time.monotonic() - start > 1.0:
            self.say(f"made {environment.directory}")
        return environment

    def versions(self, environment: Environment) -> dict[str, str]:
        """What decides outcomes, PostgreSQL included.

        :rtype: dict of version by name
        """
        said = subprocess.run(
            [environment.program("python"), HERE / "facts.py", "packages"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        versions: dict[str, str] = json.loads(said)
        return versions | {"postgresql": self.arguments.postgresql}

    def run(self, side: str, environment: Environment) -> Run:
        """Run the suite on a new cluster.

        :rtype: Run
        :exception: Stopped
        """
        with ExitStack() as stack:
            with STARTING:
                cluster = stack.enter_context(Cluster(replicas=1))
            primary, [standby] = cluster.primary, cluster.replicas
            standby.delay_replay(self.arguments.lag)
            suite = Suite(
                environment=environment,
                directory=self.directory / side / "run",
                primary=Address(primary.host, primary.port),
                replica=Address(standby.host, standby.port),
                expects_plugin=side == "with",
                say=lambda line: self.say(f"{side}: {line}"),
                stop=self.stop,
                limit=self.arguments.limit,
            )
            return suite.run()


def arguments_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    :rtype: argparse's Namespace
    """
    parser = argparse.ArgumentParser(
        prog="python -m anyblok_multi_engines.tests.anyblok_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sqlalchemy",
        action="append",
        choices=list(SQLALCHEMY),
        help="only this version (repeat it for more); default: all",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="run without the plugin even where the kept baseline holds",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"run without the plugin, {RECORDED_RUNS} times, and keep that;"
        " remove the constraints file first to take the newest versions",
    )
    parser.add_argument(
        "--directory",
        type=absolute,
        default=absolute(".venv-anyblok"),
        help="for the virtual environments and the logs; default: %(default)s",
    )
    parser.add_argument(
        "--baseline",
        type=absolute,
        default=HERE / "baseline",
        help="the directory of the kept baselines and constraints",
    )
    parser.add_argument(
        "--project",
        type=absolute,
        default=PROJECT,
        help="the source tree of the plugin; default: %(default)s",
    )
    parser.add_argument(
        "--lag",
        type=float,
        default=LAG,
        help="seconds that the standby is behind; default: %(default)s",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        help="seconds after which a step is ended; default: %(default)s",
    )
    return parser.parse_args(argv)


def absolute(path: str) -> Path:
    return Path(path).absolute()


def each_track(
    arguments: argparse.Namespace, console: Console
) -> list[Verdict]:
    """Every SQLAlchemy side by side.

    :rtype: list of Verdict
    """
    stop = Event()
    tracks = [
        Track(version, arguments, console, stop)
        for version in arguments.sqlalchemy or SQLALCHEMY
    ]
    with ThreadPoolExecutor(len(tracks)) as executor:
        act = recorded_verdict if arguments.record else Track.verdict
        futures = [executor.submit(act, track) for track in tracks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            raise


def recorded_verdict(track: Track) -> Verdict:
    """Record, and show it as a verdict of nothing.

    :rtype: Verdict
    """
    try:
        return Verdict(track.name, "recorded", track.record())
    except (PreparationFailed, Unusable) as error:
        return Verdict(track.name, troubles=(str(error),))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, compare, report.

    :rtype: the exit status
    """
    arguments = arguments_of(argv)
    console = Console()
    with Cluster(replicas=0) as cluster:
        address = Address(cluster.primary.host, cluster.primary.port)
        arguments.postgresql = postgresql(address.libpq_url("postgres"))
    verdicts = each_track(arguments, console)
    show(console, verdicts)
    if arguments.record:
        return int(any(verdict.troubles for verdict in verdicts))
    return int(not all(verdict.is_good for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
