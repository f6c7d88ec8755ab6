# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The documentation says what the code does: the same words, none missing."""

import argparse
import ast
import dataclasses
import inspect
import json
import re
import runpy
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

import anyblok_multi_engines
from anyblok_multi_engines import config, errors, events, metrics, testing
from anyblok_multi_engines.console import options
from anyblok_multi_engines.console.explain import Explanation
from anyblok_multi_engines.console.findings import OWN_CONNECTIONS, Finding
from anyblok_multi_engines.console.findings import RULES as CHECKS
from anyblok_multi_engines.console.status import ServerState
from anyblok_multi_engines.events import RegistryEvents
from anyblok_multi_engines.freshness import UNITS_ON_ONE
from anyblok_multi_engines.routing.decision import RULES, Reason
from anyblok_multi_engines.testing import plugin

ROOT = Path(anyblok_multi_engines.__file__).parent
PROJECT = ROOT.parent
DOC = PROJECT / "doc"
LEVELS = {
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
    "critical": "CRITICAL",
}

pytestmark = pytest.mark.skipif(
    not DOC.is_dir(), reason="an installed package has no documentation"
)


def page(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def pages():
    return sorted(
        path for path in DOC.rglob("*.rst") if "_build" not in path.parts
    )


def rows(name):
    """Return the cells of every row of a page's list-tables"""
    found = re.split(r"(?m)^   \* - ", page(name))[1:]
    return [
        [" ".join(cell.split()) for cell in re.split(r"(?m)^     - ", row)]
        for row in found
    ]


def first_words(name):
    """Return the ``words`` that begin the rows of a page's list-tables"""
    found = (re.match(r"``(\w+)``$", row[0]) for row in rows(name))
    return [word[1] for word in found if word]


def our_options():
    """Return the names of the options that our package adds"""
    parser = argparse.ArgumentParser(add_help=False)
    config.update_database(parser)
    return [action.option_strings[0] for action in parser._actions]


def environment_variables():
    """Return the environment variables that our package reads"""
    return sorted(set(re.findall(r"ANYBLOK_\w+", inspect.getsource(config))))


def messages():
    """Return each message of our loggers, its logger and its level"""
    found = set()
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        if "tests" in parts:
            continue

        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
                and node.func.attr in LEVELS
            ):
                message = ast.literal_eval(node.args[0])
                found.add((".".join(parts), LEVELS[node.func.attr], message))

    return sorted(found)


def code_blocks():
    """Return the Python code of each page: its place, options and text"""
    pattern = re.compile(
        r"^\.\. code-block:: python\n(?P<options>(?:   :.*\n)*)"
        r"(?P<code>(?:\n|   .*\n)+)",
        re.MULTILINE,
    )
    for path in pages():
        text = path.read_text(encoding="utf-8")
        for number, block in enumerate(pattern.finditer(text), start=1):
            name = f"{path.relative_to(DOC)}:{number}"
            yield name, block["options"], dedent(block["code"])


CODE = {name: (options, code) for name, options, code in code_blocks()}
PROGRAMS = sorted(
    path
    for folder in ("tutorial", "howto")
    for path in (DOC / folder).glob("*.py")
)
RUN = [name for name, (options, _) in CODE.items() if ":class: run" in options]


def test_every_option_is_told():
    text = page("doc/reference/options.rst")
    assert our_options() == [
        "--db-ro-urls",
        "--db-wo-url",
        "--db-ro-functions",
        "--db-wo-functions",
        "--db-ro-write-guard",
        "--db-ro-consistency",
        "--db-ro-max-staleness",
        "--db-ro-wait",
        "--db-ro-check-interval",
        "--db-ro-max-lag",
        "--db-ro-max-lag-bytes",
        "--db-ro-max-backoff",
        "--db-ro-connect-timeout",
        "--db-ro-fallback",
        "--db-ro-fallback-limit",
        "--db-ro-policy",
        "--db-ro-weights",
        "--db-ro-shadow",
        "--db-ro-shadow-dir",
        "--db-ro-sticky",
    ]
    for option in our_options():
        assert re.search(rf"(?m)^\.\. option:: {option}( |$)", text)

    for variable in environment_variables():
        assert f"``{variable}``" in text


