# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""From SQL as a text to its need: what is not proven is no read.

In three steps. The text is cut into PostgreSQL's own tokens, by the rules of
its ``scan.l``: comments and constants can hide nothing. Of the tokens a plain
text is written anew, in which the constants are all the same and the names
are all quoted: sqlglot can't take one for a keyword or a function of another
database, and its parse says what kind of statement it is, and of which
relations. And every name, operator and type is looked up in the catalogue.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.errors import ParseError

from .catalogue import Catalogue
from .need import READ, Kind, Need

# Its parsers are new ones each time: threads may share it.
PARSER = Postgres()
# Nothing is to be done, nor logged, about the 1 of array[1].
PARSER.INDEX_OFFSET = 0

# More is not parsed: sqlglot takes some 20 microseconds for a token, and a
# piece of the stack for a parenthesis.
MAX_TOKENS = 10_000
MAX_DEPTH = 50

# NAMEDATALEN - 1: PostgreSQL cuts what is longer, and means another name.
MAX_NAME_BYTES = 63

TOKEN = re.compile(
    r"""
      (?P<space> (?: [ \t\n\r\f\v] | --[^\n\r]* )++ )
    | (?P<comment> /\* )
    | (?P<string>
          [eE]' (?: [^'\\]++ | \\. | '' )*+ '
        # The same with standard_conforming_strings off: no quote after a
        # backslash.
        | (?: [nNbBxX] | [uU]& )?+ ' (?: [^'\\]++ | \\[^'] | '' )*+ '
        | \$ (?P<tag> (?: [A-Za-z_\x80-\U0010ffff]
                          [\dA-Za-z_\x80-\U0010ffff]*+ )?+ ) \$
          .*? \$ (?P=tag) \$
      )
    | (?P<escaped> [uU]&" )
    | (?P<quoted> " (?: [^"] | "" )++ " )
    | (?P<word> [A-Za-z_\x80-\U0010ffff][0-9A-Za-z_$\x80-\U0010ffff]*+ )
    | (?P<parameter> \$[0-9]++ (?! [0-9A-Za-z_$\x80-\U0010ffff] ) )
    | (?P<number>
          (?: 0[xXoObB][0-9a-fA-F_]++
            | (?: [0-9][0-9_]*+ (?: \. [0-9]*+ )?+ | \. [0-9]++ )
              (?: [eE][+-]?[0-9]++ )?+
          ) (?! [.0-9A-Za-z_$\x80-\U0010ffff] ) )
    | (?P<operator> [~!@\#^&|`?+\-*/%<>=]++ )
    | (?P<mark> :: | := | [,()\[\].;:] )
    """,
    re.VERBOSE | re.DOTALL,
)
COMMENT_EDGE = re.compile(r"/\*|\*/")
OPERATOR_END = re.compile(r"--|/\*")
NEVER_IN_STANDARD_SQL = re.compile(r"[~!@#^&|`?%]")
ASCII_LOWER = {ord(x): ord(x.lower()) for x in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}

