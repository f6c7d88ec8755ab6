# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The options of ``anyblok_engines``; the others are AnyBlok's and ours."""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

from anyblok.config import Configuration
from sqlglot import TokenType
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import TokenError

from ..errors import OptionError

APPLICATION = "engines"

# What is done for each of them: application.py.
COMMANDS = ("status", "check", "explain", "report", "demo")

# Of --file: the standard input.
STDIN = "-"

DESCRIPTION = """\
See the servers of an AnyBlok database, check them, and explain where a
statement goes.

  status         how the servers are
  check          is the configuration fit to be deployed?
  explain "SQL"  where a statement would go, and why
  report         what --db-ro-shadow has noted
  demo           a demonstration on servers of its own, as make demo

The servers are those of --db-url or --db-wo-url and --db-ro-urls, from the
command line, a configuration file (-c) or the environment, as for
anyblok_createdb. No blok is loaded, and nothing is changed; check adds one
message to the primary's log, which has no effect.
"""

EPILOG = """\
examples:
  anyblok_engines status -c app.cfg --watch
  anyblok_engines check -c app.cfg --engines-workers 8
  anyblok_engines explain "SELECT now()" -c app.cfg
  anyblok_engines explain --file queries.sql -c app.cfg
  anyblok_engines report -c app.cfg

exit status:
  status   0 usable; 1 degraded; 2 no primary, or nothing to read from
  check    0 all is well; 1 warnings; 2 errors
  explain  0 explained; 1 explained, without a server that could be asked
  report   0 shown; 1 shown, without a file that can't be read
  demo     0 all was as it should be; 1 it wasn't
  2 for whatever can't be done: a bad option, for example
"""

Configuration.add_application_properties(
    APPLICATION,
    ["logging", "engines"],
    prog="anyblok_engines",
    usage="%(prog)s COMMAND [SQL] [options]",
    description=dedent(DESCRIPTION),
    epilog=dedent(EPILOG),
    formatter_class=RawDescriptionHelpFormatter,
)


@Configuration.add(APPLICATION)  # type: ignore[untyped-decorator,unused-ignore]
def add_engines(parser: Any) -> None:
    """Add the options of ``anyblok_engines``: the group ``engines``

    :param parser: of the command line
    """
    # A statement may come behind the options, too.
    parser.parse_args = parser.parse_intermixed_args
    group = parser.add_argument_group("Engines")
    group.add_argument(
        "engines_command",
        metavar="COMMAND",
        choices=COMMANDS,
        help="status, check, explain, report or demo.",
    )
    group.add_argument(
        "engines_sql",
        metavar="SQL",
        nargs="*",
        help="Of explain: statement(s).",
    )
    group.add_argument(
        "--json",
        dest="engines_json",
        action="store_true",
        help="Of status, check, explain and report: JSON instead of a table.",
    )
    group.add_argument(
        "--watch",
        dest="engines_watch",
        action="store_true",
        help="Of status: show it again every --db-ro-check-interval seconds, "
        "until Ctrl-C. With --json, an object per line.",
    )
    group.add_argument(
        "--file",
        dest="engines_file",
        metavar="PATH",
        help="Of explain: a file with statements, separated by ; (-: the "
        "standard input).",
    )
    group.add_argument(
        "--engines-workers",
        metavar="NUMBER",
        default="1",
        help="Of check: how many processes of the application connect to the "
        "servers, each with a pool of its own per server. Default: 1.",
    )


def command() -> str:
    """Return the word that says what to do

    :exception: OptionError, where a statement is given to another
    """
    found = str(Configuration.get("engines_command"))
    given = Configuration.get("engines_sql", None)
    if given and found != "explain":
        raise OptionError(f"{given[0]!r}: {found} takes no statement")

    return found


def as_json() -> bool:
    """Return True where JSON is wanted"""
    return bool(Configuration.get("engines_json", False))


def watches() -> bool:
    """Return True where the status is shown again and again"""
    return bool(Configuration.get("engines_watch", False))


def workers() -> int:
    """Return how many processes of the application there are

    :exception: OptionError
    """
    value = str(Configuration.get("engines_workers", "1"))
    if not value.isascii() or not value.isdigit() or not int(value):
        raise OptionError(
            f"--engines-workers: {value!r}; write a number, 1 or more"
        )

    return int(value)


def statements() -> list[str]:
    """Return the statements to explain

    :exception: OptionError
    """
    texts = list(Configuration.get("engines_sql", None) or ())
    path = Configuration.get("engines_file", None)
    if path:
        texts.append(_content(path))

    found = [statement for text in texts for statement in split(text)]
    if not found:
        raise OptionError(
            'No statement to explain: write explain "SELECT ...", or --file '
            "PATH"
        )

    return found


def split(text: str) -> Iterator[str]:
    """Yield the statements of a text, without their semicolons

    :param text: SQL
    :exception: OptionError
    """
    try:
        tokens = Postgres().tokenize(text)
    except TokenError as error:
        raise OptionError(f"The statements can't be read: {error}") from None

    start = end = 0
    for token in tokens:
        if token.token_type is not TokenType.SEMICOLON:
            start, end = (start if end else token.start), token.end + 1
        elif end:
            yield text[start:end]
            end = 0

    if end:
        yield text[start:end]


def _content(path: str) -> str:
    try:
        found = (
            sys.stdin.buffer.read()
            if path == STDIN
            else Path(path).read_bytes()
        )
        return found.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OptionError(f"--file {path}: it isn't UTF-8") from None
    except OSError as error:
        raise OptionError(f"--file {path}: {error.strerror}") from None
