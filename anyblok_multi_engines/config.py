# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The options, and what they say of the servers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anyblok.config import Configuration
from anyblok.config import get_url as anyblok_get_url
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from .consistency import Consistency, FreshnessOptions
from .errors import NoPrimaryError, OptionError
from .fallback import Fallback
from .health.model import Limits
from .routing.balancing import Policy
from .topology import Role, Server, Topology, places_of

if TYPE_CHECKING:
    from .shadow.record import ShadowOptions

# A separator counts only before the scheme of the next URL: so a comma in a
# query (libpq's several hosts) needs no care.
SCHEME = r"[A-Za-z][\w+.\-]*:/"
URL_SEPARATOR = rf"[,\s]+(?={SCHEME})"

# Two URLs that nothing has separated.
NO_DATABASE_NAME = r"[,\s]|:/"

# Their defaults.
FRESHNESS, LIMITS = FreshnessOptions(), Limits()

# Of --db-ro-write-guard, the default first.
WRITE_GUARDS = ("check", "off")

# Of --db-ro-consistency.
CONSISTENCIES = tuple(level.value for level in Consistency)

# Of --db-ro-fallback, the default first.
FALLBACKS = ("primary", "error")

# Of --db-ro-policy.
POLICIES = tuple(policy.value for policy in Policy)

# A name of PostgreSQL, with its schema or without; quoted where it has
# capitals or signs.
NAME = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
FUNCTION = rf"{NAME}(?:\.{NAME})?"

Number = TypeVar("Number", int, float)

HOW_TO_WRITE_URLS = (
    "write dialect://user:password@host:port/database, with %40 for an @ and "
    "%2C for a comma inside a part; several hosts of one server are written "
    "dialect://user:password@/database?host=a:1&host=b:2"
)


class CompletedUrl(str):
    """The text of ``db_wo_url``, where AnyBlok looks for ``db_url``

    AnyBlok's own ``get_url`` knows only ``db_url``; the type says that the
    user did not give both. AnyBlok casts each value with ``str``, which
    keeps what ``__str__`` returns.
    """

    def __str__(self) -> str:
        return self


