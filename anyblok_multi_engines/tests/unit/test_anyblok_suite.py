# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The comparison of two runs of AnyBlok's suite can fail, and says why."""

import os
import subprocess
import sys
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from rich.console import Console

from anyblok_multi_engines.tests.anyblok_suite import __main__ as program
from anyblok_multi_engines.tests.anyblok_suite import recorder
from anyblok_multi_engines.tests.anyblok_suite.environments import Environment
from anyblok_multi_engines.tests.anyblok_suite.outcomes import (
    FAILURES,
    MATTERS,
    Baseline,
    Kind,
    Result,
    counts,
    differences,
    kind_of,
    merged,
    read_baseline,
    unstable_tests,
    write_baseline,
)
from anyblok_multi_engines.tests.anyblok_suite.report import Verdict, show
from anyblok_multi_engines.tests.anyblok_suite.suite import (
    Address,
    Run,
    Suite,
    progress,
    records,
)

KEPT = Path(recorder.__file__).parent / "baseline"
PASSED = Result("passed")
SKIPPED = Result("skipped")
FAILED = Result("failed", "AssertionError", "assert 1 == 2")
BROKEN = Result("error in setup", "AttributeError", "no attribute 'x'")


def baseline(unstable=None, **results):
    return Baseline({}, results, unstable or {})


def verdict(before, after, **values):
    return Verdict(
        "SQLAlchemy 2.0",
        source="kept",
        baseline=before,
        run=Run(results=after),
        differences=differences(before, after),
        **values,
    )


def shown(*verdicts):
    stream = StringIO()
    show(Console(width=200, file=stream), verdicts)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("without", "with_plugin", "kind"),
    [
        (PASSED, PASSED, None),
        (FAILED, FAILED, None),
        (SKIPPED, SKIPPED, None),
        (PASSED, FAILED, Kind.WORSE),
        (PASSED, BROKEN, Kind.WORSE),
        (PASSED, SKIPPED, Kind.WORSE),
        (PASSED, Result("error in teardown", "KeyError"), Kind.WORSE),
        (SKIPPED, FAILED, Kind.WORSE),
        (Result("xfailed"), FAILED, Kind.WORSE),
        (Result("xfailed"), Result("xpassed"), Kind.WORSE),
        (PASSED, None, Kind.MISSING),
        (FAILED, None, Kind.MISSING),
        (None, FAILED, Kind.NEW_BAD),
        (None, PASSED, Kind.NEW),
        (FAILED, BROKEN, Kind.FAILS_OTHERWISE),
        (FAILED, Result("failed", "KeyError"), Kind.FAILS_OTHERWISE),
        (FAILED, PASSED, Kind.BETTER),
        (SKIPPED, PASSED, Kind.BETTER),
        (FAILED, SKIPPED, Kind.BETTER),
    ],
)
def test_kind_of_a_difference(without, with_plugin, kind):
    assert kind_of(without, with_plugin, unstable=False) is kind


def test_worse_missing_and_new_bad_are_failures():
    assert {Kind.WORSE, Kind.MISSING, Kind.NEW_BAD} == FAILURES


def test_tail_of_a_failure_is_not_compared():
    other = Result(FAILED.outcome, FAILED.error, "assert 3 == 4")

    assert kind_of(FAILED, other, unstable=False) is None


def test_unstable_excuses_an_outcome():
    assert kind_of(PASSED, FAILED, unstable=True) is Kind.UNSTABLE
    assert Kind.UNSTABLE not in FAILURES


def test_unstable_does_not_excuse_a_missing_test():
    assert kind_of(PASSED, None, unstable=True) is Kind.MISSING


def test_failures_are_listed_first():
    before = baseline(a=FAILED, b=PASSED, c=PASSED)

    found = differences(before, {"a": PASSED, "b": FAILED})

    assert [(d.test, d.kind) for d in found] == [
        ("b", Kind.WORSE),
        ("c", Kind.MISSING),
        ("a", Kind.BETTER),
    ]


def test_equal_runs_are_good():
    same = {"a": PASSED, "b": FAILED}

    assert verdict(baseline(**same), same).is_good