def test_every_option_of_the_command_is_told():
    parser = argparse.ArgumentParser(add_help=False)
    options.add_engines(parser)
    ours = [x for action in parser._actions for x in action.option_strings]
    text = page("doc/reference/commands.rst")
    assert ours == re.findall(r"(?m)^\.\. option:: (--[\w-]+)", text)
    for action in parser._actions:
        if action.option_strings:
            assert f"``{action.dest}``" in text


def test_every_option_of_pytest_is_told():
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    text = page("doc/reference/api.rst")
    told = re.findall(r"(?m)^\.\. option:: (--[\w-]+)", text)
    group = parser.getgroup("anyblok")
    assert [x.names()[0] for x in group.options] == told
    for name in parser._inidict:
        assert f"``{name}``\n" in text


def test_everything_for_tests_is_told():
    """What is imported late is in the reference, too"""
    assert set(testing.__all__) <= set(dir(testing))


def test_every_command_check_and_name_in_its_json_is_told():
    name = "doc/reference/commands.rst"
    states = [field.name for field in dataclasses.fields(ServerState)]
    checks = [rule.__name__ for rule in CHECKS]
    assert first_words(name) == [*options.COMMANDS, *states, *checks]
    for kind in (Finding, Explanation):
        for field in dataclasses.fields(kind):
            assert f"``{field.name}``" in page(name)


def test_readme_has_the_first_options_in_its_table():
    table = re.search(r"(?ms)^=+ +=+ +=+$.*^=+ +=+ +=+$", page("README.rst"))
    told = re.findall(r"(?m)^``(--[\w-]+)``", table[0])
    assert {"--db-ro-urls", "--db-wo-url"} < set(told)
    assert set(told) <= {"--db-url", *our_options()}


def test_every_reason_is_told_in_its_order():
    expected = [str(reason) for reason in Reason]
    assert first_words("doc/reference/reasons.rst") == expected


def test_rules_are_told_in_their_order():
    expected = [rule.__name__ for rule in RULES]
    assert first_words("doc/explanation/routing-rules.rst") == expected


def test_every_error_is_told():
    classes = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and value.__module__ == errors.__name__
    ]
    assert "MultiEnginesException" in classes
    told = re.findall(
        r"autoexception:: anyblok_multi_engines\.errors\.(\w+)",
        page("doc/reference/errors.rst"),
    )
    assert told == classes


def test_every_message_of_the_log_is_told():
    told = {
        (logger.strip("`"), level, re.match(r"``(.*?)``", message)[1])
        for logger, level, message in rows("doc/reference/logs.rst")
        if logger != "logger"
    }
    assert messages()
    assert told == set(messages())


def metrics_of_the_code():
    """Return the name, the type and the labels of each metric, as exposed"""
    for metric in (*metrics.COUNTS, *metrics.servers_metrics([])):
        (family,) = metric.collect() if hasattr(metric, "collect") else [metric]
        labels = metric._labelnames
        assert labels[0] == "database"
        end = "_total" if family.type == "counter" else ""
        yield family.name + end, family.type, ", ".join(labels[1:]) or "none"


def test_every_metric_is_told():
    told = [
        (name.strip("`"), kind, labels)
        for name, kind, labels, _ in rows("doc/reference/metrics.rst")[1:]
    ]
    assert told == list(metrics_of_the_code())


def test_every_event_is_told():
    told = [
        (name.strip("`"), re.search(r"\.(\w+)`", value)[1])
        for name, value, _ in rows("doc/reference/events.rst")[1:]
    ]
    expected = []
    for name in RegistryEvents.dispatch._event_names:
        (parameter,) = list(
            inspect.signature(vars(RegistryEvents)[name]).parameters.values()
        )[1:]
        expected.append((name, parameter.annotation))

    assert told == expected