@Configuration.add("database", must_be_loaded_by_unittest=True)  # type: ignore[untyped-decorator,unused-ignore]
def update_database(group: Any) -> None:
    """Add our options to AnyBlok's group ``database``

    :param group: the parser's group
    """
    group.add_argument(
        "--db-ro-urls",
        nargs="+",
        # Given twice, both count: to lose the first without a word is no
        # one's wish.
        action="extend",
        default=os.environ.get("ANYBLOK_DATABASE_URL_RO"),
        help="Complete URL(s) of the replicas, which serve reads. Alone: "
        "read-only mode.",
    )
    group.add_argument(
        "--db-wo-url",
        default=os.environ.get("ANYBLOK_DATABASE_URL_WO"),
        help="Complete URL of a primary that takes the writes, and reads only "
        "where no replica will do. Instead of --db-url, which takes its share "
        "of the reads.",
    )
    group.add_argument(
        "--db-ro-functions",
        nargs="+",
        action="extend",
        help="Function(s) of the database that only read, though they are "
        "declared VOLATILE: name or schema.name.",
    )
    group.add_argument(
        "--db-wo-functions",
        nargs="+",
        action="extend",
        help="Function(s) of the database that write or lock, though they are "
        "declared STABLE or IMMUTABLE: name or schema.name.",
    )
    group.add_argument(
        "--db-ro-write-guard",
        choices=WRITE_GUARDS,
        default=WRITE_GUARDS[0],
        help="Compare what a replica loaded with the primary's row before a "
        "change of it is written (check), or not (off). Default: check.",
    )
    group.add_argument(
        "--db-ro-consistency",
        choices=CONSISTENCIES,
        default=FRESHNESS.consistency.value,
        help="What a read sees at least: nothing is promised (eventual); what "
        "its session has committed, and nothing older than it has seen "
        "(session); and what any session of the process has committed "
        "(registry); and what any process had committed before (strong). "
        "Default: session.",
    )
    group.add_argument(
        "--db-ro-max-staleness",
        help="Seconds that a replica may be behind the primary to serve a "
        "read. Default: any number.",
    )
    group.add_argument(
        "--db-ro-wait",
        default=FRESHNESS.wait,
        help="Seconds that a read waits at most for a replica that is behind "
        "what it must see, before it goes elsewhere. Default: 0.01.",
    )
    group.add_argument(
        "--db-ro-check-interval",
        default=LIMITS.interval,
        help="Seconds between two questions of the monitor to a server. "
        "Default: 1.0.",
    )
    group.add_argument(
        "--db-ro-max-lag",
        help="Seconds behind the primary from which on a replica serves no "
        "reads. Default: any number.",
    )
    group.add_argument(
        "--db-ro-max-lag-bytes",
        help="Bytes of WAL behind the primary from which on a replica serves "
        "no reads. Default: any number.",
    )
    group.add_argument(
        "--db-ro-max-backoff",
        default=LIMITS.max_backoff,
        help="Seconds between two questions of the monitor to a server that "
        "is down, at most. Default: 30.0.",
    )
    group.add_argument(
        "--db-ro-connect-timeout",
        default=LIMITS.connect_timeout,
        help="Seconds that a connection to a replica, or an answer to the "
        "monitor, may take; connections are counted in whole seconds, and 2 "
        "at least. A URL with connect_timeout has its own. Default: 2.0.",
    )
    group.add_argument(
        "--db-ro-fallback",
        choices=FALLBACKS,
        default=FALLBACKS[0],
        help="Where a read goes that no replica can serve: to the primary, or "
        "nowhere (error). Default: primary.",
    )
    group.add_argument(
        "--db-ro-fallback-limit",
        help="Units of work that read from the primary of --db-wo-url at the "
        "same time because no replica can serve them. Default: any number.",
    )
    group.add_argument(
        "--db-ro-policy",
        choices=POLICIES,
        default=Policy.RANDOM.value,
        help="How a server is chosen for a unit of work: by chance (random), "
        "in turn (round-robin), or the less busy of two that are drawn "
        "(least-busy). Default: random.",
    )
    group.add_argument(
        "--db-ro-weights",
        nargs="+",
        action="extend",
        help="Number(s), one per URL of --db-ro-urls: of the reads, a replica "
        "takes its part of their sum. One more, at the end, is that of the "
        "primary of --db-url. 0: only where nobody else is there. Default: 1 "
        "each.",
    )
    group.add_argument(
        "--db-ro-shadow",
        action="store_true",
        help="Send everything to the primary, and note what would be decided "
        "without this option: anyblok_engines report shows it. --db-ro-urls "
        "may name replicas already, or be left out.",
    )
    group.add_argument(
        "--db-ro-shadow-dir",
        help="Directory of the files in which the processes write what they "
        "have noted. Default: anyblok_engines-UID in the temporary directory.",
    )
    group.add_argument(
        "--db-ro-sticky",
        default=FRESHNESS.sticky,
        help="Seconds that a session which has written reads from the "
        "primary, where the servers give no WAL positions. Default: 5.0.",
    )


def get_url(db_name: str | None = None, url: str | URL | None = None) -> URL:
    """Return the URL of a server, completed by AnyBlok's options

    ``db_user_name``, ``db_password`` and ``db_name`` replace the parts of the
    URL, as they do in AnyBlok's own function.

    :param db_name: name of the database, before the option ``db_name``
    :param url: the base; None: ``db_url``, else ``db_wo_url``, else an URL
        made of ``db_driver_name``, ``db_host``, ``db_port``, ``db_query``...
    :rtype: SQLAlchemy URL
    :exception: ConfigurationException, where nothing names a server
    """
    base = url or _option("db_url") or _option("db_wo_url")
    if not base:
        parts: URL = anyblok_get_url(db_name=db_name)
        return parts

    parsed = make_url(base)
    return parsed.set(
        username=_option("db_user_name") or parsed.username,
        password=_option("db_password") or parsed.password,
        database=(_option("db_name") if db_name is None else db_name)
        or parsed.database,
    )


