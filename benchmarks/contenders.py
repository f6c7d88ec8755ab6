# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Who is measured, each in a process of its own: what runs there.

This module runs in the contenders' processes, and imports nothing of the
plugin: a process without it has nothing of it in its memory.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from itertools import count, cycle
from multiprocessing.connection import Connection
from pathlib import Path
from random import choice
from statistics import median
from time import perf_counter, process_time, sleep
from timeit import Timer
from typing import Any

DATABASE = "bench"

#: Objects that are only read, and how many there are of those that each
#: contender changes, one after the other.
READ = range(1, 101)

#: Calls of ``get_bind`` that are timed together.
BATCH = 1000


class Unavailable(Exception):
    """The contender isn't installed"""


class Contender:
    """What a contender can be asked for

    A unit of work is a generator: what stands between its two ``yield`` is
    timed.

    :param options: of AnyBlok, or ``primary`` and ``replicas``: URLs
    """

    #: SQLAlchemy's session, or AnyBlok's registry
    session: Any
    Book: Any
    #: gives the session of a thread
    new_session: Callable[[], Any]

    def __init__(self, options: dict[str, Any]) -> None:
        from sqlalchemy import select, text

        self._select, self._text = select, text
        self._keys = cycle(READ)
        self._changed: Iterator[int] = iter(())
        self._titles = (f"title {n}" for n in count())
        self._looks = self._on_replica = 0
        self._mixes: dict[int, Any] = {}
        self.start(options)

    def start(self, options: dict[str, Any]) -> None:
        """Start it

        :exception: Unavailable
        """
        raise NotImplementedError

    def times(self, unit: str, number: int) -> list[float]:
        """Do units of work, and return the seconds of each

        :param unit: the name of the method
        :param number: how many
        """
        make = getattr(self, unit)
        taken = []
        for _ in range(number):
            steps = make()
            next(steps)
            start = perf_counter()
            next(steps)
            taken.append(perf_counter() - start)
            next(steps, None)

        self.session.rollback()
        return taken

    def may_change(self, first: int, last: int) -> None:
        """Give it the rows that it alone changes, each of them once"""
        self._changed = iter(range(first, last))

    def mix(self, seconds: float, threads: int) -> Any:
        """Have threads do a mix of units of work; see :mod:`.mix`

        :param seconds: for which they do
        :param threads: how many; their rows have been given
        :rtype: :class:`.mix.Seen`
        """
        from .mix import Mix

        known = self._mixes.get(threads)
        if known is None:
            known = self._mixes[threads] = Mix(
                self.new_session, self.Book, self._changed, threads
            )

        return known.run(seconds)

    def grow(self, what: str, *arguments: Any) -> Any:
        """Return what a function of :mod:`.grow` returns

        :param what: its name
        """
        from . import grow

        return getattr(grow, what)(self, *arguments)

    def busy_servers(self, seconds: float, threads: int, sleep: float) -> float:
        """Have threads read what takes a server long; see :mod:`.mix`

        :param seconds: for which they do
        :param threads: how many
        :param sleep: seconds that a statement takes the server
        :rtype: units of work per second
        """
        from .mix import busy_servers

        return busy_servers(self.new_session, seconds, threads, sleep)

    def read(self, key: int) -> Any:
        """Return an object, by a SELECT"""
        Book = self.Book
        statement = self._select(Book).where(Book.id == key)
        return self.session.execute(statement).scalar_one()

    def add(self, title: str) -> None:
        """Add an object, by an INSERT"""
        self.session.add(self.Book(title=title))
        self.session.flush()

    # Units of work

    def select_open(self) -> Iterator[None]:
        """A SELECT in a unit of work that has read before"""
        if not self.session.in_transaction():
            self.read(next(self._keys))

        key = next(self._keys)
        yield
        self.read(key)
        yield

    def select_unit(self) -> Iterator[None]:
        """A SELECT, and the end of the unit of work"""
        key = next(self._keys)
        yield
        self.read(key)
        self.session.rollback()
        yield

    def insert_unit(self) -> Iterator[None]:
        """An INSERT, and the commit"""
        title = next(self._titles)
        yield
        self.add(title)
        self.session.commit()
        yield

    def read_modify_write(self) -> Iterator[None]:
        """An object is read, changed and committed"""
        self.wait()
        key = next(self._changed)
        yield
        book = self.read(key)
        self.note_where()
        book.copies += 1
        self.session.commit()
        yield

    def write_then_read(self) -> Iterator[None]:
        """An INSERT and the commit; then a SELECT in another unit of work"""
        title = next(self._titles)
        yield
        self.add(title)
        self.session.commit()
        self.read(1)
        self.note_where()
        self.session.rollback()
        yield

    # What else is asked

    def wait(self) -> None:
        """Wait until a replica serves this session, where there are some"""
        self.read(1)
        self.session.rollback()

    def note_where(self) -> None:
        """Note whether a replica serves this unit of work"""

    def share(self) -> float:
        """Return which part of the units of work a replica has served"""
        found = self._on_replica / max(self._looks, 1)
        self._on_replica = self._looks = 0
        return found

    def binds_inside(
        self, text: bool, placed: bool, number: int
    ) -> list[float]:
        """Return the seconds of ``get_bind`` inside of ``Session.execute``

        :param text: True: of a text(); False: of an ORM SELECT by key
        :param placed: True: in a unit of work that has read before
        :param number: how many
        """
        watch = Watch(self.orm_session)
        for _ in range(number):
            if placed:
                # Our second one settles where the next ones go.
                self.read(1)
                self.read(1)

            statement = self._statement(text)
            # The statement keeps it: who asks first computes it, and
            # SQLAlchemy asks when it looks for the compiled statement.
            statement._generate_cache_key()
            with watch:
                self.session.execute(statement)

            self.session.rollback()

        return watch.taken

    def binds(
        self, text: bool, placed: bool, number: int, executing: bool = False
    ) -> list[float]:
        """Return the seconds of a call of ``get_bind``, of each batch

        :param text: True: of a text(); False: of an ORM SELECT by key
        :param placed: True: in a unit of work that has read before
        :param number: of batches
        :param executing: True: with all that ``Session.execute`` gives
        :exception: RuntimeError, where a call has begun a unit of work
        """
        session = self.orm_session
        statement = self._statement(text)
        mapper = None if text else self.Book.__mapper__
        # The statement is one that was executed before.
        self.session.execute(statement)
        self.session.rollback()
        if placed:
            self.session.execute(statement)

        more, names = self.given() if executing else ("", {})
        batch = Timer(
            f"session.get_bind(mapper, clause=statement{more})",
            globals={
                "session": session,
                "mapper": mapper,
                "statement": statement,
                **names,
            },
        )
        taken = [batch.timeit(BATCH) / BATCH for _ in range(number)]
        if session.in_transaction() is not placed:
            raise RuntimeError("get_bind has begun a unit of work")

        self.session.rollback()
        return taken

    def given(self) -> tuple[str, dict[str, Any]]:
        """Return more arguments that an execution gives, and their names"""
        return "", {}

    def _statement(self, text: bool) -> Any:
        """Return a statement, built anew as an application does"""
        if text:
            return self._text("select title from book where id = 1")

        return self._select(self.Book).where(self.Book.id == 1)

    @property
    def orm_session(self) -> Any:
        """Return SQLAlchemy's session"""
        return self.session

    def use_primary(self) -> None:
        """Write something, and let go"""
        self.add("used")
        self.session.commit()

    def memory(self) -> dict[str, float]:
        """Return the megabytes of this process: all, and what it has alone"""
        gc.collect()
        text = Path("/proc/self/smaps_rollup").read_text()
        found = {
            words[0]: int(words[1]) / 1024
            for words in map(str.split, text.splitlines()[1:])
        }
        own = found["Private_Clean:"] + found["Private_Dirty:"]
        return {"rss": found["Rss:"], "uss": own}

    def idle(self, seconds: float) -> float:
        """Do nothing, and return the seconds of CPU of this process

        :param seconds: how long
        """
        begun = process_time()
        sleep(seconds)
        return process_time() - begun


