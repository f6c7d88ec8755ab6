# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The application ``anyblok_engines``: from the command line to a command."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from configparser import Error as ConfigParserError
from configparser import InterpolationError
from contextlib import redirect_stdout
from io import StringIO, TextIOWrapper

from anyblok import (
    configuration_post_load,
    load_init_function_from_entry_points,
)
from anyblok.config import Configuration, ConfigurationException
from anyblok.registry import RegistryException

from . import options
from .passwords import hidden
from .servers import Servers

# Exit statuses; what they mean for a command is in its own help.
FAILED = 2
INTERRUPTED = 130
NOT_READ = 141


def main() -> int:
    """Run ``anyblok_engines``, and return its exit status

    :rtype: 0, 1 or 2, as the command says; 2 for whatever can't be done; 130:
        interrupted; 141: nobody reads the answer
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal may lack a character of a statement.
        sys.stdout.reconfigure(errors="backslashreplace")

    try:
        load()
        status = COMMANDS[options.command()]()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Behind "| head -1". Python writes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_READ
    except (
        ConfigurationException,
        ConfigParserError,
        OSError,
        RegistryException,
    ) as error:
        lines = [x.strip() for x in str(error).splitlines() if x.strip()]
        return failed(lines[0] if lines else type(error).__name__)


def failed(why: str) -> int:
    """Say in one line why a command can't be done, and return its exit status

    :param why: a sentence
    """
    print(f"anyblok_engines: {hidden(why)}", file=sys.stderr)
    return FAILED


def load() -> None:
    """Load AnyBlok's options, as its own commands do

    What AnyBlok prints meanwhile isn't a part of the answer.

    :exception: SystemExit, for --help and bad arguments;
        ConfigurationException
    """
    with redirect_stdout(StringIO()):
        load_init_function_from_entry_points()

    # Said otherwise by the last resort of logging: they are in the answer.
    logging.getLogger("anyblok_multi_engines").addHandler(logging.NullHandler())
    said = StringIO()
    try:
        with redirect_stdout(said):
            Configuration.load(options.APPLICATION)
    except SystemExit:
        sys.stdout.write(said.getvalue())
        raise
    except InterpolationError as error:
        # Its own text has the value, which may be a password.
        raise ConfigurationException(
            f"{error.option} in a configuration file: write %% for a %"
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationException(
            "a configuration file isn't UTF-8"
        ) from None

    if options.command() != "demo":
        configuration_post_load()


def status() -> int:
    """Show how the servers are"""
    from . import status

    needs_rich()
    with Servers() as servers:
        return status.run(servers)


def check() -> int:
    """Show what is right and wrong with the configuration and the servers"""
    from . import check

    needs_rich()
    with Servers() as servers:
        return check.run(servers)


def explain() -> int:
    """Show where statements would go, and why"""
    from . import explain

    needs_rich()
    statements = options.statements()
    with Servers() as servers:
        return explain.run(servers, statements)


def report() -> int:
    """Show what the shadow mode has seen"""
    from . import report

    needs_rich()
    return report.run()


def demo() -> int:
    """Run the demonstration; ``make demo`` is the same"""
    from ..demo.__main__ import main

    return main()


def needs_rich() -> None:
    """Check that tables can be shown

    :exception: ConfigurationException
    """
    if not options.as_json() and importlib.util.find_spec("rich") is None:
        raise ConfigurationException(
            "rich isn't installed: pip install "
            "'anyblok_multi_engines[console]', or add --json"
        )


#: What each word after ``anyblok_engines`` does.
COMMANDS: dict[str, Callable[[], int]] = {
    "status": status,
    "check": check,
    "explain": explain,
    "report": report,
    "demo": demo,
}