def topology(db_name: str | None = None) -> Topology:
    """Return the servers that the options name, validated

    :param db_name: name of the database on each of them; None: of the options
    :rtype: Topology
    :exception: OptionError
    """
    primary = _primary(db_name)
    texts = replica_urls()
    takes_reads = primary is not None and primary.takes_reads
    weights = _weights(len(texts), takes_reads)
    if primary is not None and takes_reads:
        primary = replace(primary, weight=weights[-1])

    replicas = tuple(
        Server(
            name=f"replica{number}",
            role=Role.REPLICA,
            url=_url(f"--db-ro-urls, URL number {number}", text, db_name),
            option="--db-ro-urls",
            weight=weights[number - 1],
        )
        for number, text in enumerate(texts, start=1)
    )
    if primary is None and not replicas:
        raise OptionError(
            "No driver name defined, and no URL: give --db-url (or "
            "--db-wo-url, or --db-driver-name and --db-host) for the primary, "
            "and --db-ro-urls for its replicas"
        )

    result = Topology(primary, replicas)
    _check_dialects(result)
    _check_replicas_differ(result)
    return result


def replica_urls() -> list[str]:
    """Return the texts of ``db_ro_urls``, however they were written

    A list (command line, program), or a text that AnyBlok has cut at its
    separators or not (environment, configuration file).

    :rtype: list of str, without empty ones
    """
    value: str | Sequence[str] | None = Configuration.get("db_ro_urls", None)
    if not value:
        return []

    urls: list[str] = []
    for text in [value] if isinstance(value, str) else filter(None, value):
        for piece in re.split(URL_SEPARATOR, text):
            piece = piece.strip(", \t\r\n")
            if not piece:
                continue

            if urls and "?" in urls[-1] and not re.match(SCHEME, piece):
                # AnyBlok cut at the comma of a query.
                piece = f"{urls.pop()},{piece}"

            urls.append(piece)

    return urls


def functions(option: str) -> frozenset[str]:
    """Return the functions that an option names, as PostgreSQL folds them

    :param option: ``--db-ro-functions`` or ``--db-wo-functions``
    :rtype: ``name`` or ``schema.name``, without quotes
    :exception: OptionError
    """
    names = [text.removesuffix("()") for text in _pieces(option)]
    for name in names:
        if not re.fullmatch(FUNCTION, name):
            raise OptionError(
                f"{option}: {_shown(name)} is no function's name; write name "
                "or schema.name, without arguments"
            )

    return frozenset(_folded(name) for name in names)


def write_guard() -> bool:
    """Return True where stale changes are looked for before they are written

    :exception: OptionError
    """
    value = _option("db_ro_write_guard") or WRITE_GUARDS[0]
    if value not in WRITE_GUARDS:
        raise OptionError(
            f"--db-ro-write-guard: {_shown(value)}; write one of "
            + ", ".join(WRITE_GUARDS)
        )

    return value == WRITE_GUARDS[0]


def policy() -> Policy:
    """Return how a server is chosen

    :exception: OptionError
    """
    value = _option("db_ro_policy") or Policy.RANDOM
    if value not in POLICIES:
        raise OptionError(
            f"--db-ro-policy: {_shown(value)}; write one of "
            + ", ".join(POLICIES)
        )

    return Policy(value)


def freshness() -> FreshnessOptions:
    """Return what the readers of a registry want to see

    :exception: OptionError
    """
    value = _option("db_ro_consistency") or FRESHNESS.consistency
    if value not in CONSISTENCIES:
        raise OptionError(
            f"--db-ro-consistency: {_shown(value)}; write one of "
            + ", ".join(CONSISTENCIES)
        )

    wait, sticky = _seconds("--db-ro-wait"), _seconds("--db-ro-sticky")
    return FreshnessOptions(
        consistency=Consistency(value),
        max_staleness=_seconds("--db-ro-max-staleness"),
        sticky=FRESHNESS.sticky if sticky is None else sticky,
        wait=FRESHNESS.wait if wait is None else wait,
    )


def limits() -> Limits:
    """Return what is asked of a replica

    :exception: OptionError
    """
    most = _count("--db-ro-max-lag-bytes", least=0)
    interval = _seconds("--db-ro-check-interval")
    backoff = _seconds("--db-ro-max-backoff")
    timeout = _seconds("--db-ro-connect-timeout")
    for option, value in (
        ("--db-ro-check-interval", interval),
        ("--db-ro-connect-timeout", timeout),
    ):
        if value == 0:
            raise OptionError(f"{option}: 0; write seconds, such as 2")

    return Limits(
        max_lag=_seconds("--db-ro-max-lag"),
        max_lag_bytes=most,
        interval=LIMITS.interval if interval is None else interval,
        max_backoff=LIMITS.max_backoff if backoff is None else backoff,
        connect_timeout=LIMITS.connect_timeout if timeout is None else timeout,
    )


