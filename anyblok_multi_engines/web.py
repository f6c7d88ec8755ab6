# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""Each client of a web application reads its own writes, on any worker.

The response of a request that has written carries a token in a cookie, and
the client's next requests read after it. A token is a position in the log:
nothing of the data, and no secret.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from .reader import Reader, serving

logger = getLogger(__name__)

#: Methods that only ask: RFC 9110, section 9.2.1.
SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])

# A client that has not been played with sends one or two.
MOST_TOKENS = 8

# What names of headers and cookies are made of, RFC 9110; and the values of a
# cookie's attributes, RFC 6265.
NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
PATH = re.compile(r"/[!-:<-~]*")
DOMAIN = re.compile(r"[0-9A-Za-z.\-]+")

Headers = list[tuple[str, str]]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def _check(good: object, message: str) -> None:
    if not good:
        raise ValueError(message)


@dataclass(frozen=True)
class Cookie:
    """The cookie that carries the token; see :class:`ReadYourWrites`"""

    name: str
    max_age: int
    path: str
    domain: str | None
    secure: bool | None
    httponly: bool
    samesite: str | None

    def __post_init__(self) -> None:
        """Refuse what a browser would ignore without a word

        :exception: ValueError
        """
        _check(
            NAME.fullmatch(self.name),
            f"cookie={self.name!r}: a name is letters, digits, - and _",
        )
        _check(
            type(self.max_age) is int and self.max_age > 0,
            f"max_age={self.max_age!r}: write whole seconds, 1 or more",
        )
        _check(
            PATH.fullmatch(self.path),
            f"path={self.path!r}: write one that begins with /",
        )
        _check(
            self.domain is None or DOMAIN.fullmatch(self.domain),
            f"domain={self.domain!r}: write a host's name, or None",
        )
        _check(
            self.samesite in ("Lax", "Strict", "None", None),
            f"samesite={self.samesite!r}: write 'Lax', 'Strict' or 'None', "
            "or None to leave it out",
        )
        _check(
            self.secure or self.samesite != "None",
            "samesite='None': browsers take it with secure=True alone",
        )

    def __call__(self, token: str | None, https: bool) -> str:
        """Return the value of ``Set-Cookie``

        :param token: None: the client forgets the cookie
        :param https: True: the request came by it
        """
        secure = https if self.secure is None else self.secure
        attributes = {
            f"{self.name}={token or ''}": True,
            f"Max-Age={self.max_age if token else 0}": True,
            f"Path={self.path}": True,
            f"Domain={self.domain}": self.domain,
            "Secure": secure,
            "HttpOnly": self.httponly,
            f"SameSite={self.samesite}": self.samesite,
        }
        return "; ".join(text for text, said in attributes.items() if said)

    def tokens_in(self, text: str) -> list[str]:
        """Return what a client sends in cookies of this name

        :param text: of its headers ``Cookie``; a server may have joined
            several with a comma
        """
        if self.name not in text:
            return []

        pairs = (pair.partition("=") for pair in re.split("[;,]", text))
        return [
            value.strip()
            for name, _, value in pairs
            if name.strip() == self.name
        ]


class ReadYourWrites:
    """What the middlewares have in common: their parameters

    :param application: the one that is wrapped
    :param registry: of AnyBlok, or a function that returns it: it is given
        the ``environ`` (WSGI) or the ``scope`` (ASGI) of each request, and
        returns None where there is no registry (yet)
    :param cookie: its name. Default ``anyblok_read_after``; two applications
        on one host need two, whatever their ports
    :param max_age: seconds that the client keeps the cookie. Longer than any
        replica is behind; after a failover the client reads from the primary
        until then. Default 5 minutes
    :param path: of the cookie. Default ``/``
    :param domain: of the cookie. Default None: the host that answers
    :param secure: True: the client sends the cookie by https alone. Default
        None: where the request has come by https
    :param httponly: True (default): a page's scripts don't see the cookie
    :param samesite: ``Lax`` (default), ``Strict``, ``None``, or None: the
        browser decides
    :param header: name of a header that carries the token as well, in the
        response and in the next request, for clients without cookies. Default
        None: no header
    :param safe_methods: that may read from replicas; the requests of others
        start on the primary. Default: GET, HEAD, OPTIONS, TRACE
    :exception: TypeError, ValueError
    """

    def __init__(
        self,
        application: Any,
        registry: Any,
        *,
        cookie: str = "anyblok_read_after",
        max_age: int = 5 * 60,
        path: str = "/",
        domain: str | None = None,
        secure: bool | None = None,
        httponly: bool = True,
        samesite: str | None = "Lax",
        header: str | None = None,
        safe_methods: Iterable[str] = SAFE_METHODS,
    ) -> None:
        if not callable(application):
            raise TypeError(f"application={application!r}: it can't be called")

        # AnyBlok's own registry has None for any name.
        accept_token = getattr(registry, "accept_token", None)
        if not (callable(registry) or callable(accept_token)):
            raise TypeError(
                f"registry={registry!r}: give a registry with several engines,"
                " or a function that returns it"
            )

        if isinstance(safe_methods, str):
            raise TypeError(f"safe_methods={safe_methods!r}: write a list")

        _check(
            header is None or NAME.fullmatch(header),
            f"header={header!r}: a name is letters, digits and -",
        )
        self.application = application
        self.registry = registry
        self.cookie = Cookie(
            cookie, max_age, path, domain, secure, httponly, samesite
        )
        self.header = header
        self.safe_methods = frozenset(safe_methods)
        self._has_warned = False

    def registry_of(self, request: Any) -> Any:
        """Return the registry of a request, or None

        :param request: its ``environ`` or ``scope``
        """
        return (
            self.registry(request) if callable(self.registry) else self.registry
        )

    def warn_of_late_write(self) -> None:
        """Say once that the clients aren't told of some writes"""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "A request has written after its response had begun, and its "
                "client's next read may not see it: commit before the response"
                " (this is said once)"
            )