@pytest.mark.parametrize("after", [FAILED, BROKEN, SKIPPED])
def test_one_worse_test_is_not_good(after):
    before = baseline(a=PASSED, b=PASSED)

    assert not verdict(before, {"a": PASSED, "b": after}).is_good


def test_one_missing_test_is_not_good():
    assert not verdict(baseline(a=PASSED, b=FAILED), {"a": PASSED}).is_good


def test_trouble_is_not_good():
    same = {"a": PASSED}

    assert not verdict(baseline(**same), same, troubles=("died",)).is_good


@pytest.mark.parametrize(
    "nothing",
    [
        Verdict("none"),
        Verdict("no run", baseline=baseline(a=PASSED)),
        Verdict("no baseline", run=Run(results={"a": PASSED})),
        verdict(baseline(), {}),
    ],
    ids=lambda verdict: verdict.name,
)
def test_nothing_compared_is_not_good(nothing):
    assert not nothing.is_good


def test_report_names_test_outcomes_and_failure():
    text = shown(verdict(baseline(a=PASSED), {"a": FAILED}))

    assert "WORSE SQLAlchemy 2.0 a\n" in text
    assert "without: passed    with: failed: AssertionError" in text
    assert "| assert 1 == 2" in text
    assert "SQLAlchemy 2.0: FAILED, 1 worse" in text


def test_report_names_missing_test():
    text = shown(verdict(baseline(a=PASSED, b=PASSED), {"a": PASSED}))

    assert "MISSING SQLAlchemy 2.0 b\n" in text
    assert "without: passed    with: not run" in text


def test_report_gives_the_reason_of_an_unstable_test():
    before = baseline({"a": "differs: passed; failed"}, a=PASSED)
    compared = verdict(before, {"a": FAILED})

    assert "differs: passed; failed" in shown(compared)
    assert compared.is_good


def test_report_of_equal_runs_has_only_the_table():
    text = shown(verdict(baseline(a=PASSED), {"a": PASSED}))

    assert "SQLAlchemy 2.0: every good test is the same" in text
    assert "WORSE" not in text


def test_table_has_the_numbers_of_both_runs():
    before = baseline(a=PASSED, b=PASSED, c=BROKEN)
    text = shown(verdict(before, {"a": PASSED, "b": FAILED, "c": BROKEN}))

    table = [line.split() for line in text.splitlines()]
    assert ["SQLAlchemy", "passed", "failed", "error", "seconds"] in table
    assert ["2.0", "without,", "kept", "2", "0", "1"] in table
    assert ["2.0", "with", "1", "1", "1", "0"] in table


def test_report_shows_trouble():
    text = shown(verdict(baseline(a=PASSED), {}, troubles=("[1] died",)))

    assert "SQLAlchemy 2.0: [1] died" in text


def test_unstable_tests_differ_between_runs():
    runs = [
        {"a": PASSED, "b": PASSED, "c": FAILED},
        {"a": PASSED, "b": FAILED},
    ]

    found = unstable_tests(runs)

    assert set(found) == {"b", "c"}
    assert found["b"].endswith(": passed; failed: AssertionError")
    assert found["c"].endswith(": failed: AssertionError; not run")
    assert set(merged(*runs)) == {"a", "b", "c"}


def test_counts_take_the_errors_together():
    results = {"a": PASSED, "b": BROKEN, "c": Result("error in teardown")}

    assert counts(results) == {"passed": 1, "error": 2}


def test_baseline_is_read_as_written(tmp_path):
    path = tmp_path / "baseline.json"
    before = Baseline(
        {"python": "3.11"}, {"a": PASSED, "b": BROKEN}, {"a": "why"}
    )

    write_baseline(path, before)

    assert read_baseline(path) == before


def test_no_file_is_no_baseline(tmp_path):
    assert read_baseline(tmp_path / "none.json") is None


def test_baseline_holds_for_its_own_versions():
    versions = dict.fromkeys(MATTERS, "1")

    assert Baseline(versions, {}).mismatches({**versions, "mako": "2"}) == []


@pytest.mark.parametrize("name", MATTERS)
def test_baseline_does_not_hold_for_another_version(name):
    versions = dict.fromkeys(MATTERS, "1")

    [sentence] = Baseline(versions, {}).mismatches({**versions, name: "2"})

    assert sentence == f"{name} is 2, the baseline's is 1"