# Where a name is not expected, PostgreSQL never takes these for one.
RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check
    collate column constraint create current_catalog current_date current_role
    current_time current_timestamp current_user default deferrable desc
    distinct do else end except false fetch for foreign from grant group having
    in initially intersect into lateral leading limit localtime localtimestamp
    not null offset on only or order placing primary references returning
    select session_user some symmetric system_user table then to trailing true
    union unique user using variadic when where window with
    """.split()
)

# What may be grammar in a SELECT, or a name. Only before a parenthesis...
BEFORE_PARENTHESES = frozenset(
    """
    coalesce exists extract greatest json_array json_object least normalize
    nullif overlay position substring trim values xmlelement xmlforest
    """.split()
)
# ... never before one: with it, a function...
WITHOUT_PARENTHESES = frozenset(
    """
    at authorization bigint boolean breadth collation cross current cycle day
    depth double exclude following full hour inner int integer is isnull json
    last left local minute month national natural no normalized notnull nulls
    ordinality others outer partition preceding precision real recursive right
    search second set similar smallint tablesample ties unbounded within
    without year
    """.split()
)
# ... with and without.
GRAMMAR = (
    RESERVED
    | BEFORE_PARENTHESES
    | WITHOUT_PARENTHESES
    | frozenset(
        """
        between bit by char character cube dec decimal escape filter first
        float grouping groups ilike interval join like materialized nchar next
        numeric over overlaps range repeatable rollup row rows sets time
        timestamp varchar varying zone
        """.split()
    )
)

# How PostgreSQL's catalogue calls the types that have a grammar.
TYPES = {
    "bigint": ("int8",),
    "bit": ("bit", "varbit"),
    "boolean": ("bool",),
    "char": ("bpchar", "varchar"),
    "character": ("bpchar", "varchar"),
    "dec": ("numeric",),
    "decimal": ("numeric",),
    "double": ("float8",),
    "float": ("float4", "float8"),
    "int": ("int4",),
    "integer": ("int4",),
    "national": ("bpchar", "varchar"),
    "nchar": ("bpchar", "varchar"),
    "real": ("float4",),
    "smallint": ("int2",),
    "time": ("time", "timetz"),
    "timestamp": ("timestamp", "timestamptz"),
}

# A sort, a DISTINCT, an IN or a JOIN ... USING calls them without a word.
COMPARISONS = frozenset(["=", "<>", "<", ">", "<=", ">="])
# Operators that are words.
OPERATORS = {
    "like": ("~~", "!~~"),
    "ilike": ("~~*", "!~~*"),
    "similar": ("~", "!~"),
}

ANALYZE = frozenset(["analyze", "analyse"])
DML = frozenset(["delete", "insert", "merge", "update"])
ROW_LOCKS = frozenset(["key", "no", "share", "update"])
SELECTS = frozenset(["select", "table", "values", "with"])
WRITES = DML | frozenset(
    """
    alter analyze cluster comment create drop grant import listen lock notify
    reassign refresh reindex revoke security truncate vacuum
    """.split()
)

# What sqlglot's tree of a read is made of. Of a function only the arguments
# matter here: the tokens have its name.
PLAIN_NODES: tuple[type[exp.Expr], ...] = (
    exp.Alias,
    exp.All,
    exp.Any,
    exp.AtTimeZone,
    exp.Between,
    exp.Binary,
    exp.Boolean,
    exp.Bracket,
    exp.CTE,
    exp.Column,
    exp.ColumnDef,
    exp.Cube,
    exp.DataType,
    exp.DataTypeParam,
    exp.Distinct,
    exp.Fetch,
    exp.Filter,
    exp.From,
    exp.Func,
    exp.Group,
    exp.GroupingSets,
    exp.Having,
    exp.Identifier,
    exp.In,
    exp.Interval,
    exp.IntervalSpan,
    exp.JSON,
    exp.JSONKeyValue,
    exp.Join,
    exp.Lateral,
    exp.Limit,
    exp.LimitOptions,
    exp.Literal,
    exp.Null,
    exp.Offset,
    exp.Order,
    exp.Ordered,
    exp.Parameter,
    exp.RecursiveWithSearch,
    exp.Rollup,
    exp.Select,
    exp.SetOperation,
    exp.Slice,
    exp.Star,
    exp.Subquery,
    exp.Table,
    exp.TableAlias,
    exp.TableSample,
    exp.Tuple,
    exp.Unary,
    exp.Values,
    exp.Var,
    exp.Variadic,
    exp.Where,
    exp.Window,
    exp.WindowSpec,
    exp.With,
    exp.WithinGroup,
)
ROOTS = (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)


class Token(NamedTuple):
    """One token of PostgreSQL

    :param kind: the name of its group in :data:`TOKEN`
    :param text: of a name: as PostgreSQL folds it
    """

    kind: str
    text: str


END = Token("end", "")


class Unreadable(Exception):
    """The text can't be understood as PostgreSQL would"""


