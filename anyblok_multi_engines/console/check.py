# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Is the configuration fit to be deployed: ``anyblok_engines check``."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from anyblok.config import Configuration
from sqlalchemy.pool import QueuePool

from .. import config
from ..consistency import ConsistencyToken
from ..errors import OptionError
from ..health.probe import summary_of
from ..topology import Server
from . import options, questions
from .facts import Answers, Arrival, Facts, Function, PoolLimits, ServerFacts
from .findings import Finding, Severity, findings
from .passwords import hidden
from .servers import OTHER_DATABASE, Servers

# Of the JSON: another number where a name goes, or means something else.
VERSION = 1


@dataclass(frozen=True)
class Checked:
    """What a check has found

    :param findings: in the order of the rules
    """

    findings: tuple[Finding, ...]

    @property
    def severity(self) -> Severity:
        """Return that of the worst finding"""
        found = [finding.severity for finding in self.findings]
        return max(found, key=list(Severity).index, default=Severity.OK)

    @property
    def summary(self) -> str:
        """Return how many findings there are of which severity"""
        count = Counter(finding.severity for finding in self.findings)
        return ", ".join(f"{count[x]} {x}" for x in Severity)

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints"""
        return {
            "version": VERSION,
            "severity": str(self.severity),
            "summary": self.summary,
            "findings": [asdict(finding) for finding in self.findings],
        }


def run(servers: Servers) -> int:
    """Check the configuration, show what was found, return the exit status

    :param servers: of the options
    :exception: OptionError
    """
    checked = Checked(findings(facts_of(servers)))
    if options.as_json():
        print(json.dumps(checked.as_json(), indent=2))
    else:
        from . import tables

        tables.console().print(tables.of_check(checked))

    return checked.severity.exit_status


def facts_of(servers: Servers) -> Facts:
    """Return what is known of the configuration and the servers

    :param servers: of the options
    :exception: OptionError
    """
    topology = servers.topology
    for server in topology.servers:
        if servers.engine_of(server.name).dialect.driver not in (
            "psycopg",
            "psycopg2",
        ):
            raise OptionError(
                f"{server.option}: check knows PostgreSQL alone, with psycopg2 "
                "or psycopg"
            )

    workers = options.workers()
    read_functions = config.functions("--db-ro-functions")
    write_functions = config.functions("--db-wo-functions")
    asked = questions.side_by_side(
        {x.name: partial(server_facts, servers, x) for x in topology.servers},
        questions.PATIENCE,
    )
    known = {
        server.name: _or_failure(server, asked[server.name])
        for server in topology.servers
    }
    names = read_functions | write_functions
    unforced = _replicate(servers, known)
    return Facts(
        topology=topology,
        servers=tuple(known.values()),
        database=servers.database,
        isolation_level=str(Configuration.get("isolation_level")),
        limits=config.limits(),
        workers=workers,
        read_functions=read_functions,
        write_functions=write_functions,
        functions=_functions(servers, known, names) if names else (),
        unforced=unforced,
    )


def _or_failure(
    server: Server, result: ServerFacts | BaseException
) -> ServerFacts:
    if isinstance(result, BaseException):
        return ServerFacts(server, failure=hidden(summary_of(result)))

    return result


def server_facts(servers: Servers, server: Server) -> ServerFacts:
    """Return what is known of one server, without its replication

    :param servers: of the options
    :param server: which one
    :exception: any of the driver's
    """
    try:
        answers = _answers(servers, server)
    except Exception:
        if not _lacks_database(servers, server):
            raise

        return ServerFacts(server, lacks_database=True)

    pool, limits = servers.engine_of(server.name).pool, None
    if isinstance(pool, QueuePool):
        overflow = pool._max_overflow
        limits = PoolLimits(pool.size(), overflow if overflow >= 0 else None)

    return ServerFacts(server, answers, pool=limits)


def _answers(servers: Servers, server: Server) -> Answers:
    with servers.driver(server) as driver:
        pooling = questions.pooling_between(
            driver, partial(servers.driver, server)
        )
        return questions.answers_of(driver, pooling)


def _lacks_database(servers: Servers, server: Server) -> bool:
    """Return True where a server answers, and hasn't the database"""
    if not servers.database:
        return False

    try:
        with servers.driver(server, OTHER_DATABASE) as driver:
            return not questions.has_database(driver, servers.database)
    except Exception:
        # The first error says why.
        return False


def _functions(
    servers: Servers, known: dict[str, ServerFacts], names: frozenset[str]
) -> tuple[Function, ...] | None:
    """Return the functions of the database that the options name"""
    for one in known.values():
        if one.answers:
            with suppress(Exception), servers.driver(one.server) as driver:
                return questions.functions_in(driver, names)

    return None


def _replicate(servers: Servers, known: dict[str, ServerFacts]) -> str | None:
    """Note what becomes of a position of the primary on each replica

    :param servers: of the options
    :param known: of each server, by name; replaced
    :rtype: why nothing could be written; None: it was
    """
    primary = servers.topology.primary
    answers = known[primary.name].answers if primary else None
    if primary is None or answers is None or answers.in_recovery:
        return None

    cluster = answers.system_id
    replicas = [
        x
        for x in servers.topology.replicas
        if (its := known[x.name].answers)
        and its.in_recovery
        and None not in (cluster, its.system_id)
        and its.system_id == cluster
    ]
    if not replicas:
        return None

    written = questions.side_by_side(
        {"": partial(_written, servers, primary)}, questions.PATIENCE
    )[""]
    if isinstance(written, BaseException):
        return hidden(summary_of(written))

    position, refused = written
    written_at = time.monotonic()
    arrivals = questions.side_by_side(
        {
            x.name: partial(_arrival, servers, x, position, written_at)
            for x in replicas
        },
        questions.PATIENCE,
    )
    for name, arrival in arrivals.items():
        if isinstance(arrival, BaseException):
            arrival = Arrival(questions.PATIENCE, reached=False)

        known[name] = replace(known[name], arrival=arrival)

    return None if refused is None else hidden(refused)


def _written(
    servers: Servers, primary: Server
) -> tuple[ConsistencyToken, str | None]:
    with servers.driver(primary) as driver:
        return questions.written_position(driver)


def _arrival(
    servers: Servers,
    replica: Server,
    position: ConsistencyToken,
    written_at: float,
) -> Arrival:
    with servers.driver(replica) as driver:
        return questions.arrival_of(driver, position, written_at)