class Watch:
    """Times ``get_bind`` of a session

    Without the connection that it may take out of the pool: the statement
    needs it anyway.

    :param session: whose method is wrapped while the block goes on
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._depth = 0
        self._inside = 0.0
        self._cost = 0.0
        self.taken: list[float] = []
        # What the clock and the wrapper take themselves.
        nothing = self._timed(lambda: None)
        for _ in range(1000):
            nothing()

        self._cost = median(self.taken)
        self.taken.clear()

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)

            self._depth, self._inside = 1, 0.0
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds = perf_counter() - start
                self._depth = 0
                self.taken.append(seconds - self._inside - self._cost)

        return timed

    def _connecting(self, function: Any) -> Any:
        def connecting(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside += perf_counter() - start

        return connecting

    def __enter__(self) -> None:
        session = self._session
        session.get_bind = self._timed(session.get_bind)
        session._connection_for_bind = self._connecting(
            session._connection_for_bind
        )

    def __exit__(self, *error: Any) -> None:
        del self._session.get_bind
        del self._session._connection_for_bind


class Stock(Contender):
    """AnyBlok without the plugin"""

    def start(self, options: dict[str, Any]) -> None:
        """Hide the plugin's entry points, and build a registry"""
        hide_plugin()
        self.build(options)

    def build(self, options: dict[str, Any]) -> None:
        """Build a registry"""
        size = options.pop("pool_size", None)
        if size is not None:
            limit_pool(size)

        self.session = registry_of(options)
        self.Book = self.session.Book

    @property
    def orm_session(self) -> Any:
        """Return the session of this thread"""
        return self.session.session

    def new_session(self) -> Any:
        """Return the session of this thread"""
        return self.session.session

    def add(self, title: str) -> None:
        """Add an object, as AnyBlok has it"""
        self.Book.insert(title=title)