def need_of_sql(sql: str, catalogue: Catalogue) -> Need:
    """Return what a text needs of a server

    :param sql: what is sent to the server; ``$1`` is a parameter
    :param catalogue: the primary's
    :rtype: Need
    """
    try:
        statements = statements_of(sql)
        vetoes = [_veto(tokens) for tokens in statements]
        if len(statements) != 1:
            count = len(statements) or "no"
            vetoes.append(_unproven(f"{count} statements in one string"))

        if any(vetoes):
            return _gravest(need for need in vetoes if need)

        return _need_of_read(statements[0], catalogue)
    except Unreadable as error:
        return _unproven(str(error))


def statements_of(sql: str) -> list[list[Token]]:
    """Return the tokens of each statement of a text

    :param sql: statements with ``;`` between them
    :exception: Unreadable
    """
    statements: list[list[Token]] = [[]]
    for count, token in enumerate(tokens_of(sql)):
        if count >= MAX_TOKENS:
            raise Unreadable(f"more than {MAX_TOKENS} words")

        if token == ("mark", ";"):
            statements.append([])
        else:
            statements[-1].append(token)

    return [tokens for tokens in statements if tokens]


def tokens_of(sql: str) -> Iterator[Token]:
    """Yield the tokens of a text, without spaces and comments

    :param sql: any number of statements
    :exception: Unreadable
    """
    if "\0" in sql:
        raise Unreadable("the text may end at a NUL character")

    position = 0
    while position < len(sql):
        match = TOKEN.match(sql, position)
        kind = match.lastgroup if match else None
        if match is None or kind is None or kind == "escaped":
            near = sql[position : position + 20]
            raise Unreadable(f"can't be read from {near!r} on")

        text, position = match[0], match.end()
        if kind == "comment":
            position = _end_of_comment(sql, position)
        elif kind == "operator":
            text = _operator(text)
            position = match.start() + len(text)
            yield Token(kind, "<>" if text == "!=" else text)
        elif kind in ("word", "quoted"):
            yield Token(kind, _name(kind, text))
        elif kind != "space":
            yield Token(kind, text)


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1
    while depth:
        edge = COMMENT_EDGE.search(sql, position)
        if edge is None:
            raise Unreadable("a comment has no end")

        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()

    return position


def _operator(text: str) -> str:
    """Return the one operator with which a row of its characters begins"""
    if len(text) > MAX_NAME_BYTES:
        raise Unreadable(f"an operator is longer than {MAX_NAME_BYTES} bytes")

    comment = OPERATOR_END.search(text)
    if comment is not None:
        text = text[: comment.start()]

    if not NEVER_IN_STANDARD_SQL.search(text[:-1]):
        while len(text) > 1 and text[-1] in "+-":
            text = text[:-1]

    return text


def _name(kind: str, text: str) -> str:
    """Return a name as PostgreSQL folds it"""
    if kind == "quoted":
        name = text[1:-1].replace('""', '"')
    else:
        name = text.translate(ASCII_LOWER)
        if name != text.lower():
            # Folded in some encodings of a database, and not in others.
            raise Unreadable(f"the name {text!r} may be folded")

    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise Unreadable(f"a name is longer than {MAX_NAME_BYTES} bytes")

    return name


def _veto(tokens: list[Token]) -> Need | None:
    """Return why the words of a statement forbid to take it for a read

    In PostgreSQL's grammar a statement that begins as a SELECT changes
    something by these words only; what it calls is another question.
    """
    first = _first_word(tokens)
    if first in WRITES:
        return Need(Kind.WRITE, first.upper())

    before = END
    for token, after in zip(tokens, [*tokens[1:], END], strict=True):
        if token.kind == "word" and before.text not in (".", "as"):
            if token.text in DML:
                return Need(Kind.WRITE, f"{token.text.upper()} inside")

            if token.text == "into":
                return Need(Kind.WRITE, "SELECT INTO")

            if token.text == "for" and after.text in ROW_LOCKS:
                return Need(Kind.WRITE, "FOR UPDATE or FOR SHARE")

        before = token

    if first in SELECTS or first in ("explain", "show"):
        return None

    return _unproven(f"{first.upper() or tokens[0].text} is not a SELECT")


def _first_word(tokens: list[Token]) -> str:
    for token in tokens:
        if token != ("mark", "("):
            return token.text if token.kind == "word" else ""

    return ""


