# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Other processes of an application, each with a registry of its own."""

import ctypes
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from typing import Any

from anyblok import load_init_function_from_entry_points
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import Registry, RegistryManager

# Nothing of the process that runs the tests is in them, as in production.
SPAWN = multiprocessing.get_context("spawn")


def stand_still(seconds: float) -> None:
    """Let no thread of this process run

    As code in C does that keeps the interpreter's lock.
    """
    ctypes.PyDLL(None).usleep(round(seconds * 1_000_000))


@contextmanager
def process(
    work: Callable[[Connection, Any, Any], None],
    options: dict[str, Any],
    plan: Any = None,
) -> Iterator[Connection]:
    """Run a function in another process; give the pipe to it

    The end of the block closes the pipe, which is for the function to see,
    and waits for the end of the process.

    :param work: of a module; it gets its end of the pipe, a registry and the
        plan
    :param options: AnyBlok's, with ``db_name``
    :param plan: what the function shall do
    """
    ours, theirs = SPAWN.Pipe()
    child = SPAWN.Process(
        target=_run, args=(theirs, work, options, plan), daemon=True
    )
    child.start()
    theirs.close()
    try:
        with ours:
            yield ours
    finally:
        child.join(30.0)
        child.kill()
        child.join()
        child.close()


def _run(
    pipe: Connection,
    work: Callable[[Connection, Any, Any], None],
    options: dict[str, Any],
    plan: Any,
) -> None:
    registry = registry_of(options)
    with pipe:
        work(pipe, registry, plan)

    registry.close()


def registry_of(options: dict[str, Any]) -> Registry:
    """Return the registry of a process that has loaded nothing yet

    :param options: AnyBlok's, with ``db_name``
    """
    # The arguments aren't AnyBlok's, and nobody asks which files it reads.
    del sys.argv[1:]
    with redirect_stdout(StringIO()):
        load_init_function_from_entry_points(unittest=True)
        Configuration.load_config_for_test()

    BlokManager.load(entry_points=("bloks", "test_bloks"))
    Configuration.update(**options)
    registry = RegistryManager.get(options["db_name"])
    registry.commit()
    return registry
