# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is right and wrong: findings as functions of facts.

Each rule is named after what it looks at, and says so by that name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..routing.functions import need_of_function
from ..routing.need import Kind
from .facts import Answers, Facts, Function, Pooling, ServerFacts

# Seconds that a read on a replica should be let go on by default: PostgreSQL's
# own max_standby_streaming_delay.
SHORT_READS = 30.0

# Connections of a process to a server besides its pool: the monitor's, and one
# for questions of freshness and of the catalogue.
OWN_CONNECTIONS = 2

TIMEOUTS = (
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "transaction_timeout",
)

VOLATILITIES = {"i": "IMMUTABLE", "s": "STABLE", "v": "VOLATILE"}


class Severity(StrEnum):
    """How bad a finding is, the worst last"""

    OK = "ok"
    WARNING = "warning"  #: it works, and not as well as it could
    ERROR = "error"  #: don't deploy it

    @property
    def exit_status(self) -> int:
        """Return the exit status of the command"""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """One thing that was found

    :param severity: how bad it is
    :param check: the rule that found it
    :param about: the servers, or the option
    :param text: what was found
    :param advice: what to do; None: nothing has to be done
    """

    severity: Severity
    check: str
    about: tuple[str, ...]
    text: str
    advice: str | None = None


#: Severity, about, text, advice; the check is the rule's name.
Found = tuple[Severity, tuple[str, ...], str, str | None]
Rule = Callable[[Facts], Iterator[Found]]


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Return all that is found, in the order of the rules

    :param facts: of the configuration and the servers
    """
    found: dict[tuple[Severity, str, str, str | None], tuple[str, ...]] = {}
    for rule in RULES:
        for severity, about, text, advice in rule(facts):
            key = severity, rule.__name__, text, advice
            # What is so on several servers is said once.
            found[key] = found.get(key, ()) + about

    return tuple(
        Finding(severity, check, about, text, advice)
        for (severity, check, text, advice), about in found.items()
    )


def connection(facts: Facts) -> Iterator[Found]:
    """Every URL connects, with its own credentials"""
    for known in facts.servers:
        option = known.server.option
        if known.answers:
            yield _ok(known.name, f"{known.server} answers")
        elif known.failure:
            yield _error(
                known.name,
                f"{known.server} can't be asked: {known.failure}",
                f"correct {option}, or the server and its pg_hba.conf",
            )


def database(facts: Facts) -> Iterator[Found]:
    """The database is on every server"""
    if not facts.database:
        yield _error(
            "--db-name",
            "no database is named",
            "give --db-name, or a database in the URLs",
        )
        return

    for known in facts.servers:
        if known.answers:
            yield _ok(known.name, f"it has the database {facts.database}")
        elif known.lacks_database:
            if known is facts.primary:
                advice = "create it with anyblok_createdb, or correct --db-name"
            else:
                advice = (
                    "is it a replica of this primary, and has it caught up? "
                    "Correct --db-ro-urls, or rebuild it"
                )

            yield _error(
                known.name, f"it has no database {facts.database}", advice
            )


def role(facts: Facts) -> Iterator[Found]:
    """The primary takes writes, and the replicas are standbys"""
    for known, answers in facts.answering:
        is_primary = known is facts.primary
        if is_primary and answers.in_recovery:
            yield _error(
                known.name,
                "it is a standby: every write fails",
                f"name the primary in {known.server.option}; with several "
                "hosts, add target_session_attrs=read-write",
            )
        elif not is_primary and not answers.in_recovery:
            yield _error(
                known.name,
                "it is not in recovery: a primary, and is not used",
                "take it out of --db-ro-urls, or rebuild it as a standby",
            )
        else:
            yield _ok(known.name, f"it is a {known.server.role}")


def cluster(facts: Facts) -> Iterator[Found]:
    """All servers are of one cluster, and on its timeline"""
    told = [x for x in facts.answering if x[1].system_id is not None]
    for known, answers in facts.answering:
        if answers.system_id is None:
            yield _warning(
                known.name,
                "it doesn't tell its cluster and its position: what a "
                "session sees of its writes is a matter of seconds",
                "grant its user the right to call pg_control_system(), "
                "pg_control_checkpoint() and pg_control_recovery()",
            )

    if not told:
        return

    first, its = told[0]
    for known, answers in told[1:]:
        if answers.system_id != its.system_id:
            yield _error(
                known.name,
                f"it is of another cluster than {first.name}: its system "
                f"identifier is {answers.system_id}, and not {its.system_id}",
                f"correct {known.server.option}, or rebuild it from the "
                "primary",
            )
        elif answers.timeline != its.timeline:
            yield _warning(
                known.name,
                f"its timeline is {answers.timeline}, and that of "
                f"{first.name} is {its.timeline}: sessions that have written "
                "don't read from it",
                "wait for its next restartpoint (CHECKPOINT on it), or grant "
                "its user pg_read_all_stats to know it at once; if it stays "
                "so, rebuild it",
            )
        else:
            yield _ok(known.name, f"it is of the same cluster as {first.name}")


def same_server(facts: Facts) -> Iterator[Found]:
    """No two URLs lead to one server"""
    seen: dict[tuple[str, ...], ServerFacts] = {}
    for known, answers in facts.answering:
        if not answers.key:
            continue

        other = seen.setdefault((str(answers.system_id), *answers.key), known)
        if other is not known:
            yield _warning(
                known.name,
                f"it is the same server as {other.name}",
                f"leave one of {other.server.option} and "
                f"{known.server.option} out; to give a server more reads, use "
                "--db-ro-weights",
            )


def replication(facts: Facts) -> Iterator[Found]:
    """A position taken on the primary arrives on each replica"""
    if facts.topology.read_only:
        yield _ok("--db-ro-urls", "read-only mode: nothing to replicate from")
        return

    if facts.unforced and any(x.arrival for x in facts.replicas):
        yield _ok(
            "primary",
            f"nothing could be written for the replicas: {facts.unforced}; "
            "they were asked for the position that was there",
        )

    for known in facts.replicas:
        arrival = known.arrival
        if arrival is None:
            continue

        if arrival.reached:
            what = f"within {arrival.seconds * 1000:.0f} ms"
            yield _ok(known.name, f"a position of the primary arrived {what}")
        elif arrival.paused:
            yield _error(
                known.name,
                "its replay is paused: nothing of the primary arrives",
                "SELECT pg_wal_replay_resume() on it",
            )
        else:
            yield _error(
                known.name,
                "a position of the primary has not arrived within "
                f"{arrival.seconds:.0f} s",
                "look at pg_stat_wal_receiver there, and at "
                "pg_stat_replication on the primary",
            )


def replay_delay(facts: Facts) -> Iterator[Found]:
    """No replica is late on purpose"""
    for known, answers in _replicas(facts):
        delay = answers.setting("recovery_min_apply_delay") or "0"
        if delay == "0":
            continue

        seconds = int(delay) / 1000
        limit = facts.limits.max_lag
        text = f"recovery_min_apply_delay: always {seconds:g} s behind"
        if limit is not None and limit < seconds:
            yield _error(
                known.name,
                f"{text}, of --db-ro-max-lag {limit:g}: it serves nothing",
                "take it out of --db-ro-urls",
            )
        else:
            yield _warning(
                known.name,
                f"{text}, and no session that has just written reads from it",
                "take it out of --db-ro-urls, or set the delay to 0",
            )


def wal_level(facts: Facts) -> Iterator[Found]:
    """The primary's log is enough for replicas"""
    for known, answers in facts.answering:
        if known is facts.primary:
            level = answers.setting("wal_level")
            if level == "minimal":
                yield _error(
                    known.name,
                    "wal_level is minimal: nothing can be replicated",
                    "set wal_level = replica, and restart it",
                )
            elif level:
                yield _ok(known.name, f"wal_level is {level}")