def shadow(known: Topology) -> ShadowOptions | None:
    """Return what is said of the shadow mode; None: it is off

    :param known: the servers of the options
    :exception: OptionError
    """
    if not Configuration.get("db_ro_shadow", False):
        return None

    if known.read_only:
        raise OptionError(
            "--db-ro-shadow sends everything to the primary, and only "
            "--db-ro-urls is given: add --db-url or --db-wo-url, or leave "
            "--db-ro-shadow out"
        )

    # No other start pays for it.
    from .shadow.record import ShadowOptions

    return ShadowOptions(shadow_directory())


def shadow_directory() -> Path:
    """Return where the processes write what the shadow mode has noted"""
    from .shadow.files import default_directory

    given = _option("db_ro_shadow_dir")
    return Path(given) if given else default_directory()


def fallback() -> Fallback:
    """Return what a read does that no replica can serve

    :exception: OptionError
    """
    value = _option("db_ro_fallback") or FALLBACKS[0]
    if value not in FALLBACKS:
        raise OptionError(
            f"--db-ro-fallback: {_shown(value)}; write one of "
            + ", ".join(FALLBACKS)
        )

    limit = _count("--db-ro-fallback-limit")
    if limit is not None and value != FALLBACKS[0]:
        raise OptionError(
            "--db-ro-fallback error leaves nothing to limit: leave "
            "--db-ro-fallback-limit out"
        )

    return Fallback(to_primary=value == FALLBACKS[0], limit=limit)


def _seconds(option: str) -> float | None:
    """Return an option's seconds, 0 or more; None: it isn't given

    :exception: OptionError
    """
    return _number(option, float, 0, "seconds, such as 2 or 0.5")


def _count(option: str, least: int = 1) -> int | None:
    """Return an option's whole number; None: it isn't given

    :exception: OptionError
    """
    return _number(option, int, least, f"a whole number, {least} or more")


def _number(
    option: str, cast: Callable[[Any], Number], least: int, what: str
) -> Number | None:
    value: Any = Configuration.get(option.strip("-").replace("-", "_"), None)
    if value is None or value == "":
        return None

    with suppress(TypeError, ValueError):
        number = cast(value)
        if least <= number < float("inf"):
            return number

    raise OptionError(f"{option}: {_shown(value)}; write {what}")


def _shown(value: Any) -> str:
    """Return a wrong value for a message; an URL's password is left out"""
    return re.sub(r"//\S*@", "//***@", repr(value))


def is_configured() -> bool:
    """Return True where one of our own options is given"""
    return bool(_option("db_wo_url") or replica_urls())


def complete_options(unittest: bool = False) -> None:
    """Tell AnyBlok's commands what they can't know of our options

    ``anyblok_createdb`` and the others look for ``db_name`` and ``db_url``
    alone. AnyBlok calls this from ``anyblok_configuration.post_load``,
    before anything is written.

    :param unittest: True when AnyBlok's test helpers do the loading
    :exception: OptionError
    """
    if not is_configured():
        return

    known = topology()
    if not _option("db_name"):
        names = (server.url.database for server in known.servers)
        Configuration.set("db_name", next(filter(None, names), None))

    if known.read_only:
        if not unittest and _is_createdb():
            raise NoPrimaryError(
                "A database is created on a primary, and only --db-ro-urls is "
                "given: add --db-url or --db-wo-url"
            )
    elif _option("db_wo_url"):
        Configuration.set("db_url", CompletedUrl(_option("db_wo_url")))


def _pieces(option: str) -> list[str]:
    """Return what an option lists, however it was written

    A list, or a text that AnyBlok has cut at its separators or not.
    """
    value: Any = Configuration.get(option.strip("-").replace("-", "_"), None)
    if value is None:
        return []

    texts = [value] if isinstance(value, str | float | int) else value
    return [
        piece
        for text in texts
        for piece in re.split(r"[,\s]+", str(text))
        if piece
    ]


