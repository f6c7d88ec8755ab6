# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The pytest fixtures, in a test run of their own."""

import subprocess
import sys
from pathlib import Path

CONFTEST = """
import pytest

pytest_plugins = ["anyblok_multi_engines.testing.fixtures"]


@pytest.fixture(scope="session")
def anyblok_cluster_options():
    return {"replicas": 1}
"""

TESTS = """
import pytest


def test_breaks(anyblok_cluster):
    (replica,) = anyblok_cluster.replicas
    anyblok_cluster.primary.execute("do $$ begin raise log 'Hic'; end $$")
    replica.pause_replay()
    anyblok_cluster.primary.kill()


def test_is_healed(anyblok_cluster):
    (replica,) = anyblok_cluster.replicas
    assert replica.replay_state == "not paused"
    anyblok_cluster.primary.execute("do $$ begin raise log 'Haec'; end $$")
    replica.execute("do $$ begin raise log 'Hoc'; end $$")
    print(anyblok_cluster.primary.data)
    assert not "it fails"


@pytest.fixture(scope="module")
def primary(anyblok_cluster_session):
    return anyblok_cluster_session.primary


def test_shares_the_cluster(primary):
    primary.execute("do $$ begin raise log 'Illic'; end $$")
    assert not "it fails"
"""


def test_cluster_is_healed_and_a_failure_shows_its_logs(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-W", "error"),
            *("-p", "no:cacheprovider", "--rootdir", tmp_path, "test_it.py"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "PostgreSQL log of primary" in run.stdout
    assert "PostgreSQL log of replica1" in run.stdout
    # Of this test, and not of the one before.
    assert "LOG:  Haec" in run.stdout
    assert "LOG:  Hoc" in run.stdout
    assert run.stdout.count("LOG:  Hoc") == 1
    assert "LOG:  Hic" not in run.stdout
    # Of a test whose fixture shares the cluster.
    assert "LOG:  Illic" in run.stdout
    (directory,) = (
        Path(line)
        for line in run.stdout.splitlines()
        if line.startswith("/") and line.endswith("/primary")
    )
    assert not directory.exists()