class Exchange:
    """A request and its response

    :param middleware: has the parameters
    :param request: its ``environ`` or ``scope``
    :param method: of HTTP
    :param https: True: it came by https
    """

    def __init__(
        self, middleware: ReadYourWrites, request: Any, method: str, https: bool
    ) -> None:
        self._middleware = middleware
        self._request = request
        self._registry = middleware.registry_of(request)
        self.reader = Reader(
            wants_primary=method not in middleware.safe_methods,
            registry=self._registry,
        )
        self._https = https
        self._forget = False
        self._told: tuple[object, ...] | None = None

    def read(self, cookies: str, header: str) -> None:
        """Read after the tokens that the request brings

        :param cookies: text of its header ``Cookie``
        :param header: text of the header for a token, or ''
        """
        tokens = self._middleware.cookie.tokens_in(cookies)
        self._forget = not self._accept(tokens)
        self._accept([x.strip() for x in header.split(",")] if header else [])

    def _accept(self, tokens: list[str]) -> bool:
        """Return True where all tokens are good; else read the primary"""
        if not tokens:
            return True

        registry = self._registry
        if registry is None or len(tokens) > MOST_TOKENS:
            self.reader.wants_primary = True
            return registry is None

        return all([registry.accept_token(x, self.reader) for x in tokens])

    def _token(self) -> str | None:
        """Return the token of what the request has written"""
        if self._registry is None:
            # It may have been built since.
            self._registry = self._middleware.registry_of(self._request)
            if self._registry is None:
                return None

        token: str | None = self._registry.token_of(self.reader)
        return token

    def _written(self) -> tuple[object, ...]:
        """Return what another write would change"""
        knows = self.reader.knows
        return knows.written, knows.unknown_write, knows.primary_until

    def begin(self, headers: Iterable[tuple[str, str]]) -> Headers:
        """Return the headers that the response gets

        What carries a token is its client's alone. A shared cache would give
        it to others, in the place of a newer one that they have.

        :param headers: that it has
        """
        token = self._token()
        self._told = self._written()
        if token is None and not self._forget:
            return []

        more = [("Set-Cookie", self._middleware.cookie(token, self._https))]
        if token and self._middleware.header:
            more.append((self._middleware.header, token))

        said = ",".join(
            value for name, value in headers if name.lower() == "cache-control"
        )
        if not re.search(r"\b(private|no-store)\b(?!=)", said, re.IGNORECASE):
            more.append(("Cache-Control", "private"))

        return more

    def end(self) -> None:
        """End it: its client is not told of what it wrote since it began"""
        if self._told not in (None, self._written()):
            self._middleware.warn_of_late_write()


