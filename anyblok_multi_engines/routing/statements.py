# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""From a SQLAlchemy statement to its need, remembered by its shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import ref

from sqlalchemy import Dialect, TextClause
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.schema import BaseDDLElement, Sequence
from sqlalchemy.sql.cache_key import CacheKey
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.functions import FunctionElement

from .catalogue import Catalogue
from .need import NO_STATEMENT, Kind, Need

# The shapes of one application are thousands at most; past that the cache
# starts anew rather than grow.
MAX_SHAPES = 10_000

# Of no driver: a parameter is $1 for PostgreSQL itself, without a cast, and a
# % of the text stays one.
DIALECT: Dialect = PGDialect(  # type: ignore[no-untyped-call]
    paramstyle="numeric_dollar"
)

# With what a statement begins that may change what the catalogue says.
SCHEMA_WORDS = frozenset(["ALTER", "CALL", "CREATE", "DO", "DROP", "IMPORT"])

# What SQLAlchemy fills in when it executes: the values of an IN, a literal.
LATE_VALUE = re.compile(
    r"__\[POSTCOMPILE_\S+?(?:~~(.*?)~~REPL~~(.*?)~~)?\]", re.DOTALL
)

# In the dictionary of a statement: its need, and what that was worked out from.
NOTE = "_anyblok_multi_engines_need"


class Note(NamedTuple):
    """A need, noted on its statement

    :param of: returns the statement: one that is made of it has another need
    :param token: of the generation that gave the need
    """

    of: Callable[[], Any]
    token: object
    need: Need

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave it behind: of a statement that is pickled, nothing holds"""
        return type(None), ()


class Generation:
    """A catalogue, and the needs that it gave

    :param catalogue: the primary's
    """

    __slots__ = ("catalogue", "needs", "token")

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        #: by SQLAlchemy's cache key, and by the text
        self.needs: dict[Any, Need] = {}
        #: no other has it
        self.token = object()

    def noted(self, clause: Any) -> Need | None:
        """Return the need that is noted on a statement"""
        try:
            note = clause.__dict__.get(NOTE)
        except AttributeError:
            return None

        if note is None or note[1] is not self.token or note[0]() is not clause:
            return None

        return note[2]  # type: ignore[no-any-return]

    def known(self, clause: Any, key: CacheKey | None) -> Need | None:
        """Return the need of a shape, if it is known

        It is noted on the statement: the key of a large one takes long to
        hash, each time.

        :param clause: of the shape
        :param key: SQLAlchemy's, made once for each statement
        """
        need = None if key is None else self.needs.get(key.key)
        if need is not None:
            clause.__dict__[NOTE] = Note(ref(clause), self.token, need)

        return need

    def remember(self, key: Any, need: Need) -> None:
        """Remember a need

        :param key: hashable
        :param need: that the catalogue gave
        """
        if len(self.needs) >= MAX_SHAPES:
            self.needs.clear()

        self.needs[key] = need


class Statements:
    """The needs of the statements of one registry, remembered by shape

    The shape is SQLAlchemy's own cache key, which holds all of a statement
    but the values of its parameters; where there is none, its text. Many
    threads share it: a catalogue and what it gave are replaced together, by
    one assignment.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        refresh: Callable[[], Catalogue | None] | None = None,
    ) -> None:
        """Begin with nothing remembered

        :param catalogue: the primary's
        :param refresh: gives the catalogue of now, or None; called when a
            statement names what the catalogue does not know: once for each
            text, until there is another catalogue; None, where nobody
            answers, is no answer. Default None: never
        """
        self.refresh = refresh
        self._generation = Generation(catalogue)
        self._refused: dict[str, Need] = {}

    @property
    def catalogue(self) -> Catalogue:
        """The catalogue in which names are looked up

        To set another forgets what the one before gave.
        """
        return self._generation.catalogue

    @catalogue.setter
    def catalogue(self, catalogue: Catalogue) -> None:
        self._generation = Generation(catalogue)

    def forget(self) -> None:
        """Forget all needs; what a standby refused stays refused"""
        self._generation = Generation(self.catalogue)

    def refuse(self, clause: Any, because: str) -> None:
        """Remember that a standby has refused a statement of this shape

        :param clause: what was executed
        :param because: what the standby said
        """
        text = _text_of(clause)
        if isinstance(text, str):
            if len(self._refused) >= MAX_SHAPES:
                self._refused.clear()

            self._refused[text] = _unproven(because)
            self.forget()

    def need_of(self, clause: Any) -> Need:
        """Return what a statement needs

        :param clause: what ``Session.get_bind`` received; None: no statement
        :rtype: Need
        """
        evident = _evident_need(clause)
        if evident is not None:
            return evident

        generation = self._generation
        need = generation.noted(clause)
        if need is not None:
            return need

        key = _cache_key(clause)
        need = generation.known(clause, key)
        if need is None:
            text = _text_of(clause)
            if isinstance(text, Need):
                return text

            judged, need = self._judge(text, generation)
            if judged is not None and key is not None:
                judged.remember(key.key, need)

        return need

    def is_known_read(self, clause: Any) -> bool:
        """Return True for a shape that is known to be a plain read

        In a fraction of the time of :meth:`need_of`, which must be asked
        otherwise; so it must of a statement with options of its own.

        :param clause: what ``Session.get_bind`` received
        """
        generation = self._generation
        try:
            if clause._execution_options:
                return False

            need = generation.noted(clause) or generation.known(
                clause, clause._generate_cache_key()
            )
        except AttributeError:
            return False

        return need is not None and need.kind is Kind.READ

    def change_schema(self, clause: Any) -> bool:
        """Return True where a statement may change what the catalogue says

        :param clause: that has been executed
        """
        if not isinstance(clause, str | TextClause | BaseDDLElement):
            return False

        because = self.need_of(clause).because or ""
        return because.partition(" ")[0] in SCHEMA_WORDS

    def _judge(
        self, text: str, generation: Generation
    ) -> tuple[Generation | None, Need]:
        """Return the need of a text, and the generation that gave it

        :rtype: None for a generation: nobody answers now, who would know
        """
        need = self._refused.get(text) or generation.needs.get(text)
        if need is not None:
            return generation, need

        # Not at the start: sqlglot takes 9 MB, and a tenth of a second.
        from .sql import need_of_sql

        need = need_of_sql(text, generation.catalogue)
        if need.unknown and generation is not self._generation:
            # Another thread has asked meanwhile.
            generation = self._generation
            need = need_of_sql(text, generation.catalogue)

        if need.unknown and self.refresh is not None:
            # It may have been created since the catalogue was read.
            catalogue = self.refresh()
            if catalogue is None:
                return None, need

            if catalogue != self._generation.catalogue:
                self._generation = Generation(catalogue)

            if generation is not self._generation:
                generation = self._generation
                need = need_of_sql(text, generation.catalogue)

        generation.remember(text, need)
        return generation, need


