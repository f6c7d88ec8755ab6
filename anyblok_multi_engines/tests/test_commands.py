# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""AnyBlok's real commands, from every combination of the options."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = Path(sys.executable).parent

SCRIPT = """
from sqlalchemy import func, select
registry = anyblok_registry
port = select(func.current_setting("port"))
print("installed", sorted(registry.loaded_bloks))
print("read by", registry.execute(port).scalar())
registry.rollback()
print("shelves", registry.Shelf.query().count())
print("explained", registry.explain(port))
"""

WRITE = """
anyblok_registry.Shelf.insert(name="from the script")
anyblok_registry.commit()
"""


@pytest.fixture
def home(tmp_path):
    """Give a directory from which test-me-blok4 is a blok like others

    AnyBlok's commands load the entry point group bloks alone.
    """
    info = tmp_path / "test_me-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: test-me\nVersion: 1\n"
    )
    (info / "entry_points.txt").write_text(
        "[bloks]\n"
        "test-me-blok4 = anyblok_multi_engines.test_bloks.test4:Test4Blok\n"
    )
    return tmp_path


class Command:
    """Runs AnyBlok's commands, with nothing of this environment's options"""

    def __init__(self, home, servers):
        self.home = home
        self.servers = servers

    def __call__(self, name, *arguments, status=0, **environment):
        """Return what a command has printed

        :param status: that it must end with; None: any but 0
        """
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ANYBLOK_", "PG"))
        }
        done = subprocess.run(
            [COMMANDS / name, *arguments],
            env={
                **kept,
                "HOME": str(self.home),
                "XDG_CONFIG_HOME": str(self.home),
                "XDG_CONFIG_DIRS": str(self.home),
                "PYTHONPATH": os.pathsep.join(
                    [str(self.home), os.environ.get("PYTHONPATH", "")]
                ),
                **environment,
            },
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        said = done.stdout + done.stderr
        expected = done.returncode if status is None else status
        assert done.returncode == expected, said
        if status is None:
            assert done.returncode != 0, said

        return said

    def script(self, text, *arguments, **environment):
        """Return what a script in anyblok_interpreter has printed"""
        path = self.home / "script.py"
        path.write_text(text)
        return self(
            "anyblok_interpreter",
            *arguments,
            "--script",
            str(path),
            **environment,
        )

    def installed(self):
        """Return the states that the primary has for our blok"""
        rows = self.servers.cluster.primary.query(
            "select state from system_blok where name = 'test-me-blok4'",
            database=self.servers.database,
        )
        return rows[0][0]


@pytest.fixture
def command(home, empty_servers):
    return Command(home, empty_servers)


def combinations(servers):
    """Return the options of each combination that has a primary"""
    primary = servers.cluster.primary
    replicas = ["--db-ro-urls", *servers.replica_urls]
    return {
        "db_url": ["--db-url", servers.primary_url, *replicas],
        "db_wo_url": ["--db-wo-url", servers.primary_url, *replicas],
        "driver": [
            "--db-driver-name",
            servers.primary_url.partition(":")[0],
            "--db-host",
            primary.host,
            "--db-port",
            str(primary.port),
            "--db-user-name",
            "postgres",
            "--db-name",
            servers.database,
            *replicas,
        ],
        "db_wo_url alone": ["--db-wo-url", servers.primary_url],
    }


@pytest.mark.parametrize(
    "name", ["db_url", "db_wo_url", "driver", "db_wo_url alone"]
)
def test_commands(command, empty_servers, name):
    servers = empty_servers
    options = combinations(servers)[name]
    command("anyblok_createdb", *options)
    assert command.installed() == "uninstalled"
    command("anyblok_updatedb", *options, "--install-bloks", "test-me-blok4")
    assert command.installed() == "installed"
    command.script(WRITE, *options)
    servers.cluster.wait_for_replay()
    said = command.script(SCRIPT, *options)
    assert "installed ['anyblok-core', 'test-me-blok4']" in said
    assert "shelves 1" in said
    port = said.partition("read by ")[2].split()[0]
    served = servers.names[port]
    if name in ("db_wo_url",):
        assert served in ("replica1", "replica2")

    if name == "db_wo_url alone":
        assert served == "primary"

    command("anyblok_doc", *options, "--doc-output", "doc.rst")
    assert "Shelf" in (command.home / "doc.rst").read_text()


def test_environment(command, empty_servers):
    servers = empty_servers
    environment = {
        "ANYBLOK_DATABASE_URL_WO": servers.primary_url,
        "ANYBLOK_DATABASE_URL_RO": ",".join(servers.replica_urls),
    }
    command(
        "anyblok_createdb", "--install-bloks", "test-me-blok4", **environment
    )
    servers.cluster.wait_for_replay()
    said = command.script(SCRIPT, **environment)
    assert "shelves 0" in said
    port = said.partition("read by ")[2].split()[0]
    assert servers.names[port] in ("replica1", "replica2")


@pytest.mark.parametrize("separator", ["\n   ", ", "], ids=["line", "comma"])
def test_configuration_file(command, empty_servers, separator):
    """A comma in a query needs no care; %2C is written %%2C"""
    servers = empty_servers
    driver = servers.primary_url.partition(":")[0]
    start = f"{driver}://postgres@/{servers.database}?host=127.0.0.1,127.0.0.1"
    one, two = (x.port for x in servers.cluster.replicas)
    several = f"{start}&port={one},{one}"
    escaped = f"{start}&port={two},{two}".replace(",", "%%2C")
    path = command.home / "app.cfg"
    path.write_text(
        "[AnyBlok]\n"
        f"db_wo_url = {servers.primary_url}\n"
        f"db_ro_urls ={separator}{several}{separator}{escaped}\n"
    )
    options = ["-c", str(path)]
    command("anyblok_createdb", *options, "--install-bloks", "test-me-blok4")
    servers.cluster.wait_for_replay()
    said = command.script(
        SCRIPT + "print(*map(str, registry.topology.replicas))", *options
    )
    for port in (one, two):
        assert f"(127.0.0.1:{port},127.0.0.1:{port})" in said

    port = said.partition("read by ")[2].split()[0]
    assert servers.names[port] in ("replica1", "replica2")


def test_name_of_the_database_is_before_the_urls(command, empty_servers):
    servers = empty_servers
    other = servers.primary_url.replace(servers.database, "postgres")
    options = ["--db-wo-url", other, "--db-name", servers.database]
    replicas = [
        x.replace(servers.database, "postgres") for x in servers.replica_urls
    ]
    command("anyblok_createdb", *options, "--db-ro-urls", *replicas)
    assert command.installed() == "uninstalled"


@pytest.mark.parametrize("fault", ["late", "pause_replay", "stop"])
def test_replicas_behind_or_gone(command, empty_servers, fault):
    """What the commands read decides what they write"""
    servers = empty_servers
    options = combinations(servers)["db_wo_url"]

    def have(fault):
        for replica in servers.cluster.replicas:
            getattr(replica, fault)()

    if fault != "late":
        have(fault)

    command("anyblok_createdb", *options, "--with-demo")
    assert command.installed() == "uninstalled"
    if fault == "late":
        # They have the database, and will never know of the blok.
        servers.cluster.wait_for_replay()
        have("pause_replay")

    for asked, state in (
        ("--install-or-update-bloks", "installed"),
        ("--install-or-update-bloks", "installed"),
        ("--uninstall-bloks", "uninstalled"),
        ("--install-or-update-bloks", "installed"),
    ):
        command("anyblok_updatedb", *options, asked, "test-me-blok4")
        assert command.installed() == state

    command("anyblok_updatedb", *options, "--update-all-bloks")
    assert command.installed() == "installed"
    command("anyblok_updatedb", *options, "--uninstall-bloks", "test-me-blok4")
    command("anyblok_updatedb", *options, "--install-all-bloks")
    assert command.installed() == "installed"
    if fault == "stop":
        assert "shelves 0" in command.script(SCRIPT, *options)


def test_install_all_bloks_at_once(command, empty_servers):
    options = combinations(empty_servers)["db_wo_url"]
    command("anyblok_createdb", *options, "--install-all-bloks")
    assert command.installed() == "installed"


class TestReadOnlyMode:
    @pytest.fixture
    def options(self, command, empty_servers):
        servers = empty_servers
        command(
            "anyblok_createdb",
            "--db-url",
            servers.primary_url,
            "--install-bloks",
            "test-me-blok4",
        )
        servers.cluster.wait_for_replay()
        return ["--db-ro-urls", *servers.replica_urls]

    def test_reads(self, command, empty_servers, options):
        said = command.script(SCRIPT, *options)
        assert "installed ['anyblok-core', 'test-me-blok4']" in said
        command("anyblok_doc", *options, "--doc-output", "doc.rst")
        assert "Shelf" in (command.home / "doc.rst").read_text()

    def test_refuses_to_write(self, command, empty_servers, options):
        path = command.home / "write.py"
        path.write_text(WRITE)
        for name, arguments in (
            ("anyblok_interpreter", ["--script", str(path)]),
            ("anyblok_updatedb", ["--update-all-bloks"]),
            ("anyblok_createdb", ["--db-name", "another"]),
        ):
            said = command(name, *options, *arguments, status=None)
            assert "NoPrimaryError" in said
            assert "--db-url or --db-wo-url" in said


def test_bad_input_creates_no_database(command, empty_servers):
    servers = empty_servers
    said = command(
        "anyblok_createdb",
        "--db-url",
        servers.primary_url.replace("postgres@", "postgres:s3cr3t@"),
        "--db-wo-url",
        servers.primary_url,
        status=None,
    )
    assert "give --db-url if it takes its share" in said
    assert "s3cr3t" not in said
    assert not servers.cluster.primary.query(
        "select 1 from pg_database where datname = %s", [servers.database]
    )
