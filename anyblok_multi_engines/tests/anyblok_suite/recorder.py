# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""pytest plugin: writes the outcome of every test, one JSON line each.

It also makes Python look for garbage less often, see ``GARBAGE``.

This file is copied beside a run and loaded with ``-p recorder``, so it needs
nothing but pytest and the standard library: the run without the plugin has
no ``anyblok_multi_engines`` to import.

The environment variable ``SUITE_OUTCOMES`` names the file to write. Its
lines, in order: ``{"collected": number}``, one ``{"id", "outcome", "error",
"tail"}`` per test as it ends, and ``{"exit": status, "mixins": [names],
"plugged": number}``. A file without its last line is a run that died.
"""

import gc
import json
import os
import sys
from functools import partial
from typing import Any, TextIO

import pytest

TAIL_LINES = 15

GARBAGE = (20_000, 20, 100)
"""For ``gc.set_threshold``; Python's own are 700, 10, 10.

AnyBlok makes a whole registry per test: with Python's numbers more than a
third of the suite's time was the search for garbage among its models.
"""


class Recorder:
    """Writes what pytest reports.

    Owner: the pytest session. Lifetime: the same. One thread.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.reports: list[pytest.TestReport] = []
        self.error = ""
        self.plugged = 0

    def write(self, **values: Any) -> None:
        """Write one line, and let a reader see it at once."""
        self.stream.write(json.dumps(values) + "\n")
        self.stream.flush()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported has no tests to be missing."""
        if report.failed:
            self.write(
                id=report.nodeid,
                outcome="error in collection",
                error="",
                tail=last_lines(report.longreprtext),
            )

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.write(collected=len(session.items))

    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> None:
        """The first exception of a test's phases names its error."""
        if call.excinfo is not None and not self.error:
            self.error = call.excinfo.typename

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The teardown is over: the three phases make one outcome."""
        reports, self.reports = self.reports, []
        error, self.error = self.error, ""
        outcome = outcome_of(reports)
        self.plugged += registry_is_plugged()
        self.write(
            id=nodeid,
            outcome=outcome,
            error=error if outcome.startswith(("failed", "error")) else "",
            tail=last_lines(
                "\n".join(r.longreprtext for r in reports if r.failed)
            ),
        )

    def pytest_sessionfinish(
        self, session: pytest.Session, exitstatus: int
    ) -> None:
        self.write(
            exit=int(exitstatus),
            mixins=registry_mixins(),
            plugged=self.plugged,
        )
        # The last that is added is the first that runs: pytest's own looks
        # for garbage five times.
        session.config.add_cleanup(partial(end_at_once, int(exitstatus)))


def outcome_of(reports: list[pytest.TestReport]) -> str:
    """The one word for a test's setup, call and teardown.

    pytest counts a test that passes and then fails in its teardown twice,
    as passed and as error. Here it is an error.

    :rtype: str
    """
    by_phase = {report.when: report for report in reports}
    for phase in ("setup", "call", "teardown"):
        report = by_phase.get(phase)
        if report is None or report.passed:
            continue
        if report.skipped:
            return "xfailed" if hasattr(report, "wasxfail") else "skipped"
        return "failed" if phase == "call" else f"error in {phase}"
    call = by_phase.get("call")
    if call is None:
        return "error in setup"
    return "xpassed" if hasattr(call, "wasxfail") else "passed"


def last_lines(text: str) -> str:
    """The end of a traceback, where its essence is.

    :rtype: str
    """
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


def registry_mixins() -> list[str]:
    """What AnyBlok really loaded by ``anyblok.registry.mixin``.

    :rtype: list of "module:class"
    """
    module = sys.modules.get("anyblok.registry")
    if module is None:
        return []
    mixins = module.RegistryManager.mixins.values()
    return [f"{mixin.__module__}:{mixin.__qualname__}" for mixin in mixins]


def registry_is_plugged() -> bool:
    """Whether a registry made now has a mixin that is not AnyBlok's.

    :rtype: bool
    """
    module = sys.modules.get("anyblok.registry")
    klass = getattr(module, "RegistryManager", None)
    registry_class = getattr(klass, "RegistryClass", None)
    return registry_class is not None and any(
        not base.__module__.startswith(("anyblok.", "builtins"))
        for base in registry_class.__mro__
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.set_threshold(*GARBAGE)
    path = os.environ["SUITE_OUTCOMES"]
    stream = open(path, "w", encoding="utf-8")  # noqa: SIM115
    recorder = Recorder(stream)
    config.add_cleanup(stream.close)
    config.pluginmanager.register(recorder, "suite-recorder")


def end_at_once(status: int) -> None:
    """End the process, when all has been written.

    pytest and Python would first look for garbage in two gigabytes of models
    and free them one by one, which took half a minute and more. AnyBlok's
    commands, which the suite runs as well, show that a process with the
    plugin ends by itself.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