def _need_of_read(tokens: list[Token], catalogue: Catalogue) -> Need:
    """Return the need of a statement that its words let pass"""
    first = tokens[0]
    if first == ("word", "show"):
        # As current_setting().
        return READ

    if first == ("word", "explain"):
        tokens = _explained(tokens)

    names = Names(tokens)
    relations: set[str] = set()
    try:
        tree = _tree(names.text)
        needs = list(_objections_of_tree(tree, catalogue))
        called = {node.name for node in tree.find_all(exp.Anonymous)}
        relations.update(node.name for node in tree.find_all(exp.Table))
    except Unreadable as error:
        needs, called = [_unproven(str(error))], set()

    # What the catalogue says of a name is the better word, and comes first.
    need = _gravest(
        [
            *names.objections(catalogue, called),
            *needs,
            catalogue.need_of_any(),
        ]
    )
    if need.is_read:
        relations.update(names.own_functions(catalogue))
        need = replace(need, sources=frozenset(relations))

    return need


def _explained(tokens: list[Token]) -> list[Token]:
    """Return the statement that a plain EXPLAIN is about"""
    start = 1
    if tokens[1:2] == [("mark", "(")] and _first_word(tokens[1:]) not in (
        SELECTS
    ):
        start = tokens.index(Token("mark", ")")) + 1

    while start < len(tokens) and tokens[start].text in {"verbose", *ANALYZE}:
        start += 1

    explained = tokens[start:]
    if any(token.text in ANALYZE for token in tokens[:start]):
        raise Unreadable("EXPLAIN ANALYZE runs the statement")

    if _first_word(explained) not in SELECTS:
        raise Unreadable("EXPLAIN of what is not a SELECT")

    return explained


def _tree(text: str) -> exp.Expr:
    """Return sqlglot's tree of a text that has been written anew"""
    try:
        trees = PARSER.parse(text)
    except ParseError as error:
        near = error.errors[0].get("highlight") if error.errors else None
        raise Unreadable(f"can't be parsed: near {near!r}") from error
    except Exception as error:
        # RecursionError among them: whatever it is, nothing is proven.
        name = type(error).__name__
        raise Unreadable(f"can't be parsed: {name}") from error

    if len(trees) != 1 or not isinstance(trees[0], ROOTS):
        raise Unreadable("is not a SELECT")

    return trees[0]


def _objections_of_tree(tree: exp.Expr, catalogue: Catalogue) -> Iterator[Need]:
    ctes = {x.alias.removesuffix("()") for x in tree.find_all(exp.CTE)}
    for node in tree.walk():
        if not isinstance(node, PLAIN_NODES):
            yield _unproven(f"{type(node).__name__} is not known to be a read")
        elif isinstance(node, exp.Table):
            if isinstance(node.this, exp.Identifier):
                if node.db or node.name not in ctes:
                    yield catalogue.need_of_relation(node.name, node.db or None)
            elif not isinstance(node.this, exp.Func | None):
                yield _unproven(f"a relation is a {type(node.this).__name__}")
        elif isinstance(node, exp.DataType):
            # In the list of columns of a function's result.
            named = node.args.get("kind")
            if isinstance(named, exp.Expr):
                yield catalogue.need_of_cast(named.name.removesuffix("()"))