@pytest.mark.parametrize("version", ["20", "21"])
def test_kept_baseline_has_the_pinned_versions(version):
    kept = read_baseline(KEPT / f"sqlalchemy{version}.json")
    pins = dict(
        line.lower().replace("_", "-").split("==")
        for line in (KEPT / f"constraints-sqlalchemy{version}.txt")
        .read_text()
        .splitlines()
        if not line.startswith("#")
    )

    assert kept is not None
    for name in set(MATTERS) - {"python", "postgresql"}:
        assert kept.versions[name] == pins[name]


@pytest.mark.parametrize("version", ["20", "21"])
def test_kept_baseline_has_all_steps(version):
    kept = read_baseline(KEPT / f"sqlalchemy{version}.json")

    assert kept is not None
    steps = {test.partition("/test")[0] for test in kept.results}
    assert steps >= {
        "anyblok",
        "anyblok/bloks/anyblok_core",
        "anyblok_createdb --install-all-bloks --with-demo",
        "anyblok_updatedb --update-all-bloks",
    }
    assert counts(kept.results)["passed"] > 1000


SAMPLE = """
import pytest

@pytest.fixture
def bad_setup():
    raise KeyError("setup")

@pytest.fixture
def bad_teardown():
    yield
    raise KeyError("teardown")

def test_pass(): pass
def test_fail(): assert 1 == 2
def test_skip(): pytest.skip("why")
def test_setup(bad_setup): pass
def test_teardown(bad_teardown): pass
def test_both(bad_teardown): raise ValueError("call")
@pytest.mark.xfail
def test_xfail(): raise ValueError
@pytest.mark.xfail
def test_xpass(): pass
"""


@pytest.fixture
def record(tmp_path):
    """Run pytest with the recorder in a process of its own."""

    def run(source):
        (tmp_path / "test_sample.py").write_text(source)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        outcomes = tmp_path / "outcomes.jsonl"
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini"),
                *("-p", "recorder", "-p", "no:cacheprovider"),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(recorder.__file__).parent),
                "SUITE_OUTCOMES": str(outcomes),
            },
            stdout=subprocess.DEVNULL,
        )
        return outcomes

    return run


@pytest.fixture
def suite(tmp_path):
    def make(expects_plugin=False):
        return Suite(
            environment=Environment(tmp_path),
            directory=tmp_path,
            primary=Address("127.0.0.1", 1),
            replica=Address("127.0.0.1", 2),
            expects_plugin=expects_plugin,
            say=print,
            stop=Event(),
            limit=1.0,
        )

    return make


def test_recorder_writes_one_outcome_per_test(record, suite):
    outcomes = record(SAMPLE)
    run = Run()
    suite().read(run, "sample", outcomes)

    assert run.troubles == []
    assert {
        test.partition("::")[2]: str(result)
        for test, result in run.results.items()
    } == {
        "test_pass": "passed",
        "test_fail": "failed: AssertionError",
        "test_skip": "skipped",
        "test_setup": "error in setup: KeyError",
        "test_teardown": "error in teardown: KeyError",
        "test_both": "failed: ValueError",
        "test_xfail": "xfailed",
        "test_xpass": "xpassed",
    }
    failed = run.results["test_sample.py::test_fail"]
    assert "assert 1 == 2" in failed.tail
    assert progress(outcomes) == "8/8, 5 not good"


def test_recorder_reports_a_module_that_cannot_be_imported(record, suite):
    run = Run()
    suite().read(run, "sample", record("import does_not_exist"))

    [(test, result)] = run.results.items()
    assert (test, result.outcome) == ("test_sample.py", "error in collection")
    assert "does_not_exist" in result.tail
    assert not verdict(baseline(other=PASSED), run.results).is_good


def test_run_that_dies_is_in_trouble(record, suite):
    run = Run()
    suite().read(run, "sample", record("def test(): import os; os._exit(3)"))

    assert run.troubles == ["pytest sample died before its end"]


def test_half_a_line_is_not_read(tmp_path):
    path = tmp_path / "outcomes.jsonl"
    path.write_text('{"collected": 2}\n{"id": "a", "outc')

    assert list(records(path)) == [{"collected": 2}]