def test_every_value_of_an_event_is_told():
    text = page("doc/reference/events.rst")
    classes = [
        name
        for name, value in vars(events).items()
        if inspect.isclass(value)
        and value.__module__ == events.__name__
        and name not in ("Listeners", "RegistryEvents")
    ]
    told = re.findall(r"autoclass:: anyblok_multi_engines\.events\.(\w+)", text)
    assert sorted(told) == sorted(classes)


@pytest.mark.parametrize("name", CODE)
def test_python_code_compiles(name):
    compile(CODE[name][1], name, "exec")


@pytest.mark.parametrize("name", RUN)
def test_python_code_runs(name):
    exec(compile(CODE[name][1], name, "exec"), {})


def test_there_is_code_that_runs():
    assert len(RUN) >= 2


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_program_compiles(path):
    compile(path.read_text(encoding="utf-8"), path.name, "exec")


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_function_of_a_program_is_shown(path):
    functions = [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    shown = "".join(page.read_text(encoding="utf-8") for page in pages())
    for name in functions:
        assert f":pyobject: {name}\n" in shown


def test_every_test_and_page_that_the_documentation_names_is_there():
    for path in (PROJECT / "README.rst", *pages()):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"``(tests/[\w/]+\.py)``", text):
            assert (ROOT / name).is_file(), (path.name, name)

        for name in re.findall(r"``(doc/[\w/.-]+)``", text):
            assert (PROJECT / name).exists(), (path.name, name)


def test_picture_of_the_architecture_has_the_names_of_the_code():
    picture = page("doc/explanation/architecture.svg")
    modules = re.findall(r'class="module"[^>]*>(\w+)<', picture)
    assert {"session", "routing", "engines", "health"} < set(modules)
    for name in modules:
        places = (ROOT / f"{name}.py", ROOT / "routing" / f"{name}.py")
        assert any(x.exists() for x in (*places, ROOT / name)), name

    source = "".join(
        path.read_text(encoding="utf-8")
        for path in ROOT.rglob("*.py")
        if "tests" not in path.parts
    )
    for name in ("Need", "Decision", "Catalogue", "Snapshot"):
        assert name in picture
        assert f"class {name}" in source