class WsgiReadYourWrites(ReadYourWrites):
    """Middleware of WSGI; :class:`ReadYourWrites` tells its parameters

    ``application = WsgiReadYourWrites(application, registry)``
    """

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer a request

        :param environ: of WSGI
        :param start_response: of the server
        """
        exchange = Exchange(
            self,
            environ,
            environ["REQUEST_METHOD"],
            environ["wsgi.url_scheme"] == "https",
        )
        exchange.read(
            _value_of(environ, "Cookie"),
            _value_of(environ, self.header) if self.header else "",
        )
        response = WsgiResponse(exchange, start_response)
        with serving(exchange.reader):
            body: Iterable[bytes] = self.application(environ, response.start)

        if isinstance(body, _finished_types(environ)):
            # No code runs while the server sends it, and it knows how to.
            response.begin()
            exchange.end()
            return body

        response.body = body
        return response


def _value_of(environ: dict[str, Any], header: str) -> str:
    """Return the value of a header, or ''"""
    name = header.upper().replace("-", "_")
    value: str = environ.get(f"HTTP_{name}", "")
    return value


def _finished_types(environ: dict[str, Any]) -> tuple[type, ...]:
    """Return the types of bodies of which every part is there"""
    wrapper = environ.get("wsgi.file_wrapper")
    return (list, tuple, *([wrapper] if isinstance(wrapper, type) else []))


class WsgiResponse(Iterator[bytes]):
    """The response of an application that begins with its body

    An application may start its response and then write: what it has written
    before the first part of the body is known when the headers go out.

    :param exchange: of the response
    :param start_response: of the server
    """

    body: Iterable[bytes] = ()

    def __init__(
        self, exchange: Exchange, start_response: Callable[..., Any]
    ) -> None:
        self._exchange = exchange
        self._start_response = start_response
        self._started: tuple[str, Headers, Any] | None = None
        self._has_begun = False
        self._write: Any = None
        self._parts: Iterator[bytes] | None = None

    def start(
        self, status: str, headers: Headers, exc_info: Any = None
    ) -> Callable[[bytes], Any]:
        """Start the response: the application's ``start_response``

        :param status: of HTTP
        :param headers: of the response
        :param exc_info: of the error that the response is about
        """
        if self._has_begun:
            # The headers are out: the server raises the error.
            self._start_response(status, headers, exc_info)

        self._started = (status, headers, exc_info)
        return self.write

    def begin(self) -> None:
        """Give the server the status and the headers, once"""
        if self._started and not self._has_begun:
            self._has_begun = True
            status, headers, exc_info = self._started
            headers = [*headers, *self._exchange.begin(headers)]
            self._write = self._start_response(status, headers, exc_info)

    def write(self, data: bytes) -> None:
        """Write a part of the body: for old applications

        :param data: the part
        """
        self.begin()
        self._write(data)

    def __next__(self) -> bytes:
        """Return the next part of the body"""
        with serving(self._exchange.reader):
            if self._parts is None:
                self._parts = iter(self.body)

            part = next(self._parts, None)

        self.begin()
        if part is None:
            raise StopIteration

        return part

    def close(self) -> None:
        """End the response"""
        close = getattr(self.body, "close", None)
        try:
            if close is not None:
                with serving(self._exchange.reader):
                    close()
        finally:
            self._exchange.end()


class AsgiReadYourWrites(ReadYourWrites):
    """Middleware of ASGI; :class:`ReadYourWrites` tells its parameters

    ``application = AsgiReadYourWrites(application, registry)``, or
    ``application.add_middleware(AsgiReadYourWrites, registry=registry)`` of
    FastAPI and Starlette.
    """

    async def __call__(
        self, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Answer a request, or serve a WebSocket

        :param scope: of ASGI
        :param receive: of the server
        :param send: of the server
        """
        if scope["type"] not in ("http", "websocket"):
            await self.application(scope, receive, send)
            return

        exchange = Exchange(
            self,
            scope,
            scope.get("method", "GET"),
            scope.get("scheme") in ("https", "wss"),
        )
        exchange.read(
            _values_of(scope, "cookie", ";"),
            _values_of(scope, self.header, ",") if self.header else "",
        )
        response = AsgiResponse(exchange, send)
        try:
            with serving(exchange.reader):
                await self.application(scope, receive, response.send)
        finally:
            if scope["type"] == "http":
                exchange.end()


def _values_of(scope: Message, name: str, separator: str) -> str:
    """Return the values of the headers of a name, joined"""
    wanted = name.lower().encode("latin-1")
    return separator.join(
        value.decode("latin-1")
        for header, value in scope["headers"]
        if header == wanted
    )


class AsgiResponse:
    """The response of an application that begins with its body

    :param exchange: of the response
    :param send: of the server
    """

    def __init__(self, exchange: Exchange, send: Send) -> None:
        self._exchange = exchange
        self._send = send
        self._started: Message | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the application

        :param message: of ASGI
        """
        if message["type"].endswith("http.response.start"):
            self._started = message
            return

        if message["type"] == "websocket.accept":
            message = self._begun(message)

        started, self._started = self._started, None
        if started is not None:
            await self._send(self._begun(started))

        await self._send(message)

    def _begun(self, message: Message) -> Message:
        """Return a message with the headers that the response gets"""
        headers = list(message.get("headers", ()))
        said = (
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
        )
        more = (
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in self._exchange.begin(said)
        )
        return {**message, "headers": [*headers, *more]}