def test_run_without_the_plugin_that_it_expects_is_in_trouble(record, suite):
    run = Run()
    suite(expects_plugin=True).read(run, "sample", record(SAMPLE))

    assert run.troubles == [
        "pytest sample ended with the registry mixins [] in AnyBlok"
    ]


def test_step_sees_the_replica_only_with_the_plugin(suite, monkeypatch):
    monkeypatch.setenv("ANYBLOK_DATABASE_URL", "not ours")

    without = suite().environ("db")
    with_plugin = suite(expects_plugin=True).environ("db")

    assert "ANYBLOK_DATABASE_URL" not in without
    assert "ANYBLOK_DATABASE_URL_RO" not in without
    assert with_plugin["ANYBLOK_DATABASE_URL_RO"].endswith("127.0.0.1:2/db")


def test_step_that_takes_too_long_is_ended(suite, tmp_path):
    code = "import time; time.sleep(60)"

    status = suite().wait(
        [sys.executable, "-c", code],
        tmp_path / "log",
        dict(os.environ),
        lambda: "sleeps",
    )

    assert status < 0


VERSIONS = dict.fromkeys(MATTERS, "1")


@pytest.fixture
def status(monkeypatch, tmp_path):
    """The program's exit status for given runs, which take no server.

    The sides that were run are added to ``status.sides``.
    """

    def exit_status(after, *options, without=None, troubles=()):
        def run(track, side, environment):
            exit_status.sides.append(side)
            if side == "without":
                return Run(results=without)
            return Run(results=after, troubles=list(troubles))

        monkeypatch.setattr(program.Track, "run", run)
        return program.main(
            [f"--baseline={tmp_path}", f"--directory={tmp_path}", *options]
        )

    server = SimpleNamespace(host="127.0.0.1", port=1)
    cluster = SimpleNamespace(primary=server)
    monkeypatch.setattr(program, "Cluster", lambda **_: nullcontext(cluster))
    monkeypatch.setattr(program, "postgresql", lambda url: "1")
    monkeypatch.setattr(program.Track, "environment", lambda self, side: side)
    monkeypatch.setattr(program.Track, "versions", lambda self, env: VERSIONS)
    kept = {"a": PASSED, "b": PASSED}
    for version in ("20", "21"):
        path = tmp_path / f"sqlalchemy{version}.json"
        write_baseline(path, Baseline(VERSIONS, kept))
    exit_status.sides = []
    return exit_status


def test_program_ends_with_0_when_nothing_is_worse(status):
    assert status({"a": PASSED, "b": PASSED}) == 0
    assert status.sides == ["with", "with"]


@pytest.mark.parametrize(
    "after", [{"a": PASSED, "b": FAILED}, {"a": PASSED}, {}]
)
def test_program_ends_with_1_when_a_test_is_worse_or_missing(status, after):
    assert status(after) == 1


def test_program_ends_with_1_when_a_run_is_in_trouble(status):
    same = {"a": PASSED, "b": PASSED}

    assert status(same, troubles=["died"]) == 1


def test_program_ends_with_1_when_one_sqlalchemy_is_worse(status, tmp_path):
    path = tmp_path / "sqlalchemy21.json"
    write_baseline(path, Baseline(VERSIONS, {"a": PASSED, "c": PASSED}))
    after = {"a": PASSED, "b": PASSED}

    assert status(after) == 1
    assert status(after, "--sqlalchemy=2.0") == 0


def test_program_runs_without_the_plugin_when_asked(status):
    after = {"a": PASSED, "b": FAILED}

    assert status(after, "--fresh", "--sqlalchemy=2.0", without=after) == 0
    assert status.sides == ["without", "with"]


def test_program_does_not_use_a_baseline_of_other_versions(status, tmp_path):
    other = Baseline({**VERSIONS, "anyblok": "2"}, {"a": PASSED})
    write_baseline(tmp_path / "sqlalchemy20.json", other)
    after = {"a": FAILED}

    assert status(after, "--sqlalchemy=2.0", without={"a": PASSED}) == 1
    assert status(after, "--sqlalchemy=2.0", without=after) == 0
    assert status.sides == ["without", "with"] * 2