class Ours(Stock):
    """AnyBlok with the plugin"""

    def start(self, options: dict[str, Any]) -> None:
        """Build a registry"""
        self.build(options)

    def given(self) -> tuple[str, dict[str, Any]]:
        """Return the argument that says which execution it is"""
        from anyblok_multi_engines.provenance import CALL
        from anyblok_multi_engines.session import Call

        return f", {CALL}=Call(None)", {"Call": Call}

    def wait(self) -> None:
        """Wait until a replica has what this session must see"""
        on_replica = False
        while not on_replica:
            self.read(1)
            on_replica = self.is_on_replica()
            self.session.rollback()

    def is_on_replica(self) -> bool:
        """Return True where a replica serves this unit of work"""
        return self.orm_session.placement().replica is not None

    def note_where(self) -> None:
        """Note whether a replica serves this unit of work"""
        self._looks += 1
        self._on_replica += self.is_on_replica()


class Least(Stock):
    """AnyBlok with a bare ``get_bind``, and the replicas in AUTOCOMMIT

    Reads from replicas, and keeps no promise, but for the one unit of work that
    does it by hand.
    """

    def start(self, options: dict[str, Any]) -> None:
        """Hide the plugin's entry points, and build a registry"""
        from sqlalchemy import bindparam

        hide_plugin()
        split(options.pop("db_ro_urls"), options.get("pool_size"))
        self.build(options)
        book = self.Book.__table__
        found = self._select(book.c.copies).where(book.c.id == bindparam("key"))
        self._lock = found.with_for_update(key_share=True)
        self._replayed = self._text(
            "SELECT pg_last_wal_replay_lsn() >= CAST(:position AS pg_lsn)"
        )
        self._position = "0/0"

    def wait(self) -> None:
        """Wait until the session's replica has what was written last"""
        has_it = False
        while not has_it:
            found = self.session.execute(
                self._replayed, {"position": self._position}
            )
            has_it = found.scalar_one()
            self.session.rollback()

    def read_modify_write(self) -> Iterator[None]:
        """The same, compared and locked first, and the position asked after"""
        key = next(self._changed)
        self.wait()
        session = self.orm_session
        yield
        book = self.read(key)
        book.copies += 1
        primary = session.connection(bind_arguments={"bind": session.bind})
        before = primary.execute(self._lock, {"key": key}).scalar_one()
        if before != book.copies - 1:
            raise RuntimeError("somebody else has changed it")

        driver = primary.connection.dbapi_connection
        self.session.commit()
        self._position = position_of(driver)
        yield


