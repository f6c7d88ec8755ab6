# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What a reader must see, and which replica has it.

A position that is known answers without a question. What must be asked is
asked on the very connection that will read, but for the primary's position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import contextmanager, suppress
from logging import getLogger
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .catch_up import CatchUp
from .consistency import (
    Consistency,
    ConsistencyToken,
    FreshnessOptions,
    TimeToken,
    Token,
    decode,
    freshest,
)
from .engines import (
    is_in_transaction,
    is_lost,
    living,
    sqlstate_of,
)
from .errors import ConsistencyTokenError
from .health.probe import (
    NO_POSITIONS,
    primary_position,
    received_position,
    replica_identity,
    replica_position,
    summary_of,
)
from .positions import Known, Link, OnPromotion, Positions
from .reader import Reader, Readers, Seen
from .routing.decision import PRIMARY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import PoolProxiedConnection

logger = getLogger(__name__)

# Seconds for which a replica that was behind isn't asked again, where another
# one may be further.
LATELY = 0.02

# Units of work that a reader does on one replica before it looks at another:
# to prove that the other is no older costs a round trip.
UNITS_ON_ONE = 8

# With positions, strong asks the primary; without, it can't know of the commits
# of other processes.
PROCESS_WIDE = (Consistency.REGISTRY, Consistency.STRONG)

# In the info of a connection's record in the pool.
LINK = "anyblok_multi_engines.link"


class Behind(Exception):
    """No replica is known to have what the reader has seen"""


