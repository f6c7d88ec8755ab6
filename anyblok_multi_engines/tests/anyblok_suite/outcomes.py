# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a run of the suite gave, and how two runs differ: values only."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

GOOD = frozenset({"passed", "skipped", "xfailed"})
"""Outcomes in which nothing is wrong with the test."""

MATTERS = (
    "python",
    "postgresql",
    "anyblok",
    "sqlalchemy",
    "sqlalchemy-utils",
    "sqlalchemy-views",
    "alembic",
    "psycopg2-binary",
    "pytest",
    "testfixtures",
)
"""A baseline holds for these versions alone: each of them decides outcomes.

The Python and PostgreSQL versions are without their patch level. The other
packages are pinned by the constraints and recorded, but not compared.
"""


@dataclass(frozen=True)
class Result:
    """What became of one test, or of one step that is not a test.

    :param outcome: ``passed``, ``failed``, ``skipped``, ``xfailed``,
        ``xpassed``, ``error in setup``, ``... teardown``, ``... collection``
    :param error: the exception's class, when it did not pass
    :param tail: the last lines of the failure
    """

    outcome: str
    error: str = ""
    tail: str = field(default="", compare=False)

    @property
    def good(self) -> bool:
        return self.outcome in GOOD

    def __str__(self) -> str:
        return f"{self.outcome}: {self.error}" if self.error else self.outcome

    @classmethod
    def parse(cls, text: str) -> "Result":
        """The result that :meth:`__str__` wrote, without its tail.

        :rtype: Result
        """
        outcome, _, error = text.partition(": ")
        return cls(outcome, error)


Results = Mapping[str, Result]


class Kind(StrEnum):
    """How a test differs between the two runs."""

    WORSE = "worse"
    """Was good without the plugin and is not the same with it."""
    MISSING = "missing"
    """Was run without the plugin and not with it."""
    NEW_BAD = "new, bad"
    """Only in the run with the plugin, and not good there."""
    FAILS_OTHERWISE = "fails otherwise"
    """Good in neither run, but not for the same reason."""
    UNSTABLE = "unstable"
    """Differs, and is known to differ between two runs without it."""
    BETTER = "better"
    """Is good only with the plugin."""
    NEW = "new"
    """Only in the run with the plugin, and good there."""


FAILURES = frozenset({Kind.WORSE, Kind.MISSING, Kind.NEW_BAD})


@dataclass(frozen=True)
class Difference:
    """One test whose result is not the same in the two runs."""

    test: str
    kind: Kind
    without: Result | None
    with_plugin: Result | None

    @property
    def is_failure(self) -> bool:
        return self.kind in FAILURES


@dataclass(frozen=True)
class Baseline:
    """The run without the plugin.

    :param versions: of what made it, by name
    :param results: by test id
    :param unstable: the reason, by the id of a test whose outcome differs
        between two runs without the plugin
    """

    versions: Mapping[str, str]
    results: Results
    unstable: Mapping[str, str] = field(default_factory=dict)

    def mismatches(self, versions: Mapping[str, str]) -> list[str]:
        """Why this baseline says nothing about these versions.

        :param versions: those of the environment under test
        :rtype: list of sentences, empty when the baseline holds
        """
        return [
            f"{name} is {versions.get(name)}, the baseline's is"
            f" {self.versions.get(name)}"
            for name in MATTERS
            if versions.get(name) != self.versions.get(name)
        ]


def differences(
    baseline: Baseline, with_plugin: Results
) -> tuple[Difference, ...]:
    """Every test whose result differs, the failures first.

    :param baseline: the run without the plugin
    :param with_plugin: the results of the run with it
    :rtype: tuple of Difference
    """
    found = []
    for test in {**baseline.results, **with_plugin}:
        before, after = baseline.results.get(test), with_plugin.get(test)
        kind = kind_of(before, after, test in baseline.unstable)
        if kind is not None:
            found.append(Difference(test, kind, before, after))
    found.sort(key=lambda d: (list(Kind).index(d.kind), d.test))
    return tuple(found)


def kind_of(
    without: Result | None, with_plugin: Result | None, unstable: bool
) -> Kind | None:
    """How a result differs, None when it does not.

    :param unstable: the test differs without the plugin as well. This
        excuses another outcome, never a test that was not run.
    :rtype: Kind or None
    """
    if with_plugin is None:
        return Kind.MISSING
    if without is None:
        return Kind.NEW if with_plugin.good else Kind.NEW_BAD
    if without == with_plugin:
        return None
    if unstable:
        return Kind.UNSTABLE
    return changed_kind(without, with_plugin)


def changed_kind(without: Result, with_plugin: Result) -> Kind:
    """How two results that are not equal differ.

    A test that passed and is skipped with the plugin is worse: nobody knows
    any more whether it passes.

    :rtype: Kind
    """
    if with_plugin.outcome == "passed":
        return Kind.BETTER
    if without.good:
        return Kind.WORSE
    return Kind.BETTER if with_plugin.good else Kind.FAILS_OTHERWISE


def unstable_tests(runs: Iterable[Results]) -> dict[str, str]:
    """The tests whose results differ between runs that should be equal.

    :param runs: the results of runs without the plugin
    :rtype: dict of reason by test id
    """
    runs = list(runs)
    seen = {
        test: [str(run.get(test, "not run")) for run in runs]
        for test in {test for run in runs for test in run}
    }
    return {
        test: "differs between runs without the plugin: " + "; ".join(results)
        for test, results in sorted(seen.items())
        if len(set(results)) > 1
    }


def merged(first: Results, *others: Results) -> dict[str, Result]:
    """The results to keep of several runs without the plugin.

    :rtype: dict of Result by test id, those of the first run that has it
    """
    results = dict(first)
    for run in others:
        for test, result in run.items():
            results.setdefault(test, result)
    return results


def counts(results: Results) -> dict[str, int]:
    """How many tests have each outcome, the three errors together.

    :rtype: dict of number by word
    """
    numbers: dict[str, int] = {}
    for result in results.values():
        word = "error" if "error" in result.outcome else result.outcome
        numbers[word] = numbers.get(word, 0) + 1
    return numbers


def read_baseline(path: Path) -> Baseline | None:
    """The baseline kept in a file.

    :param path: of the JSON file
    :rtype: Baseline, None when there is no file
    """
    if not path.exists():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Baseline(
        versions=data["versions"],
        results={
            test: Result.parse(text) for test, text in data["results"].items()
        },
        unstable=data["unstable"],
    )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Keep a baseline, one test a line, so that a diff shows what changed.

    :param path: of the JSON file
    """
    data = {
        "versions": dict(sorted(baseline.versions.items())),
        "unstable": dict(sorted(baseline.unstable.items())),
        "results": {
            test: str(result)
            for test, result in sorted(baseline.results.items())
        },
    }
    text = json.dumps(data, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
