# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Who has sent a statement: the application, its tests, or neither."""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import PurePath
from types import FrameType

from .findings import Line

# What stands between the application's line and its statement.
MACHINERY = sys.stdlib_module_names | {
    "_pytest",
    "anyblok",
    "anyblok_multi_engines",
    "greenlet",
    "pluggy",
    "psycopg",
    "psycopg2",
    "pytest",
    "sqlalchemy",
    "sqlalchemy_utils",
    "zope",
}

# The files of a test suite beside the patterns of pytest's own option.
TEST_FILES = ("conftest.py", "testcase.py", "testing.py")
TEST_FOLDERS = frozenset(["test", "tests"])


@dataclass(frozen=True)
class Caller:
    """Who has sent a statement

    :param line: the innermost line that isn't SQLAlchemy's or AnyBlok's
    :param call: stands for the call of a test into the application, as long
        as it runs; None: the test itself has sent the statement
    """

    line: Line
    call: Hashable = None


class Callers:
    """Finds callers on the stack

    :param root: pytest's own
    :param patterns: of the names of test files
    """

    def __init__(self, root: str, patterns: Collection[str]) -> None:
        self._root = PurePath(root)
        self._patterns = (*patterns, *TEST_FILES)
        self._is_test = lru_cache(maxsize=None)(self.is_test_file)

    def caller(self) -> Caller | None:
        """Return who has sent the statement; None: no code of its project"""
        frame: FrameType | None = sys._getframe(1)
        line = None
        while frame is not None:
            if not is_machinery(frame):
                if self._is_test(frame.f_code.co_filename):
                    call = None if line is None else (id(frame), frame.f_lasti)
                    return Caller(line or _line_of(frame), call)

                line = line or _line_of(frame)

            frame = frame.f_back

        # In a thread of the application's own.
        return None if line is None else Caller(line, line.path)

    def is_harness(self) -> bool:
        """Return True where a test suite opens a savepoint for itself"""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = frame.f_globals.get("__name__", "")
            if name.startswith(("anyblok.conftest", "anyblok.test")):
                return True

            if not is_machinery(frame):
                return self._is_test(frame.f_code.co_filename)

            frame = frame.f_back

        return False

    def is_test_file(self, path: str) -> bool:
        """Return True where a file belongs to the tests

        :param path: of the file
        """
        found = PurePath(path)
        if any(fnmatch(found.name, x) for x in self._patterns):
            return True

        if found.is_relative_to(self._root):
            found = found.relative_to(self._root)
        elif "site-packages" in found.parts:
            start = found.parts.index("site-packages")
            found = PurePath(*found.parts[start:])
        else:
            found = PurePath(found.parent.name, found.name)

        return not TEST_FOLDERS.isdisjoint(found.parts[:-1])


def is_machinery(frame: FrameType) -> bool:
    """Return True where a frame is neither the application's nor its tests'"""
    name = frame.f_globals.get("__name__", "")
    return name.partition(".")[0] in MACHINERY or frame.f_code.co_filename[
        :1
    ] in ("<", "")


def _line_of(frame: FrameType) -> Line:
    code = frame.f_code
    return Line(code.co_filename, frame.f_lineno, code.co_qualname)