class Plain(Contender):
    """A session of SQLAlchemy, without AnyBlok"""

    def start(self, options: dict[str, Any]) -> None:
        """Map the table, and make a session"""
        self.Book = mapped_book()
        size = options.pop("pool_size", None)
        pool = {"pool_size": size, "max_overflow": 0} if size else {}
        self.new_session = self.session_maker(**options, pool=pool)
        self.session = self.new_session()

    def session_maker(
        self, primary: str, replicas: list[str], pool: dict[str, Any]
    ) -> Callable[[], Any]:
        """Return what makes sessions

        :param pool: options of each engine
        """
        raise NotImplementedError


class Recipe(Plain):
    """The usual ``get_bind``: flushes and DML to the primary"""

    def session_maker(
        self, primary: str, replicas: list[str], pool: dict[str, Any]
    ) -> Callable[[], Any]:
        """Return the recipe's session"""
        from sqlalchemy import UpdateBase, create_engine
        from sqlalchemy.orm import Session

        engines = [create_engine(url, **pool) for url in replicas]
        writer = create_engine(primary, **pool)

        class RecipeSession(Session):
            def get_bind(
                self, mapper: Any = None, *, clause: Any = None, **kwargs: Any
            ) -> Any:
                if self._flushing or isinstance(clause, UpdateBase):
                    return writer

                return choice(engines)

        return RecipeSession


class AdvancedAlchemy(Plain):
    """Advanced Alchemy's router"""

    def session_maker(
        self, primary: str, replicas: list[str], pool: dict[str, Any]
    ) -> Callable[[], Any]:
        """Return the router's session maker"""
        try:
            from advanced_alchemy.config.routing import RoutingConfig
            from advanced_alchemy.routing import RoutingSyncSessionMaker
        except ImportError as error:
            raise Unavailable(
                "pip install advanced-alchemy: " + str(error)
            ) from error

        return RoutingSyncSessionMaker(  # type: ignore[no-any-return]
            RoutingConfig(
                primary_connection_string=primary, read_replicas=replicas
            ),
            engine_config=pool,
        )


CONTENDERS: dict[str, type[Contender]] = {
    "stock": Stock,
    "ours": Ours,
    "least": Least,
    "recipe": Recipe,
    "advanced-alchemy": AdvancedAlchemy,
}


def hide_plugin() -> None:
    """Let AnyBlok find no entry point of the plugin, but for the test bloks"""
    import anyblok
    import anyblok.blok
    import anyblok.migration
    import anyblok.registry
    from anyblok.pkg_metadata import iter_entry_points

    def without_plugin(group: str) -> list[Any]:
        return [
            x
            for x in iter_entry_points(group)
            if group == "test_bloks" or "multi_engines" not in x.name
        ]

    for module in (anyblok, anyblok.blok, anyblok.migration, anyblok.registry):
        module.iter_entry_points = without_plugin


def limit_pool(size: int) -> None:
    """Have AnyBlok's engines keep so many connections, and make no more

    :param size: connections of an engine
    """
    from anyblok.registry import RegistryManager

    class Pool:
        def init_engine_options(self, url: Any) -> Any:
            options = super().init_engine_options(url)  # type: ignore[misc]
            return {**options, "pool_size": size, "max_overflow": 0}

    RegistryManager.register_mixin("benchmarks", Pool)


def split(urls: list[str], size: int | None) -> None:
    """Have each of AnyBlok's sessions read from a replica

    :param urls: of the replicas
    :param size: connections of a pool; None: SQLAlchemy's default
    """
    from anyblok.registry import RegistryManager
    from sqlalchemy import Engine, UpdateBase, create_engine

    pool = {"pool_size": size, "max_overflow": 0} if size else {}
    engines = cycle(
        create_engine(url, isolation_level="AUTOCOMMIT", **pool) for url in urls
    )

    class Bare:
        bind: Any
        _flushing: bool
        _reads_from: Engine | None = None

        def get_bind(
            self, mapper: Any = None, clause: Any = None, **kwargs: Any
        ) -> Any:
            if (
                self._flushing
                or clause is None
                or isinstance(clause, UpdateBase)
            ):
                return kwargs.get("bind") or self.bind

            if self._reads_from is None:
                self._reads_from = next(engines)

            return self._reads_from

    class Split:
        loaded_cores: dict[str, list[type]]

        def create_session_factory(self) -> None:
            cores = self.loaded_cores["Session"]
            if Bare not in cores:
                cores.insert(0, Bare)

            super().create_session_factory()  # type: ignore[misc]

    RegistryManager.register_mixin("benchmarks.split", Split)