class Names:
    """What a statement names, and its text without what it may not matter

    :ivar text: for sqlglot. Each constant is one and the same, each operator
        that it may not know is a minus, which may stand before and between
        operands as well, and each name is quoted; the one of a function, or
        of an alias with columns, ends with ``()``
    """

    def __init__(self, tokens: list[Token]) -> None:
        """Read a statement

        :param tokens: of one statement
        :exception: Unreadable
        """
        self._tokens = tokens
        self._written: list[str] = []
        self._opened: list[str] = []
        self._calls: dict[tuple[str | None, str], None] = {}
        self._names: dict[tuple[str | None, str], None] = {}
        self._fields: dict[str, None] = {}
        self._types: dict[str, None] = {}
        self._operators = dict.fromkeys(sorted(COMPARISONS))
        readers: dict[str, Callable[[int], int]] = {
            "mark": self._read_mark,
            "number": self._read_number,
            "operator": self._read_operator,
            "parameter": self._read_parameter,
            "quoted": self._read_name,
            "string": self._read_string,
            "word": self._read_word,
        }
        index = 0
        while index < len(tokens):
            index = readers[tokens[index].kind](index)

        self.text = " ".join(self._written)

    def objections(
        self, catalogue: Catalogue, called: set[str]
    ) -> Iterator[Need]:
        """Yield what the catalogue says of each name

        :param catalogue: the primary's
        :param called: names of which sqlglot says that they are called
        """
        for schema, name in self._calls:
            need = catalogue.need_of_function(name, schema)
            if schema or not need.unknown or called & {name, f"{name}()"}:
                yield need

        for name in self._types:
            yield catalogue.need_of_cast(name)

        for name in self._fields:
            yield catalogue.need_of_field(name)
            # Of a scalar as of a row: ('s'::regclass).nextval
            yield _known(catalogue.need_of_function(name))

        for symbol in self._operators:
            yield catalogue.need_of_operator(symbol)

        # Whatever a name may be here: should one that objects be meant.
        for schema, name in self._names:
            yield _known(catalogue.need_of_relation(name, schema))
            yield _known(catalogue.need_of_cast(name))

    def own_functions(self, catalogue: Catalogue) -> Iterator[str]:
        """Yield the functions that aren't PostgreSQL's

        :param catalogue: the primary's
        """
        for schema, name in self._calls:
            if catalogue.is_own_function(name, schema):
                yield name

    def _at(self, index: int) -> Token:
        return self._tokens[index] if index < len(self._tokens) else END

    def _write(self, *texts: str) -> None:
        self._written.extend(texts)

    def _read_mark(self, index: int) -> int:
        text = self._tokens[index].text
        if text in "([":
            before = self._tokens[index - 1] if index else END
            self._opened.append(before.text if before.kind == "word" else "")
            if len(self._opened) > MAX_DEPTH:
                raise Unreadable(f"more than {MAX_DEPTH} parentheses deep")
        elif text in ")]" and self._opened:
            self._opened.pop()

        self._write("=>" if text == ":=" else text)
        return self._read_type(index + 1) if text == "::" else index + 1

    def _read_number(self, index: int) -> int:
        self._write("1")
        return index + 1

    def _read_parameter(self, index: int) -> int:
        self._write("$1")
        return index + 1

    def _read_string(self, index: int) -> int:
        while self._at(index).kind == "string" or (
            self._at(index) == ("word", "uescape")
        ):
            # One constant: 'a' and 'b' on the next line, U&'a' UESCAPE 'b'.
            index += 1

        self._write("'s'")
        return index

    def _read_operator(self, index: int) -> int:
        text = self._tokens[index].text
        if text != "=>":
            self._operators[text] = None

        if text not in COMPARISONS and text not in ("*", "=>"):
            after = self._at(index + 1)
            quantified = after.kind == "word" and after.text in (
                "all",
                "any",
                "some",
            )
            text = "=" if quantified else "-"

        self._write(text)
        return index + 1

    def _read_word(self, index: int) -> int:
        word = self._tokens[index].text
        before = self._tokens[index - 1] if index else END
        after = self._at(index + 1)
        if _is_name(word, before, after):
            return self._read_name(index)

        for symbol in OPERATORS.get(word, ()):
            self._operators[symbol] = None

        if word not in RESERVED:
            self._names[None, word] = None
            self._types.update(dict.fromkeys(TYPES.get(word, ())))
            if after.text == "(":
                self._calls[None, word] = None

        self._write(word)
        if word == "as" and self._opened[-1:] == ["cast"]:
            return self._read_type(index + 1)

        if word == "tablesample" and after.text in ("bernoulli", "system"):
            self._write(after.text)
            return index + 2

        return index + 1

    def _read_name(self, index: int) -> int:
        if self._tokens[index : index + 2] == [
            ("word", "operator"),
            ("mark", "("),
        ]:
            return self._read_operator_of_a_schema(index)

        if self._at(index) == ("word", "treat"):
            raise Unreadable("TREAT calls a function by the name of a type")

        is_field = index > 0 and self._at(index - 1) == ("mark", ".")
        parts, index = self._read_parts(index)
        schema = parts[-2] if len(parts) > 1 else None
        after = self._at(index)
        if after == ("mark", "("):
            self._calls[schema, parts[-1]] = None
            self._write(_quoted(f"{parts[-1]}()"))
        elif after.kind == "string":
            self._types[parts[-1]] = None
        else:
            fields = parts if is_field else parts[1:]
            self._fields.update(dict.fromkeys(fields))
            self._write(".".join(map(_quoted, parts)))

        return index

    def _read_parts(self, index: int) -> tuple[list[str], int]:
        """Read ``name.name...``, and note what each of it may mean"""
        parts = [self._tokens[index].text]
        index += 1
        while self._at(index) == ("mark", ".") and self._at(index + 1).kind in (
            "word",
            "quoted",
        ):
            parts.append(self._tokens[index + 1].text)
            index += 2

        for schema, name in zip([None, *parts], parts, strict=False):
            self._names[schema, name] = None

        return parts, index

    def _read_operator_of_a_schema(self, index: int) -> int:
        """Read ``OPERATOR(pg_catalog.+)``"""
        schema, dot, symbol, end = (self._at(index + x) for x in (2, 3, 4, 5))
        if (schema.text, dot.text, symbol.kind, end.text) != (
            "pg_catalog",
            ".",
            "operator",
            ")",
        ):
            raise Unreadable("OPERATOR() of a schema")

        self._operators[symbol.text] = None
        self._write("-")
        return index + 6

    def _read_type(self, index: int) -> int:
        """Read the name of a type; what follows is left to sqlglot"""
        token = self._at(index)
        if token.kind not in ("word", "quoted"):
            raise Unreadable("a cast has no type")

        in_grammar = token.kind == "word" and token.text in GRAMMAR
        if in_grammar and self._at(index + 1).text != ".":
            types = TYPES.get(token.text, (token.text,))
            self._types.update(dict.fromkeys(types))
            # DOUBLE alone is a name.
            self._names[None, token.text] = None
            self._write(token.text)
            return index + 1

        parts, index = self._read_parts(index)
        self._types[parts[-1]] = None
        self._write("text")
        return self._past_parentheses(index)

    def _past_parentheses(self, index: int) -> int:
        """Return the index after the modifiers of a type, if it has any

        They are constants and words, PostgreSQL takes nothing else.
        """
        if self._at(index) != ("mark", "("):
            return index

        try:
            end = self._tokens.index(Token("mark", ")"), index)
        except ValueError:
            raise Unreadable("a parenthesis has no end") from None

        if any(x.text in ("(", "::") for x in self._tokens[index + 1 : end]):
            raise Unreadable("a type is modified by an expression")

        return end + 1


def _is_name(word: str, before: Token, after: Token) -> bool:
    """Return True for a word that is no grammar between its neighbours"""
    if word not in GRAMMAR or "." in (before.text, after.text):
        return True

    if before == ("word", "as"):
        # A label, whichever word it is; but AS [NOT] MATERIALIZED.
        return "materialized" not in (word, after.text)

    if after == ("mark", "("):
        is_fetch = before == ("word", "fetch")
        return word in WITHOUT_PARENTHESES or (
            word in ("first", "next") and not is_fetch
        )

    return word in BEFORE_PARENTHESES


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _known(need: Need) -> Need:
    return READ if need.unknown else need


def _unproven(because: str) -> Need:
    return Need(Kind.UNPROVEN, because)


def _gravest(needs: Iterable[Need]) -> Need:
    """Return a need that says what all of them say

    A write before what is only not proven, and a name that the catalogue
    does not know only where it is the only objection.
    """
    objections = [need for need in needs if not need.is_read]
    return min(
        objections,
        key=lambda need: (need.kind is not Kind.WRITE, need.unknown),
        default=READ,
    )