def read_only(facts: Facts) -> Iterator[Found]:
    """The primary's sessions may write"""
    primary = facts.primary
    answers = primary.answers if primary else None
    if answers and answers.setting("default_transaction_read_only") == "on":
        yield _error(
            "primary",
            "default_transaction_read_only is on: every write fails",
            "ALTER ROLE or ALTER DATABASE ... RESET "
            "default_transaction_read_only",
        )


def recovery_conflicts(facts: Facts) -> Iterator[Found]:
    """A replica's reads aren't cancelled by what it replays, or seldom"""
    for known, answers in _replicas(facts):
        feedback = answers.setting("hot_standby_feedback") == "on"
        delay = answers.settings.get("max_standby_streaming_delay")
        if delay is None:
            continue

        told = (
            f"hot_standby_feedback is {'on' if feedback else 'off'}, "
            f"max_standby_streaming_delay {delay}"
        )
        seconds = int(delay.value) / 1000
        if feedback or seconds < 0:
            yield _ok(known.name, told)
        elif seconds < SHORT_READS:
            yield _warning(
                known.name,
                f"{told}: reads are cancelled soon, and run elsewhere",
                "turn hot_standby_feedback on, or allow "
                f"{SHORT_READS:g} s (max_standby_streaming_delay)",
            )
        else:
            yield _ok(
                known.name,
                f"{told}: a read that takes longer may be cancelled, and is "
                "run elsewhere",
            )