def position_of(driver: Any) -> str:
    """Return how far the primary is, as it takes least

    :param driver: psycopg2's connection, without a transaction
    """
    level, driver.isolation_level = driver.isolation_level, None
    driver.autocommit = True
    with driver.cursor() as cursor:
        cursor.execute("SELECT pg_current_wal_insert_lsn()")
        ((position,),) = cursor.fetchall()

    driver.autocommit = False
    driver.isolation_level = level
    return str(position)


def load_anyblok(options: dict[str, Any]) -> None:
    """Load AnyBlok's options and bloks in a process that has none yet

    :param options: AnyBlok's
    """
    from anyblok import load_init_function_from_entry_points
    from anyblok.blok import BlokManager
    from anyblok.config import Configuration

    # The arguments aren't AnyBlok's, and nobody asks which files it reads.
    del sys.argv[1:]
    with redirect_stdout(StringIO()):
        load_init_function_from_entry_points(unittest=True)
        Configuration.load_config_for_test()

    BlokManager.load(entry_points=("bloks", "test_bloks"))
    Configuration.update(db_name=DATABASE, **options)


def registry_of(options: dict[str, Any]) -> Any:
    """Return the registry of a process that has loaded nothing yet

    :param options: AnyBlok's
    """
    load_anyblok(options)
    from anyblok.registry import RegistryManager

    registry = RegistryManager.get(DATABASE)
    if not registry.has("Model.Book"):
        registry.upgrade(install=["test-me-blok4"])

    registry.commit()
    return registry


def start(name: str, options: dict[str, Any]) -> None:
    """Build a registry, print the seconds of that, and end

    :param name: "stock": without the plugin
    :param options: AnyBlok's
    """
    import anyblok.registry  # noqa: F401

    if name == "stock":
        hide_plugin()

    begun = perf_counter()
    registry = registry_of(options)
    print(perf_counter() - begun)
    registry.close()


def createdb(name: str) -> None:
    """Run ``anyblok_createdb`` with this process's arguments

    :param name: "stock": without the plugin
    """
    if name == "stock":
        hide_plugin()

    from anyblok.scripts import anyblok_createdb

    anyblok_createdb()


def mapped_book() -> Any:
    """Return a class for the table that AnyBlok has made"""
    from sqlalchemy import JSON
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase):
        pass

    # By hand: ``from __future__ import annotations`` hides the local names.
    columns = {
        "id": Mapped[int],
        "title": Mapped[str],
        "copies": Mapped[int],
        "facts": Mapped[Any],
        "shelf_id": Mapped[int],
    }
    return type(
        "Book",
        (Base,),
        {
            "__tablename__": "book",
            "__annotations__": columns,
            "id": mapped_column(primary_key=True),
            "copies": mapped_column(default=0),
            "facts": mapped_column(JSON),
            "shelf_id": mapped_column(nullable=True),
        },
    )


def serve(pipe: Connection, name: str, options: dict[str, Any]) -> None:
    """Do what the parent asks for, until it closes the pipe

    What is sent back is ("", answer) or (traceback, None).

    :param pipe: of the parent
    :param name: of the contender
    :param options: for its start
    """
    with pipe:
        try:
            contender = CONTENDERS[name](options)
        except Unavailable as error:
            pipe.send((str(error), None))
            return

        pipe.send(("", None))
        while True:
            try:
                method, *arguments = pipe.recv()
            except EOFError:
                return

            try:
                pipe.send(("", getattr(contender, method)(*arguments)))
            except Exception:
                pipe.send((traceback.format_exc(), None))
