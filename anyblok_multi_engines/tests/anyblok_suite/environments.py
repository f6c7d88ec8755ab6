# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The virtual environments that the suite runs in.

One for the run without the plugin and one for the run with it, on each
SQLAlchemy, all of the Python that runs this. pip installs what the
constraints pin, from where the machine's own configuration says.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

PROJECT = "anyblok_multi_engines"
FACTS = Path(__file__).with_name("facts.py")

PACKAGES = (
    "anyblok==2.2.0",
    "psycopg2-binary",
    "pytest",
    # 12 removed what anyblok.testing imports.
    "testfixtures<12",
    # The suite imports it, AnyBlok does not declare it.
    "mock",
    # Column types that are skipped, or not collected, without them.
    "colour",
    "cryptography",
    "furl",
    "passlib",
    "phonenumbers",
    "pycountry",
)
"""What a run without the plugin needs, SQLAlchemy apart."""

LEFT_OUT_OF_THE_WHEEL = {
    "mock_configuration_file.cfg": (
        "[AnyBlok]\n"
        "db_name = anyblok\n"
        "db_driver_name = postgres\n"
        "db_user_name =\n"
        "db_password =\n"
        "db_host = localhost\n"
        "db_port =\n"
    ),
    "mockblok/mock_configuration_file.cfg": (
        "[AnyBlok]\nextend = ../mock_configuration_file.cfg\n"
    ),
}
"""Files that AnyBlok's tests read and its wheel lacks, by name.

The values are those that ``anyblok/tests/test_config.py`` asserts. Without
the files three tests of the configuration fail, without the plugin too.
"""


class PreparationFailed(Exception):
    """A command that makes an environment failed."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment with AnyBlok in it."""

    directory: Path

    def program(self, name: str) -> Path:
        """Where a program of this environment is.

        :rtype: Path
        """
        return self.directory / "bin" / name

    @property
    def site_packages(self) -> Path:
        """Where AnyBlok is.

        :rtype: Path
        """
        version = "python{}.{}".format(*sys.version_info)
        return self.directory / "lib" / version / "site-packages"


@dataclass(frozen=True)
class Recipe:
    """What makes an environment.

    :param directory: where
    :param sqlalchemy: the requirement, ``sqlalchemy>=2.0,<2.1``
    :param constraints: the file with the pins; need not exist
    :param project: the source tree of the plugin, None for without it
    """

    directory: Path
    sqlalchemy: str
    constraints: Path
    project: Path | None

    @property
    def stamp(self) -> str:
        """Is another when the environment must be made again.

        :rtype: str
        """
        parts = [sys.version, self.sqlalchemy, *PACKAGES]
        parts += [str(path) for path in (self.directory, self.project)]
        for path in self.inputs():
            parts.append(path.read_text() if path.exists() else "")
        parts += LEFT_OUT_OF_THE_WHEEL.values()
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def inputs(self) -> list[Path]:
        """The files that say what is installed.

        :rtype: list of Path
        """
        files = [self.constraints]
        if self.project is not None:
            # The project is installed editable, so its modules are always
            # those of the tree; its entry points are not.
            files += [
                self.project / name for name in ("setup.py", "pyproject.toml")
            ]
        return files


EDITABLE = Lock()
"""An editable install writes into the source tree: one at a time."""


def prepared(recipe: Recipe, log: Path) -> Environment:
    """The environment, made unless it is there and still right.

    :param recipe: what makes it
    :param log: what pip says goes there
    :rtype: Environment
    :exception: PreparationFailed
    """
    environment = Environment(recipe.directory)
    mark = recipe.directory / "suite-stamp"
    if mark.exists() and mark.read_text() == recipe.stamp:
        return environment
    shutil.rmtree(recipe.directory, ignore_errors=True)
    log.write_text("")
    venv.create(recipe.directory, with_pip=True)
    install(environment, recipe, [recipe.sqlalchemy, *PACKAGES], log)
    if recipe.project is not None:
        install_project(environment, recipe, recipe.project, log)
    for name, text in LEFT_OUT_OF_THE_WHEEL.items():
        path = environment.site_packages / "anyblok" / "tests" / name
        path.write_text(text)
    mark.write_text(recipe.stamp)
    return environment


def install_project(
    environment: Environment, recipe: Recipe, project: Path, log: Path
) -> None:
    """Install the plugin from its tree, then what it requires.

    Not in one go: it may refuse the SQLAlchemy under test, on which AnyBlok
    itself does not wholly work.
    """
    with EDITABLE:
        install(environment, recipe, ["--no-deps", "-e", str(project)], log)
    python, facts = str(environment.program("python")), str(FACTS)
    said = json.loads(
        checked_output([python, facts, "requirements", PROJECT], log)
    )
    if said["needed"]:
        install(environment, recipe, said["needed"], log)
    if said["refused"]:
        # pkg_resources would refuse to load the plugin's entry points.
        # Without setuptools AnyBlok takes importlib.metadata, as it does
        # in every new environment since Python 3.12.
        checked_output(
            [python, "-m", "pip", "uninstall", "-y", "setuptools"], log
        )


def install(
    environment: Environment, recipe: Recipe, what: list[str], log: Path
) -> None:
    """Let pip install something, within the constraints if there are any."""
    command = [str(environment.program("python")), "-m", "pip"]
    command += ["install", "--disable-pip-version-check", "--no-input"]
    if recipe.constraints.exists():
        command += ["-c", str(recipe.constraints)]
    checked_output([*command, *what], log)


def write_constraints(environment: Environment, path: Path, log: Path) -> None:
    """Pin what is installed, for the next environments."""
    pins = checked_output(
        [str(environment.program("python")), "-m", "pip", "freeze"], log
    )
    path.write_text(pins)


def checked_output(command: list[str], log: Path) -> str:
    """What a command prints; its errors and output are added to the log.

    :rtype: str
    :exception: PreparationFailed
    """
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise PreparationFailed(
            f"{' '.join(command)} ended with {done.returncode}:\n"
            + "\n".join(said[-20:])
            + f"\nAll of it is in {log}"
        )
    return done.stdout