class TestDeployment:
    """The files of the page say what the options take"""

    @pytest.mark.parametrize(
        ("name", "user", "places"),
        [
            ("compose", True, ["primary", "replica1", "replica2"]),
            ("cloudnativepg", True, ["shop-rw", "shop-ro"]),
            ("patroni", False, ["shop", "shop-replicas"]),
        ],
    )
    def test_environment_names_the_servers(self, options, name, user, places):
        yaml = pytest.importorskip("yaml")
        text = page(f"doc/howto/{name}.yaml")
        variables = dict(self.variables(list(yaml.safe_load_all(text))))
        assert variables.pop("ANYBLOK_DATABASE_NAME") == "shop"
        options(
            db_wo_url=variables.pop("ANYBLOK_DATABASE_URL_WO"),
            db_ro_urls=variables.pop("ANYBLOK_DATABASE_URL_RO"),
        )
        assert [x.url.host for x in config.topology().servers] == places
        both = {"ANYBLOK_DATABASE_USER", "ANYBLOK_DATABASE_PASSWORD"}
        assert set(variables) == (both if user else set())

    @classmethod
    def variables(cls, value):
        """Give the names and values of AnyBlok's environment variables"""
        if isinstance(value, dict):
            if str(value.get("name", "")).startswith("ANYBLOK_"):
                yield value["name"], value.get("value")

            for key, inner in value.items():
                if str(key).startswith("ANYBLOK_"):
                    yield key, inner
                else:
                    yield from cls.variables(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from cls.variables(inner)

    def test_variables_are_those_of_the_reference(self):
        known = page("doc/reference/options.rst")
        for path in (DOC / "howto").glob("*.yaml"):
            for name in re.findall(r"ANYBLOK_\w+", path.read_text()):
                assert f"``{name}``" in known


class TestCapacity:
    """The formulas and the numbers of the page"""

    @pytest.fixture
    def capacity(self):
        return runpy.run_path(str(DOC / "howto" / "capacity.py"))

    def test_connections(self, capacity):
        assert capacity["OWN"] == OWN_CONNECTIONS
        kept, most = capacity["connections"](16)
        text = page("doc/howto/capacity.rst")
        assert f"that is {kept} kept and {most} at most" in text

    def test_load(self, capacity):
        load = capacity["load"]
        for replicas in (2, 20):
            primary, _ = load(0.9, 0.1, replicas, served=0.5)
            assert primary == pytest.approx(0.55)

        assert load(0.9, 0.1, 2, served=1.0) == pytest.approx((0.1, 0.55))

    def test_shares(self, capacity):
        assert capacity["shares"]([3, 1]) == [0.75, 0.25]


def test_units_of_work_on_one_replica_are_as_many_as_in_the_code():
    word = {4: "four", 8: "eight", 16: "sixteen"}[UNITS_ON_ONE]
    for name, said in (
        ("doc/explanation/balancing.rst", f"server for {word} units of work"),
        ("doc/explanation/consistency.rst", f"for {word} units of work"),
        ("doc/tutorial/index.rst", f"stays on one for {word} of them"),
    ):
        assert said in " ".join(page(name).split()), name


def test_measurements_that_are_quoted_are_those_of_their_pages():
    quoting = page("doc/explanation/per-statement-routing.rst")
    chaos = page("doc/explanation/chaos.rst")
    for number in ("18,078", "2,021", "57", "536", "1,820", "3,982"):
        assert re.search(rf"\b{number}\b", chaos)
        assert re.search(rf"\b{number}\b", quoting)

    soak = re.findall(
        r"\* - ``(?:session|strong|registry)``\n     - ([\d,]+)\n",
        page("doc/explanation/checker.rst"),
    )
    total = sum(int(x.replace(",", "")) for x in soak)
    assert f"{total:,} units of work" in quoting


def test_cost_of_the_shadow_mode_is_what_was_published():
    rows = json.loads(page("doc/explanation/performance.json"))["rows"]
    found = [
        f"{1e6 * sample['median']:.0f} us"
        for row in rows
        if row["key"].startswith("shadow-")
        for sample in row["samples"]
    ]
    quoted = re.findall(r"\d+ us\b", page("doc/howto/try-it-out.rst"))
    assert len(found) == 6
    assert quoted == found


class TestReadme:
    """It is the first page of the project, and PyPI's"""

    def test_is_short(self):
        lines = page("README.rst").splitlines()
        assert len(lines) <= 110
        assert max(map(len, lines)) <= 80

    @pytest.mark.parametrize("name", ["README.rst", "CHANGES.rst"])
    def test_has_nothing_of_sphinx(self, name):
        """PyPI refuses what docutils alone doesn't know"""
        text = page(name)
        assert not re.search(r":[a-z:]+:`", text)
        assert not re.search(r"(?m)^\s*\.\. [\w-]+::", text)

    def test_each_cell_about_an_alternative_has_its_source(self):
        text = page("README.rst")
        table = text[text.index("\ncase  ") : text.rindex("\n=====")]
        found = re.findall(r"(?m)^(\S.*)\n((?:  .*\n)*)", table)
        columns = (29, 43, 56, 69, None)
        rows = [
            [
                " ".join(x[start:end] for x in (first, *rest.splitlines()))
                for start, end in pairwise(columns)
            ]
            for first, rest in found
            if "=" not in first and not first.startswith("case")
        ]
        assert len(rows) >= 5
        for row in rows:
            for cell in row:
                assert re.search(r"\[\d\]_", cell), row

        used = set(re.findall(r"\[(\d)\]_", text))
        assert used == set(re.findall(r"(?m)^\.\. \[(\d)\] ", text))

    def test_names_the_two_commands(self):
        makefile = page("Makefile")
        for command in ("demo", "test"):
            assert f"``make {command}``" in page("README.rst")
            assert f"\n{command}:" in makefile


def test_words_are_primary_and_replica():
    """The others stay only where a name of 1.1.0 has them"""
    for path in (PROJECT / "README.rst", PROJECT / "CHANGES.rst", *pages()):
        text = path.read_text(encoding="utf-8").lower()
        assert not re.search(r"\b(masters?|slaves?)\b", text), path
