# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Published bloks' own suites: without the plugin, with it, and on replicas.

``python -m anyblok_multi_engines.tests.published_bloks`` installs bloks from
the package index that work on AnyBlok 2.2, and runs the tests that come with
them on a real cluster: alone, with anyblok_multi_engines installed, and once
for each ``--anyblok-replicas``. Exit status: 1 where a test that passes alone
doesn't pass with us, or under a mode that gives no late answer; 2 where they
can't be installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from anyblok_multi_engines.testing import Cluster

PROJECT = Path(__file__).parents[2]

PACKAGES = (
    "anyblok==2.2.0",
    "sqlalchemy>=2.0,<2.1",
    "psycopg2-binary",
    "pytest",
    "testfixtures<12",
    "anyblok_address==1.2.2",
    "anyblok_wms_base==0.8.0.post0",
)

# These bloks ask a model for its "registry", as AnyBlok 1 called it. On
# SQLAlchemy 2.0 that is SQLAlchemy's own.
OLD_NAME = """
from anyblok.registry import Registry
from sqlalchemy.orm import registry as declarative

pre_assemble_entries = Registry.pre_assemble_entries
made = []


def with_old_name(self):
    made.append(self)
    self.registry_base.registry = self
    return pre_assemble_entries(self)


def found(self, name):
    if name.startswith("_"):
        raise AttributeError(name)

    return getattr(made[-1], name)


Registry.pre_assemble_entries = with_old_name
declarative.__getattr__ = found
"""

MODES = ("readonly", "lagging", "random")
SEED = "1"


@dataclass(frozen=True)
class Suite:
    """The tests of a blok

    :param path: of the tests, in site-packages
    :param blok: that they want
    """

    path: str
    blok: str


SUITES = (
    Suite("anyblok_address", "address"),
    Suite("anyblok_wms_base/core", "wms-core"),
)


class Place:
    """A virtual environment with the bloks, and the directory of the runs

    :param directory: where
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        version = "python{}.{}".format(*sys.version_info)
        self.packages = directory / "lib" / version / "site-packages"

    def make(self) -> None:
        """Install the bloks, without the plugin

        :exception: CalledProcessError
        """
        venv.create(self.directory, with_pip=True)
        self.pip("install", *PACKAGES)
        self.pip("uninstall", "--yes", "anyblok_multi_engines")
        (self.packages / "old_name.py").write_text(OLD_NAME)

    def pip(self, *arguments: str) -> None:
        """Run pip"""
        subprocess.run(
            [self.program("python"), "-m", "pip", "--quiet", *arguments],
            check=True,
            stderr=subprocess.DEVNULL,
        )

    def program(self, name: str) -> Path:
        return self.directory / "bin" / name

    def run(
        self, suite: Suite, cluster: Cluster, *arguments: str
    ) -> tuple[dict[str, str], str]:
        """Run the tests of a blok on a new database

        :rtype: (outcome by test, what pytest said)
        """
        cluster.drop_database("published")
        environment = {
            **os.environ,
            "ANYBLOK_DATABASE_DRIVER": "postgresql",
            "ANYBLOK_DATABASE_HOST": cluster.primary.host,
            "ANYBLOK_DATABASE_NAME": "published",
            "ANYBLOK_DATABASE_PORT": str(cluster.primary.port),
            "ANYBLOK_DATABASE_USER": "postgres",
            "PYTHONPATH": "",
        }
        subprocess.run(
            [self.program("anyblok_createdb"), "--install-bloks", suite.blok],
            env=environment,
            check=True,
            capture_output=True,
        )
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            done = subprocess.run(
                [
                    *(self.program("python"), "-m", "pytest", "-q", "--tb=no"),
                    *("-p", "no:cacheprovider", "-W", "ignore"),
                    *("-p", "old_name"),
                    *(f"--junitxml={report}", *arguments),
                    self.packages / suite.path,
                ],
                cwd=self.directory,
                env=environment,
                capture_output=True,
                text=True,
            )
            if not report.exists():
                raise RuntimeError(f"pytest: {done.stdout}{done.stderr}")

            return outcomes(report), done.stdout


def outcomes(report: Path) -> dict[str, str]:
    """Return what has become of each test, from pytest's XML"""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        words = {x.tag for x in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname')}::{case.get('name')}"
        found[name] = min(words, default="passed")

    return found


def steps() -> dict[str, tuple[str, ...]]:
    """Return the runs with the plugin, and their arguments"""
    return {
        "with us": (),
        **{
            mode: (
                f"--anyblok-replicas={mode}",
                f"--anyblok-replicas-seed={SEED}",
            )
            for mode in MODES
        },
    }


def compared(
    place: Place, cluster: Cluster, console: Console
) -> tuple[Table, list[str]]:
    """Run every suite in every way

    :rtype: (what they gave, the tests that pass without us alone)
    """
    table = Table("tests of", "run", "outcomes", "reads", "lines")
    worse = []
    alone = {}
    for suite in SUITES:
        console.print(f"{suite.path}: without us")
        alone[suite], _ = place.run(suite, cluster)
        table.add_row(suite.path, "without us", counted(alone[suite]))

    place.pip("install", "--editable", f"{PROJECT}[testing]")
    for suite in SUITES:
        for name, arguments in steps().items():
            console.print(f"{suite.path}: {name}")
            found, said = place.run(suite, cluster, *arguments)
            table.add_row(suite.path, name, counted(found), *told(said))
            console.print(said, markup=False, highlight=False)
            if name != "random":
                worse += [
                    f"{test}: {name}: {found.get(test)}"
                    for test, outcome in alone[suite].items()
                    if outcome == "passed" and found.get(test) != "passed"
                ]

    return table, worse


def counted(found: dict[str, str]) -> str:
    """Return how many tests have each outcome"""
    counts = Counter(found.values())
    return ", ".join(f"{n} {word}" for word, n in sorted(counts.items()))


def told(said: str) -> tuple[str, str]:
    """Return what the report says of reads and of lines"""
    lines = said.splitlines()
    return (
        next((x[7:] for x in lines if x.startswith("Reads: ")), ""),
        next((x[24:] for x in lines if x.startswith("Lines that would")), ""),
    )


def main() -> int:
    """Run it from the command line

    :rtype: exit status
    """
    parser = argparse.ArgumentParser(
        prog="python -m anyblok_multi_engines.tests.published_bloks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path(".venv-published"),
        help="of the virtual environment; default: %(default)s",
    )
    console = Console(width=150)
    place = Place(parser.parse_args().directory.absolute())
    try:
        place.make()
    except subprocess.CalledProcessError as error:
        console.print(f"The bloks can't be installed: {error}", markup=False)
        return 2

    with Cluster(replicas=0) as cluster:
        table, worse = compared(place, cluster, console)

    console.print(table)
    for line in worse:
        console.print(f"WORSE {line}", markup=False)

    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
