# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Three questions, three places: checked from the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anyblok_multi_engines

ROOT = Path(anyblok_multi_engines.__file__).parent
SEE_ANYBLOK = {"config", "console", "demo", "errors", "registry", "session"}


def imports_of(path):
    """Yield the modules that a file imports, whole names"""
    package = ["anyblok_multi_engines", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else []
            start = ".".join([*base, *names] if node.level else names)
            yield from (f"{start}.{alias.name}" for alias in node.names)


def modules(folder):
    """Return the files of a folder of the package"""
    return sorted((ROOT / folder).rglob("*.py"))


def test_imports_are_seen():
    found = set(imports_of(ROOT / "session.py"))
    assert "anyblok_multi_engines.routing.decision.decide" in found
    assert "sqlalchemy.event" in found


@pytest.mark.parametrize("path", modules("routing"), ids=lambda x: x.stem)
def test_routing_knows_values_only(path):
    allowed = (
        "anyblok_multi_engines.consistency",
        "anyblok_multi_engines.routing",
        "sqlalchemy",
        "sqlglot",
    )
    standard = (
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "itertools",
        "re",
        "typing",
        "weakref",
    )
    for name in imports_of(path):
        assert name.startswith((*allowed, *standard)), name
        assert "ngine" not in name.removeprefix("anyblok_multi_engines"), name


@pytest.mark.parametrize("path", modules("health"), ids=lambda x: x.stem)
def test_health_does_not_know_routing(path):
    for name in imports_of(path):
        assert not name.startswith("anyblok_multi_engines.routing"), name


def test_only_the_edges_see_anyblok():
    for path in sorted(ROOT.rglob("*.py")):
        top = path.relative_to(ROOT).with_suffix("").parts[0]
        if top in SEE_ANYBLOK or top in ("test_bloks", "tests"):
            continue

        if path == ROOT / "testing" / "application.py":
            # The application's bloks on a cluster.
            continue

        for name in imports_of(path):
            assert name.partition(".")[0] != "anyblok", (path, name)


def test_nothing_heavy_at_import():
    found = set(imports_of(ROOT / "__init__.py"))
    assert found <= {"__future__.annotations", "anyblok_multi_engines.config"}


def test_start_loads_no_parser_and_nothing_optional():
    """Nine megabytes, and a tenth of a second"""
    heavy = {"sqlglot", "rich", "prometheus_client", "opentelemetry"}
    for name in ("console", "demo", "metrics", "testing", "web"):
        heavy.add(f"anyblok_multi_engines.{name}")

    heavy |= {
        f"anyblok_multi_engines.{name}"
        for name in ("routing.sql", "shadow.mode", "shadow.record")
    }
    code = (
        "import sys, anyblok_multi_engines.registry as registry\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_developers_install_is_no_extra():
    """AnyBlok's start has setuptools read each line of the metadata"""
    tree = ast.parse((ROOT.parent / "setup.py").read_text())
    (extras,) = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "extras_require"
    )
    names = {ast.literal_eval(key) for key in extras.keys}
    assert names == {"testing", "console", "demo", "psycopg", "metrics"}