def timeouts(facts: Facts) -> Iterator[Found]:
    """A statement has the same time on every server"""
    differing = False
    for name in TIMEOUTS:
        told = {
            known.name: str(answers.settings[name])
            for known, answers in facts.answering
            if name in answers.settings
        }
        if len(set(told.values())) > 1:
            differing = True
            yield _warning(
                told,
                f"{name} differs: "
                + ", ".join(f"{x} {value}" for x, value in told.items()),
                "a statement that fails on one server goes on on another; "
                "ALTER ROLE ... SET has it the same everywhere, "
                "postgresql.conf and an URL's options don't",
            )

    if facts.answering and not differing:
        yield _ok("every server", "the timeouts are the same")


def search_path(facts: Facts) -> Iterator[Found]:
    """A name without its schema is the same on every server"""
    paths = {
        known.name: answers.search_path for known, answers in facts.answering
    }
    if len(set(paths.values())) > 1:
        yield _warning(
            paths,
            "the search_path differs: "
            + "; ".join(f"{x}: {', '.join(path)}" for x, path in paths.items()),
            "names without a schema are looked up as on the primary: give "
            "all URLs the same user, or their users the same search_path",
        )


def isolation_level(facts: Facts) -> Iterator[Found]:
    """What --isolation-level means on a replica"""
    level = facts.isolation_level.replace("_", " ").upper()
    option = "--isolation-level"
    has_replicas = bool(facts.topology.replicas)
    if level == "SERIALIZABLE" and has_replicas:
        yield _warning(
            option,
            "SERIALIZABLE is REPEATABLE READ on a replica: what is read there "
            "takes no part in finding serialization failures",
            "read what decides a write under registry.use_primary()",
        )
    elif level == "REPEATABLE READ" and has_replicas:
        yield _ok(
            option,
            "REPEATABLE READ: a unit of work whose replica dies fails once, "
            "with a SnapshotLostError, and may be done again",
        )
    else:
        yield _ok(option, level)

    for known, answers in facts.answering:
        default = answers.setting("default_transaction_isolation").upper()
        if known is facts.primary and default not in ("", level):
            yield _ok(
                known.name,
                f"default_transaction_isolation is {default}; the "
                "application's sessions have the option's",
            )


def functions(facts: Facts) -> Iterator[Found]:
    """--db-ro-functions and --db-wo-functions mean what they say"""
    known = facts.functions
    if known is None:
        return

    both = facts.read_functions & facts.write_functions
    for name in sorted(both):
        yield _warning(
            "--db-ro-functions",
            f"{name} is in --db-wo-functions, too, and counts as a write",
            "leave it out of one of them",
        )

    for name in sorted(facts.write_functions - both):
        if _named(known, name):
            yield _ok("--db-wo-functions", f"{name} counts as a write")
        else:
            yield _error(
                "--db-wo-functions",
                f"the database has no function {name}: what you mean isn't "
                "taken for a write",
                "correct the name: name or schema.name, in double quotes "
                "where it has capitals",
            )

    for name in sorted(facts.read_functions - both):
        found = _named(known, name)
        if not found:
            yield _warning(
                "--db-ro-functions",
                f"the database has no function {name}",
                "correct the name, or leave it out",
            )

        for function in found:
            yield _of_declared_read(function)


def _of_declared_read(function: Function) -> Found:
    """Return what is found about a function of --db-ro-functions"""
    option = "--db-ro-functions"
    called = f"{function.schema}.{function.name}"
    volatility = VOLATILITIES[function.volatility]
    need = need_of_function(function.schema, function.name, called, False)
    if need.kind is Kind.WRITE:
        return _error(
            option, f"{called}() writes or locks", "leave it out of the option"
        )

    if function.volatility != "v":
        return _ok(option, f"{called}() is {volatility}: it needs no option")

    if function.writing:
        return _warning(
            option,
            f"{called}() is {volatility}, and there is an {function.writing} "
            "in it: a replica refuses it",
            "leave it out, unless that is never reached",
        )

    return _ok(
        option,
        f"{called}() is {volatility}, and taken for a read; ALTER FUNCTION "
        "... STABLE is better, if it is one",
    )


