# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A process that forks: pools and threads are each one's own."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, sys, time
from anyblok import load_init_function_from_entry_points
load_init_function_from_entry_points()
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import RegistryManager
from sqlalchemy import text

options = json.loads(sys.argv[1])
Configuration.load_config_for_test()
Configuration.update(**options)
BlokManager.load(entry_points=("bloks", "test_bloks"))
registry = RegistryManager.get(options["db_name"])
registry.commit()

ME = "SELECT current_setting('port'), pg_backend_pid()"
ALL = "SELECT current_setting('port'), pid FROM pg_stat_activity"


def work(name, number=20):
    for each in range(number):
        registry.Book.insert(title=f"{name} {each}")
        registry.commit()
        titles = {book.title for book in registry.Book.query().all()}
        registry.rollback()
        assert f"{name} {each}" in titles


def backends():
    found = set()
    for name in ("primary", "replica1", "replica2"):
        with registry.engine_of(name).connect() as connection:
            found.add(tuple(connection.execute(text(ME)).one()))

    return found


def alive():
    found = set()
    for name in ("primary", "replica1", "replica2"):
        with registry.engine_of(name).connect() as connection:
            found.update(map(tuple, connection.execute(text(ALL)).all()))

    return found


work("before")
mine = backends()
children = []
for number in range(2):
    pid = os.fork()
    if not pid:
        try:
            assert not mine & backends()
            work(f"child {number}")
            thread = registry.monitor._thread
            assert thread.is_alive()
            asked = registry.health().of("replica1").observation.asked_at
            deadline = time.monotonic() + 10
            while (
                registry.health().of("replica1").observation.asked_at == asked
            ):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)

        os._exit(0)

    children.append(pid)

work("parent")
assert [os.waitpid(x, 0)[1] for x in children] == [0, 0]
assert mine <= alive()

# They don't all begin with the same server.
first = set()
for number in range(20):
    pid = os.fork()
    if not pid:
        name = registry.balancer.peek(("replica1", "replica2"))
        os._exit(int(name[-1]))

    first.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

assert first == {1, 2}
work("after")
print(registry.Book.query().count())
registry.close()
"""


IN_THE_MIDDLE = """
registry.rollback()
before = registry.Book.query().count()
registry.rollback()
if mode == "write":
    registry.Book.insert(title="parent")
    registry.flush()
elif mode == "read":
    with registry.use_primary():
        registry.execute(text("SELECT 1"))
elif mode == "replica":
    registry.execute(text("SELECT 1"))

children = []
for number in range(3):
    pid = os.fork()
    if not pid:
        try:
            for _ in range(20):
                got = registry.execute(text(f"SELECT {number}")).scalar()
                assert got == number
                registry.rollback()

            registry.Book.insert(title=f"child {number}")
            registry.commit()
            registry.close()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)

        # Which collects and closes what is left.
        sys.exit(0)

    children.append(pid)

assert [os.waitpid(x, 0)[1] for x in children] == [0, 0, 0]
registry.commit()
assert registry.Book.query().count() == before + 3 + (mode == "write")
registry.close()
"""

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="there is no fork here"
)


@pytest.mark.parametrize("mode", ["write", "read", "replica"])
def test_unit_of_work_stays_the_parent_s(servers, tmp_path, mode):
    program = tmp_path / "program.py"
    loading = PROGRAM[: PROGRAM.index("registry.commit()")]
    program.write_text(
        loading.replace("sys.argv[1]", "sys.argv[2]")
        + "mode = sys.argv[1]\n"
        + IN_THE_MIDDLE
    )
    options = {
        "db_name": servers.database,
        "db_wo_url": servers.primary_url,
        "db_ro_urls": servers.replica_urls,
        "db_ro_wait": 5.0,
    }
    done = subprocess.run(
        [sys.executable, str(program), mode, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_each_process_has_its_own_connections(servers, tmp_path):
    options = {
        "db_name": servers.database,
        "db_wo_url": servers.primary_url,
        "db_ro_urls": servers.replica_urls,
        "db_ro_check_interval": 0.2,
    }
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "100"