class Freshness:
    """What the readers of a registry must see, and which replica has it

    :param options: of the configuration
    :param engines: by the servers' names
    :param aside: gives a server's engine for questions of our own
    :param scope: AnyBlok's function that says whose session it is, or None
    :param is_down: says whether a server is known not to answer
    :param on_promotion: see :class:`~.positions.Positions`
    """

    def __init__(
        self,
        options: FreshnessOptions,
        engines: dict[str, Engine],
        aside: Callable[[str], Engine],
        scope: Callable[[], Any] | None = None,
        is_down: Callable[[str], bool] = lambda name: False,
        on_promotion: OnPromotion | None = None,
    ) -> None:
        self.options = options
        self.positions = Positions(on_promotion)
        self.catch_up = CatchUp()
        #: What any session of the process has committed
        self.process = Reader()
        self._engines = engines
        #: Gives who reads, of a registry
        self.reader = Readers(scope).current
        #: True where a session sees what it has seen before
        self.keeps_sessions = options.consistency is not Consistency.EVENTUAL
        self._is_down = is_down
        self._aside = aside
        # Till when everybody reads from the primary, once positions are no
        # longer to be had: what was promised by them can't be kept otherwise.
        self._lost_until = 0.0
        self._behind_at: dict[str, float] = {}
        self._last_behind = 0.0
        #: False where the servers give no positions
        self.has_positions = all(
            engine.dialect.driver in ("psycopg", "psycopg2")
            for engine in engines.values()
        )
        if not self.has_positions and len(engines) > 1:
            self._fall_back("The dialect has no positions")
            self._lost_until = 0.0

    def follow(self, parent: Freshness, registry: Any) -> None:
        """Know in a forked process what this thread knew before

        :param parent: of the process that was forked
        :param registry: that is read from
        """
        self.has_positions = parent.has_positions
        for mine, theirs in (
            (self.process, parent.process),
            (self.reader(registry), parent.reader(registry)),
        ):
            mine.knows = theirs.knows.without_instances()

    @property
    def compares(self) -> bool:
        """Return True where it is known which server has what was seen"""
        return self.keeps_sessions and self.has_positions

    def stays_on(self, reader: Reader) -> str | None:
        """Return the server that a reader's next unit of work stays on

        :param reader: None for it: any will do
        """
        knows = reader.knows
        if not self.keeps_sessions or (
            self.has_positions and knows.units % UNITS_ON_ONE == 0
        ):
            return None

        return knows.server

    def units_left(self, reader: Reader) -> int:
        """Return how many units of work a reader still does where it has read

        :param reader: that has seen and noted all that it has read there
        :rtype: 0 where each unit of work must see more than the one before
        """
        if self.options.consistency is not Consistency.SESSION:
            return 0

        return -reader.knows.units % UNITS_ON_ONE

    def must_ask_primary(self, reader: Reader) -> bool:
        """Return True while the primary alone will do for a reader

        :param reader: who reads
        """
        until = reader.knows.primary_until
        if self.options.consistency in PROCESS_WIDE:
            until = max(until, self.process.knows.primary_until)

        until = max(until, self._lost_until)
        return bool(until) and time.monotonic() < until

    def was_behind_lately(self) -> bool:
        """Return True where a replica has been found behind a moment ago"""
        return time.monotonic() - self._last_behind < LATELY

    def promising(
        self, names: Collection[str], floor: ConsistencyToken
    ) -> tuple[list[str], str | None]:
        """Return which replicas may have a position, or the furthest one

        Without a question: a replica may, where it is known to, or where it
        hasn't been found behind lately.

        :param names: of the replicas
        :param floor: the position
        """
        lately = time.monotonic() - LATELY
        promising = []
        for name in names:
            if self._behind_at.get(name, 0.0) < lately:
                promising.append(name)
                continue

            known = self.positions.known_of(name)
            if known is not None and floor.is_reached_by(known.position):
                promising.append(name)

        return promising, None if promising else self.nearest(names)

    def nearest(self, names: Iterable[str]) -> str | None:
        """Return the replica that is known to be furthest

        :param names: of the replicas
        :rtype: None where nothing is known of any
        """
        nearest, furthest = None, -1
        for name in names:
            known = self.positions.known_of(name)
            if known is not None and known.position.lsn > furthest:
                nearest, furthest = name, known.position.lsn

        return nearest

    def note_behind(self, name: str) -> None:
        """Note that a replica has been found behind what a reader must see

        :param name: of the replica
        """
        self._behind_at[name] = self._last_behind = time.monotonic()

    def floor_at_start(
        self, reader: Reader, usable: Collection[str]
    ) -> ConsistencyToken | None:
        """Return what a unit of work that begins must see

        :param reader: who reads
        :param usable: the names of the replicas that can be asked
        :exception: Behind, where the primary must be asked and isn't there
        """
        floor = reader.knows.floor
        if not self.has_positions:
            return floor

        consistency = self.options.consistency
        if consistency is Consistency.STRONG:
            return freshest(floor, self._primary_now().position)

        if consistency is Consistency.REGISTRY:
            self.cover(self.process, self.process.knows.seen, usable)
            floor = freshest(floor, self.process.knows.floor)

        return floor

    def primary_since(self, at: float) -> ConsistencyToken:
        """Return a position of the primary at or after a moment

        :param at: seconds of ``time.monotonic()``
        :exception: Behind, where the primary must be asked and isn't there
        """
        known = self.positions.primary_since(at) or self._primary_now()
        return known.position

    def cover(
        self, reader: Reader, seen: Sequence[Seen], usable: Collection[str]
    ) -> None:
        """Learn a position that has what a reader has seen

        Before it reads from another server.

        :param reader: who reads
        :param seen: what it has seen, on other servers
        :param usable: the names of the replicas that can be asked
        :exception: Behind, where none is to be had
        """
        if not seen:
            return

        asked = [(each, each.at) for each in seen]
        found = [self._covering(each, usable) for each in seen]
        if None in found and PRIMARY in self._engines:
            found = [self._seen_anywhere(usable)]

        # In read-only mode there is nobody who knows more, and nothing else to
        # read from.
        position = None
        for each in found:
            position = freshest(position, each)

        reader.note_covered(seen, position)
        for again, at in asked:
            if again.at != at:
                # Read meanwhile, by another thread of the request.
                reader.note_read(again)

    def is_fresh(
        self,
        name: str,
        connection: Connection,
        reader: Reader,
        floor: ConsistencyToken | None,
        until: float | None,
        had: ConsistencyToken | None,
    ) -> bool:
        """Return True where a replica has what is asked for

        :param name: of the replica
        :param connection: to the replica, that will read
        :param reader: who reads; what it has seen elsewhere is in the floor
        :param floor: the position to reach; None: nothing is asked for
        :param until: seconds of ``time.monotonic()``, to wait at most; None:
            it is asked once
        :param had: a position that it had when its transaction began
        :exception: DBAPIError, Behind
        """
        link = self.link_of(connection)
        if link is None:
            return not self.has_positions

        if self.positions.is_foreign(link):
            return False

        # It has restarted, or is another one behind the same name.
        others = [x for x in reader.knows.seen if not self._is_same(x, link)]
        self.cover(reader, others, ())
        floor = freshest(floor, reader.knows.floor)
        if floor is None:
            return True

        driver = connection.connection.dbapi_connection
        if is_in_transaction(driver):
            # A snapshot, or a cursor: it gets no fresher.
            return floor.is_reached_by(had)

        if floor.timeline < self.positions.timeline:
            # What was written then may be lost. An ordinary role learns late
            # that its replica has followed: its position would seem to do.
            return False

        if floor.is_reached_by(link.position):
            return True

        try:
            return self.catch_up.has_reached(
                name, driver, link, reader, floor, until
            )
        except connection.dialect.loaded_dbapi.Error as error:
            if self._is_refused(error):
                return True

            wrapped = _wrapped(connection, error)
            if is_lost(connection, wrapped):
                raise wrapped from error

            logger.debug("A replica's position: %s", summary_of(error))
            return False

    def link_of(self, connection: Connection) -> Link | None:
        """Return what a connection to a replica leads to, if it is known

        :param connection: to the replica
        """
        link: Link | None = connection.info.get(LINK)
        return link

    def identify(self, server: str, driver: Any, record: Any) -> None:
        """Ask a new connection to a replica what it leads to

        :param server: the replica's name
        :param driver: the new connection
        :param record: of the pool
        """
        if not self.has_positions:
            return

        since = time.monotonic()
        try:
            found = replica_identity(driver)
        except self._engines[server].dialect.loaded_dbapi.Error as error:
            if self._is_refused(error):
                return

            raise

        if found.known is not None and PRIMARY not in self._engines:
            # Nobody else says it.
            self.positions.system_id = found.known.position.system_id

        instance = self.positions.instance(server, found.key)
        link = record.info[LINK] = Link(
            instance, 0.0 if found.pooled else since
        )
        if found.known is not None:
            link.note(found.known)

    def note_commit(self, reader: Reader, driver: Any) -> None:
        """Ask how far the primary is, after a commit that may have written

        It raises nothing: the commit is done.

        :param reader: who has written
        :param driver: the connection that has committed
        """
        if self.has_positions:
            try:
                known = primary_position(driver)
            except Exception as error:
                if not self._is_refused(error):
                    self._note_unknown(reader, error)
                    return
            else:
                self.positions.note_primary(known)
                reader.note_written(known.position, known.asked_at)
                self.process.note_written(known.position, known.asked_at)
                return

        now, sticky = time.monotonic(), self.options.sticky
        reader.note_write_without_position(now, sticky)
        self.process.note_write_without_position(now, sticky)

    def note_primary_read(self, reader: Reader, driver: Any) -> None:
        """Ask how far the primary is, after reads that no replica could serve

        So a later read may find a replica that has caught up.

        :param reader: who has read
        :param driver: the connection that has read, without a transaction
        """
        seen = Seen(PRIMARY, None, time.monotonic())
        reader.note_read(seen)
        with suppress(Exception):
            known = primary_position(driver)
            self.positions.note_primary(known)
            reader.note_covered([seen], self._visible(known))

    def _note_unknown(self, reader: Reader, error: Exception) -> None:
        logger.warning(
            "The position after a commit can't be asked; the next read asks "
            "again, or goes to the primary: %s",
            summary_of(error),
        )
        seen = Seen(PRIMARY, None, time.monotonic())
        reader.note_unknown_write(seen)
        self.process.note_unknown_write(seen)

    def token_of(self, reader: Reader) -> str | None:
        """Return the token after a reader's last commit that wrote

        :param reader: who has written
        :rtype: None where it hasn't written
        """
        if reader.knows.unknown_write:
            with suppress(Behind):
                known = self._primary_now()
                reader.note_written(known.position, known.asked_at)

        knows = reader.knows
        if not self.has_positions or knows.unknown_write:
            return self._time_token(reader)

        return None if knows.written is None else str(knows.written)

    def _time_token(self, reader: Reader) -> str | None:
        knows = reader.knows
        now = time.monotonic()
        wrote_at = now if knows.unknown_write else knows.wrote_at
        if wrote_at is None or now >= wrote_at + self.options.sticky:
            return None

        return str(
            TimeToken(time.time() + wrote_at + self.options.sticky - now)
        )

    def read_after(self, reader: Reader, text: str) -> None:
        """Let a reader's next reads be at least as fresh as a token

        :param reader: who reads
        :param text: the token
        :exception: ConsistencyTokenError
        """
        token = self.token(text)
        left = self.options.sticky
        if isinstance(token, ConsistencyToken):
            reader.must_see(token)
            if self.has_positions:
                return
        else:
            left = min(token.until - time.time(), left)

        if left > 0:
            reader.must_ask_primary(time.monotonic() + left)

    def token(self, text: str) -> Token:
        """Return what a token says, if it is of this cluster

        :param text: the token
        :exception: ConsistencyTokenError
        """
        token = decode(text)
        if isinstance(token, ConsistencyToken):
            mine = self.learn_system_id()
            if mine not in (None, token.system_id):
                raise ConsistencyTokenError(
                    "The token is of another cluster (system identifier "
                    f"{token.system_id}, and this one is {mine}): its "
                    "position means nothing here"
                )

        return token

    def learn_system_id(self) -> int | None:
        """Return the cluster's system identifier; None: nobody says it"""
        if self.positions.system_id is None and self.has_positions:
            with suppress(Behind):
                self._primary_now()

        return self.positions.system_id

    def _covering(
        self, seen: Seen, usable: Collection[str]
    ) -> ConsistencyToken | None:
        """Return a position that has what was seen; None: the primary knows"""
        position = self._position_since(seen)
        if (
            position is None
            and seen.instance is not None
            and seen.server in usable
        ):
            # The one that was read from, and not the primary, which is ahead.
            return self._ask_again(seen)

        return position

    def _position_since(self, seen: Seen) -> ConsistencyToken | None:
        """Return a known position that has what was seen"""
        known = None if seen.instance is None else seen.instance.known
        if (
            known is not None
            and known.since <= seen.at <= known.asked_at
            and self.positions.system_id in (None, known.position.system_id)
        ):
            position: ConsistencyToken = known.position
            return position

        of_primary = self.positions.primary_since(seen.at)
        return None if of_primary is None else self._visible(of_primary)

    def _visible(self, known: Known) -> ConsistencyToken | None:
        """Return a position that has all that could be seen on the primary"""
        return freshest(known.shown, self.process.knows.written)

    def _seen_anywhere(
        self, usable: Collection[str]
    ) -> ConsistencyToken | None:
        """Return a position that has all that could be seen until now

        While the primary is away, all that it has sent: more can't be had.

        :exception: Behind, where nobody can be asked
        """
        try:
            return self._visible(self._primary_now())
        except Behind:
            if not self._is_down(PRIMARY):
                # It has no time for this question, and may serve all the same.
                raise

            found = [self._received(x) for x in usable if x != PRIMARY]
            position = None
            for each in found:
                position = freshest(position, each)

            if position is None:
                raise

            return position

    def _received(self, name: str) -> ConsistencyToken | None:
        """Return how much of the primary's WAL a replica has received"""
        with suppress(*self._errors(name)), self._asking(name) as connection:
            return received_position(connection.dbapi_connection)

        return None

    def _ask_again(self, seen: Seen) -> ConsistencyToken | None:
        """Ask a replica that was read from how far it is by now

        :rtype: None where it isn't sure to be what it was
        """
        name = seen.server
        with suppress(*self._errors(name)), self._asking(name) as connection:
            link = connection.info.get(LINK)
            if link is not None and self._is_same(seen, link):
                known = replica_position(connection.dbapi_connection)
                if known is not None:
                    link.note(known)
                    return self._of_cluster(known.position)

        return None

    def _of_cluster(
        self, position: ConsistencyToken
    ) -> ConsistencyToken | None:
        """Return a position, if it is of the primary's cluster"""
        mine = self.positions.system_id
        return position if mine in (None, position.system_id) else None

    def _is_same(self, seen: Seen, link: Link) -> bool:
        """Return True where a connection leads to what was seen, or to more"""
        return link.instance is seen.instance and (
            link.since <= seen.at or self._has_run_since(seen)
        )

    def _has_run_since(self, seen: Seen) -> bool:
        """Return True where a connection of then lives: its server still runs

        Otherwise the new one may lead to a standby that has crashed in between.
        """
        links: Iterable[Link | None] = (
            record.info.get(LINK)
            for record in living(self._engines[seen.server])
        )
        return any(
            link is not None
            and link.instance is seen.instance
            and link.since <= seen.at
            for link in links
        )

    def _primary_now(self) -> Known:
        """Return how far the primary is

        :exception: Behind, where it isn't there
        """
        if PRIMARY not in self._engines or not self.has_positions:
            raise Behind("There is no primary to ask")

        if self._is_down(PRIMARY):
            raise Behind("The primary is down")

        errors = self._errors(PRIMARY)
        try:
            known = self._ask_primary()
        except errors as error:
            self._is_refused(error)
            raise Behind(summary_of(error)) from error

        self.positions.note_primary(known)
        return known

    def _ask_primary(self) -> Known:
        with self._asking(PRIMARY) as connection:
            try:
                return primary_position(connection.dbapi_connection)
            except self._errors(PRIMARY):
                if self._is_down(PRIMARY):
                    raise

                # It may be of before a restart.
                connection.invalidate()

        with self._asking(PRIMARY) as connection:
            return primary_position(connection.dbapi_connection)

    @contextmanager
    def _asking(self, name: str) -> Iterator[PoolProxiedConnection]:
        """Give a connection for a question aside; one that fails is left"""
        connection = self._aside(name).raw_connection()
        try:
            yield connection
        except Exception:
            connection.invalidate()
            raise
        finally:
            connection.close()

    def _errors(self, name: str) -> tuple[type[Exception], ...]:
        """Return what a question to a server may raise"""
        dialect = self._engines[name].dialect
        return (SQLAlchemyError, dialect.loaded_dbapi.Error)

    def _is_refused(self, error: BaseException) -> bool:
        """Return True where a server gives no positions, now and for ever"""
        if sqlstate_of(error) not in NO_POSITIONS:
            return False

        if self.has_positions:
            self._fall_back(summary_of(error))

        return True

    def _fall_back(self, why: str) -> None:
        self._lost_until = time.monotonic() + self.options.sticky
        self.has_positions = False
        logger.warning(
            "No WAL positions are to be had, so a session that has written "
            "reads from the primary for %s s (--db-ro-sticky): %s",
            self.options.sticky,
            why,
        )


def _wrapped(connection: Connection, error: Exception) -> DBAPIError:
    """Return a driver's error as SQLAlchemy would raise it"""
    dialect = connection.dialect
    wrapped = DBAPIError.instance(
        None, None, error, dialect.loaded_dbapi.Error, dialect=dialect
    )
    assert isinstance(wrapped, DBAPIError)
    return wrapped