def need_of(clause: Any, catalogue: Catalogue) -> Need:
    """Return what a statement needs, and remember nothing

    :param clause: any executable of SQLAlchemy, or SQL as a text
    :param catalogue: the primary's
    :rtype: Need
    """
    return Statements(catalogue).need_of(clause)


def shape_of(clause: Any) -> str:
    """Return the SQL of a statement, without the values of its parameters

    :param clause: any executable of SQLAlchemy, or SQL as a text
    :exception: any of SQLAlchemy's, and of the application's own elements
    """
    if isinstance(clause, str):
        return clause

    if isinstance(clause, FunctionElement):
        # As Connection.execute() does.
        clause = clause.select()

    text = str(clause.compile(dialect=DIALECT))
    return LATE_VALUE.sub(r"\1$1\2", text)


def _text_of(clause: Any) -> str | Need:
    """Return the SQL of a statement, or the need of what has none"""
    try:
        return shape_of(clause)
    except Exception as error:
        return _unproven(f"can't be compiled: {type(error).__name__}: {error}")


def _evident_need(clause: Any) -> Need | None:
    """Return the need of what its text has no say in, or None"""
    if clause is None:
        return NO_STATEMENT

    if isinstance(clause, Sequence):
        return Need(Kind.WRITE, "Sequence")

    if isinstance(clause, UpdateBase):
        return Need(Kind.WRITE, clause.__visit_name__.upper())

    if "schema_translate_map" in getattr(clause, "_execution_options", ()):
        # Not a part of the cache key, and other tables.
        return _unproven("schema_translate_map")

    return None


def _cache_key(clause: Any) -> CacheKey | None:
    """Return what statements of the same SQL share, or None"""
    generate = getattr(clause, "_generate_cache_key", None)
    return None if generate is None else generate()


def _unproven(because: str) -> Need:
    return Need(Kind.UNPROVEN, because)