def connections(facts: Facts) -> Iterator[Found]:
    """Each server has enough connections for all processes"""
    for known, answers in facts.answering:
        if answers.pooling is not Pooling.NONE:
            yield _ok(known.name, "behind a pooler, which has its own limits")
        elif known.pool and answers.connection_limit is not None:
            own = OWN_CONNECTIONS if facts.topology.replicas else 0
            least = facts.workers * (known.pool.size + own)
            overflow = known.pool.overflow
            most = (
                None if overflow is None else least + facts.workers * overflow
            )
            yield _enough(facts, known, answers, least, most)


def _enough(
    facts: Facts,
    known: ServerFacts,
    answers: Answers,
    least: int,
    most: int | None,
) -> Found:
    """Return what is found about the connections to one server"""
    limit = answers.connection_limit
    assert known.pool is not None
    assert limit is not None
    own = OWN_CONNECTIONS if facts.topology.replicas else 0
    any_number = "any number of"
    told = (
        f"{facts.workers} {'process' if facts.workers == 1 else 'processes'} "
        f"(--engines-workers) with a pool of {known.pool.size}, "
        f"{any_number if most is None else known.pool.overflow} more for a "
        f"moment, and {own} of our own: "
        f"{any_number if most is None else most} connections, {limit} allowed"
    )
    advice = (
        "lower --db-pool-size or --db-max-overflow, raise max_connections "
        "(or the limit of the role or the database), or put PgBouncer in front"
    )
    if least > limit:
        return _error(known.name, f"{told}; {least} at all times", advice)

    if most is None or most > limit:
        return _warning(known.name, f"{told}; {least} at all times", advice)

    return _ok(known.name, told)


def pooler(facts: Facts) -> Iterator[Found]:
    """No pooler in transaction mode is in between, or you know what it means"""
    for known, answers in facts.answering:
        if answers.pooling in (Pooling.TRANSACTION, Pooling.UNKNOWN):
            which = (
                "in transaction mode"
                if answers.pooling is Pooling.TRANSACTION
                else "of an unknown mode (it gave no second connection)"
            )
            yield _warning(
                known.name,
                f"a pooler {which} is in between: SET, LISTEN, advisory locks "
                "and temporary tables don't outlast a transaction, and a "
                "standby that restarts behind it can't be noticed",
                "with psycopg 3, use PgBouncer 1.21 or later with "
                "max_prepared_statements, or prepare_threshold=None; else use "
                "session mode",
            )
        elif answers.pooling is Pooling.SESSION:
            yield _ok(known.name, "a pooler in session mode is in between")


def rights(facts: Facts) -> Iterator[Found]:
    """A replica's timeline is known at once after a promotion"""
    for known, answers in _replicas(facts):
        if answers.sees_statistics:
            yield _ok(known.name, "its user has pg_read_all_stats")
        else:
            yield _ok(
                known.name,
                "its user hasn't pg_read_all_stats: after a promotion, reads "
                "go to the primary until its next restartpoint; GRANT "
                "pg_read_all_stats lets it be known at once",
            )


RULES: tuple[Rule, ...] = (
    connection,
    database,
    role,
    cluster,
    same_server,
    replication,
    replay_delay,
    wal_level,
    read_only,
    recovery_conflicts,
    timeouts,
    search_path,
    isolation_level,
    functions,
    connections,
    pooler,
    rights,
)


def _replicas(facts: Facts) -> Iterator[tuple[ServerFacts, Answers]]:
    """Yield the replicas that are some, with their answers"""
    for known, answers in facts.answering:
        if known is not facts.primary and answers.in_recovery:
            yield known, answers


def _named(functions: tuple[Function, ...], name: str) -> list[Function]:
    return [x for x in functions if name in (x.name, f"{x.schema}.{x.name}")]


def _ok(about: str, text: str) -> Found:
    return Severity.OK, (about,), text, None


def _warning(about: str | Iterable[str], text: str, advice: str) -> Found:
    names = (about,) if isinstance(about, str) else tuple(about)
    return Severity.WARNING, names, text, advice


def _error(about: str, text: str, advice: str) -> Found:
    return Severity.ERROR, (about,), text, advice