def _weights(replicas: int, primary_takes_reads: bool) -> list[float]:
    """Return the weights of the replicas, and then the primary's

    :param replicas: how many
    :param primary_takes_reads: True where it may have one of its own
    :exception: OptionError
    """
    found = [_weight(text) for text in _pieces("--db-ro-weights")]
    if not found:
        return [1.0] * (replicas + 1)

    if len(found) - replicas not in ((0, 1) if primary_takes_reads else (0,)):
        more = ", and one more for the primary" if primary_takes_reads else ""
        raise OptionError(
            f"--db-ro-weights: {len(found)} of them, and {replicas} in "
            f"--db-ro-urls; write one per URL{more}"
        )

    if not any(found):
        raise OptionError(
            "--db-ro-weights: all are 0; write more than 0 for one of them"
        )

    return [*found, 1.0][: replicas + 1]


def _weight(text: str) -> float:
    """Return a number, 0 or more

    :exception: OptionError
    """
    with suppress(ValueError):
        weight = float(text)
        if 0 <= weight < float("inf"):
            return weight

    raise OptionError(
        f"--db-ro-weights: {_shown(text)}; write numbers, 0 or more, such as "
        "9 or 0.5"
    )


def _folded(name: str) -> str:
    """Return a name as PostgreSQL folds it: in lower case but for quotes"""
    return ".".join(
        part[1:-1].replace('""', '"') if part[0] == '"' else part.lower()
        for part in re.findall(NAME, name)
    )


def _is_createdb() -> bool:
    """Return True where the running command has createdb's own options"""
    return bool(Configuration.has("db_template_name"))


def _option(name: str) -> str | None:
    value = Configuration.get(name, None)
    if not value or isinstance(value, CompletedUrl):
        return None

    return str(value)


def _primary(db_name: str | None) -> Server | None:
    db_url, db_wo_url = _option("db_url"), _option("db_wo_url")
    if db_url and db_wo_url:
        raise OptionError(
            "--db-url and --db-wo-url both name the primary: give --db-url if "
            "it takes its share of the reads, else --db-wo-url, and not both"
        )

    if db_url:
        url, option = _url("--db-url", db_url, db_name), "--db-url"
    elif db_wo_url:
        url, option = _url("--db-wo-url", db_wo_url, db_name), "--db-wo-url"
    elif _option("db_driver_name"):
        url, option = get_url(db_name=db_name), "--db-driver-name"
    else:
        return None

    return Server(
        name="primary",
        role=Role.PRIMARY,
        url=url,
        option=option,
        takes_reads=not db_wo_url,
    )


def _url(option: str, text: str, db_name: str | None) -> URL:
    """Return the parsed URL; no message and no traceback shows the text"""
    parsed = None
    with suppress(ArgumentError, ValueError):
        parsed = make_url(text)

    if (
        parsed is None
        # The end of a password that has one, which would be shown.
        or "@" in (parsed.host or "")
        or re.search(NO_DATABASE_NAME, parsed.database or "")
    ):
        # The parser's own error may hold the text, and so the password: it
        # must not be in our traceback.
        raise OptionError(f"{option}: not an URL; {HOW_TO_WRITE_URLS}")

    _check_hosts(option, parsed)
    return get_url(db_name=db_name, url=parsed)


def _check_hosts(option: str, url: URL) -> None:
    """Refuse several hosts that SQLAlchemy doesn't understand

    :exception: OptionError
    """
    try:
        url.get_dialect()().create_connect_args(url)
    except NoSuchModuleError:
        # Told with what may be written when the engine is made.
        pass
    except ArgumentError as error:
        raise OptionError(f"{option}: {error}; {HOW_TO_WRITE_URLS}") from None


def _check_dialects(known: Topology) -> None:
    names = {server.url.get_backend_name() for server in known.servers}
    if len(names) > 1:
        raise OptionError(
            "All engines serve one database, and so have one dialect, but: "
            + ", ".join(
                f"{server} of {server.option} is "
                f"{server.url.get_backend_name()}"
                for server in known.servers
            )
        )


def _check_replicas_differ(known: Topology) -> None:
    seen: dict[Any, Server] = {}
    for server in known.replicas:
        url = server.url
        places = tuple((host, port or "5432") for host, port in places_of(url))
        options = url.difference_update_query(["host", "port"]).query
        place = (places, url.username, tuple(sorted(options.items())))
        if place in seen:
            raise OptionError(
                f"--db-ro-urls names the same server twice: {seen[place]} and "
                f"{server}; leave one out"
            )

        seen[place] = server
