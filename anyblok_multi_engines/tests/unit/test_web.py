# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the middlewares read and write: headers alone, and no server."""

import asyncio
import io
import logging
import time
from itertools import count
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from anyblok_multi_engines.consistency import (
    ConsistencyToken,
    TimeToken,
    decode,
)
from anyblok_multi_engines.errors import ConsistencyTokenError
from anyblok_multi_engines.reader import _request
from anyblok_multi_engines.web import AsgiReadYourWrites, WsgiReadYourWrites

NAME = "anyblok_read_after"
SYSTEM = 7
TOKEN = str(ConsistencyToken(SYSTEM, 1, 1000))
LATER = str(ConsistencyToken(SYSTEM, 1, 2000))
FOREIGN = str(ConsistencyToken(8, 1, 1000))
COOKIE = f"{NAME}={TOKEN}; Max-Age=300; Path=/; HttpOnly; SameSite=Lax"
EXPIRED = f"{NAME}=; Max-Age=0; Path=/; HttpOnly; SameSite=Lax"


current_request = _request.get


class Registry:
    """Reads tokens of one cluster, as a registry does that has no servers"""

    def accept_token(self, text, reader):
        try:
            token = decode(text)
        except ConsistencyTokenError:
            token = None

        if token is None or token.system_id != SYSTEM:
            reader.wants_primary = True
            return False

        reader.must_see(token)
        return True

    def token_of(self, reader):
        return reader.knows.written and str(reader.knows.written)


def write(text=TOKEN):
    """Write in the request that this code serves"""
    current_request().note_written(decode(text), 0.0)


class Got:
    """What a client gets, and what the application has seen"""

    def __init__(self):
        self.readers = []
        self.headers = []
        self.body = b""

    @property
    def reader(self):
        (reader,) = set(self.readers)
        return reader

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name]


def over_wsgi(middleware, work, method="GET", scheme="http", **headers):
    """Ask an application that works before it starts its response"""
    got = Got()

    def application(environ, start_response):
        got.readers.append(current_request())
        work()
        start_response("200 OK", [("Content-Type", "text/plain"), *answer])
        return [b"body"]

    answer = headers.pop("answer", [])
    environ = {"REQUEST_METHOD": method, "wsgi.url_scheme": scheme}
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    environ |= {f"HTTP_{k.upper()}": v for k, v in headers.items()}
    return ask_wsgi(middleware(application), environ, got)


def ask_wsgi(application, environ, got):
    def start_response(status, headers, exc_info=None):
        got.headers = headers
        return got.__setattr__

    body = validator(application)(environ, start_response)
    got.body = b"".join(body)
    body.close()
    return got


def over_asgi(middleware, work, method="GET", scheme="http", **headers):
    """Ask an application that works before it starts its response"""
    got = Got()

    async def application(scope, receive, send):
        got.readers.append(current_request())
        work()
        start = {"type": "http.response.start", "status": 200}
        if answer:
            start["headers"] = [(k.encode(), v.encode()) for k, v in answer]

        await send(start)
        await send({"type": "http.response.body", "body": b"body"})

    answer = headers.pop("answer", [])
    scope = {
        "type": "http",
        "method": method,
        "scheme": scheme,
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ],
    }
    return ask_asgi(middleware(application), scope, got)


def ask_asgi(application, scope, got):
    async def send(message):
        got.headers += [
            (name.decode(), value.decode())
            for name, value in message.get("headers", ())
        ]
        got.body += message.get("body", b"")

    asyncio.run(application(scope, None, send))
    return got


KINDS = {
    "wsgi": (WsgiReadYourWrites, over_wsgi),
    "asgi": (AsgiReadYourWrites, over_asgi),
}


@pytest.fixture(params=KINDS)
def ask(request):
    """Give a function that asks an application behind the middleware"""
    kind, over = KINDS[request.param]

    def ask(work=lambda: None, options=None, **values):
        options = {"registry": Registry(), **(options or {})}
        got = over(lambda x: kind(x, **options), work, **values)
        assert got.body == b"body"
        assert current_request() is None
        return got

    return ask


class TestRequest:
    """What a request says of its reader"""

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
    def test_safe_method_may_read_from_replicas(self, ask, method):
        assert ask(method=method).reader.wants_primary is False

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
    def test_other_method_starts_on_the_primary(self, ask, method):
        assert ask(method=method).reader.wants_primary is True

    def test_safe_methods_are_a_choice(self, ask):
        options = {"safe_methods": ["GET", "POST"]}
        assert not ask(options=options, method="POST").reader.wants_primary
        assert ask(options=options, method="HEAD").reader.wants_primary

    def test_cookie_is_read(self, ask):
        reader = ask(cookie=f"a=b; {NAME}={TOKEN}; c=d").reader
        assert reader.knows.floor == decode(TOKEN)
        assert not reader.wants_primary

    @pytest.mark.parametrize(
        "cookie",
        [
            f"{NAME}={TOKEN}; {NAME}={LATER}",
            f"{NAME}={LATER}; {NAME}={TOKEN}",
            f"{NAME}={LATER},{NAME}={TOKEN}",
            f"{NAME}={TOKEN};{NAME}={LATER};a=b",
        ],
    )
    def test_freshest_of_several_cookies_counts(self, ask, cookie):
        reader = ask(cookie=cookie).reader
        assert reader.knows.floor == decode(LATER)
        assert not reader.wants_primary

    @pytest.mark.parametrize(
        "cookie", [f"x{NAME}={TOKEN}", f"{NAME}2={TOKEN}", f"a={NAME}"]
    )
    def test_cookie_of_another_name_is_not_read(self, ask, cookie):
        got = ask(cookie=cookie)
        assert got.reader.knows.floor is None
        assert got.all("set-cookie") == []

    def test_header_is_read(self, ask):
        options = {"header": "X-Read-After"}
        reader = ask(options=options, x_read_after=LATER).reader
        assert reader.knows.floor == decode(LATER)

    def test_header_and_cookie_are_read(self, ask):
        options = {"header": "X-Read-After"}
        cookie = f"{NAME}={LATER}"
        reader = ask(options=options, x_read_after=TOKEN, cookie=cookie).reader
        assert reader.knows.floor == decode(LATER)

    def test_header_is_not_read_unasked(self, ask):
        assert ask(x_read_after=LATER).reader.knows.floor is None

    def test_each_has_a_reader_of_its_own(self, ask):
        assert ask().reader is not ask().reader


BAD = {
    "empty": "",
    "garbage": "garbage",
    "cut": TOKEN[:-1],
    "typed": TOKEN[:-1] + ("A" if TOKEN[-1] != "A" else "B"),
    "quoted": f'"{TOKEN}"',
    "foreign": FOREIGN,
    "oversized": "A" * 100_000,
    "not_ascii": "\xe9\xff\x80",
    "percent": "%00%0d%0aSet-Cookie:x=y",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
class TestBadCookie:
    """It is worth one read of the primary, and no more"""

    def test_reads_the_primary_and_is_forgotten(self, ask, bad):
        got = ask(cookie=f"{NAME}={bad}")
        assert got.reader.wants_primary
        assert got.all("set-cookie") == [EXPIRED]
        assert got.all("cache-control") == ["private"]

    def test_is_replaced_after_a_write(self, ask, bad):
        got = ask(write, cookie=f"{NAME}={bad}")
        assert got.all("set-cookie") == [COOKIE]

    def test_does_not_hide_a_good_one(self, ask, bad):
        reader = ask(cookie=f"{NAME}={bad}; {NAME}={TOKEN}").reader
        assert reader.wants_primary
        assert reader.knows.floor == decode(TOKEN)

    def test_in_the_header_leaves_the_cookie(self, ask, bad):
        got = ask(
            options={"header": "X-Read-After"},
            x_read_after=bad or "x",
            cookie=f"{NAME}={TOKEN}",
        )
        assert got.reader.wants_primary
        assert got.all("set-cookie") == []


def test_hundreds_of_cookies_are_bad(ask):
    got = ask(cookie="; ".join([f"{NAME}={TOKEN}"] * 500))
    assert got.reader.wants_primary
    assert got.reader.knows.floor is None
    assert got.all("set-cookie") == [EXPIRED]


class TestResponse:
    """What a response says to its client"""

    def test_carries_a_token_after_a_write(self, ask):
        got = ask(write, method="POST")
        assert got.all("set-cookie") == [COOKIE]

    def test_of_a_read_has_no_more_headers(self, ask):
        before = ask(answer=[("x-a", "b")], options={"header": "X-Read-After"})
        assert {name.lower() for name, _ in before.headers} <= {
            "x-a",
            "content-type",
        }

    def test_of_a_read_leaves_the_cookie(self, ask):
        """A read must neither lower it nor keep it alive"""
        assert ask(cookie=f"{NAME}={LATER}").all("set-cookie") == []

    def test_carries_the_header_if_asked(self, ask):
        got = ask(write, options={"header": "X-Read-After"})
        assert got.all("x-read-after") == [TOKEN]
        assert got.all("set-cookie") == [COOKIE]

    def test_keeps_the_cookies_of_the_application(self, ask):
        got = ask(write, answer=[("set-cookie", "a=b")])
        assert got.all("set-cookie") == ["a=b", COOKIE]

    @pytest.mark.parametrize(
        "said", ["public, max-age=60", "max-age=60", "private=x"]
    )
    def test_with_a_token_is_its_clients_alone(self, ask, said):
        got = ask(write, answer=[("cache-control", said)])
        assert got.all("cache-control") == [said, "private"]

    @pytest.mark.parametrize("said", ["private", "max-age=1, No-Store"])
    def test_that_is_so_already_stays(self, ask, said):
        got = ask(write, answer=[("cache-control", said)])
        assert got.all("cache-control") == [said]

    @pytest.mark.parametrize(
        ("options", "scheme", "expected"),
        [
            ({}, "https", "; Path=/; Secure; HttpOnly; SameSite=Lax"),
            ({"secure": False}, "https", COOKIE),
            ({"secure": True}, "http", "Secure"),
            ({"cookie": "c", "max_age": 9}, "http", f"c={TOKEN}; Max-Age=9; "),
            ({"path": "/a/b"}, "http", " Path=/a/b; HttpOnly"),
            ({"domain": "a.org"}, "http", " Path=/; Domain=a.org; HttpOnly;"),
            ({"httponly": False}, "http", " Path=/; SameSite=Lax"),
            ({"samesite": None}, "http", " Path=/; HttpOnly"),
            ({"samesite": "Strict"}, "http", "; SameSite=Strict"),
            (
                {"samesite": "None", "secure": True},
                "http",
                "Path=/; Secure; HttpOnly; SameSite=None",
            ),
        ],
    )
    def test_cookie_is_as_asked(self, ask, options, scheme, expected):
        (cookie,) = ask(write, options=options, scheme=scheme).all("set-cookie")
        assert expected in cookie
        assert ("Secure" in cookie) is ("Secure" in expected)


class TestRegistry:
    """It may be a function of the request"""

    def test_is_given_the_request(self, ask):
        seen = []

        def registry(request):
            seen.append(request)
            return Registry()

        got = ask(write, options={"registry": registry})
        assert got.all("set-cookie") == [COOKIE]
        assert {type(x) for x in seen} == {dict}

    def test_may_not_be_there(self, ask):
        options = {"registry": lambda request: None}
        got = ask(write, options=options, cookie=f"{NAME}={TOKEN}")
        assert got.reader.wants_primary
        assert got.all("set-cookie") == []

    def test_is_not_asked_to_read_no_token(self, ask):
        class NoTokens(Registry):
            def accept_token(self, text, reader):
                raise AssertionError

        assert ask(options={"registry": NoTokens()}).reader


class AnyBloks:
    """A registry without several engines: it has None for any name"""

    def __getattr__(self, name):
        return None


class TestParameters:
    """What would have no effect is refused"""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cookie": ""}, "cookie=''"),
            ({"cookie": "a b"}, "cookie='a b'"),
            ({"cookie": "a=b"}, "cookie='a=b'"),
            ({"cookie": "a\r\nb"}, "cookie="),
            ({"max_age": 0}, "max_age=0"),
            ({"max_age": 1.5}, "max_age=1.5"),
            ({"max_age": True}, "max_age=True"),
            ({"path": "a"}, "path='a'"),
            ({"path": "/;x"}, "path='/;x'"),
            ({"path": "/\n"}, "path="),
            ({"domain": "a;b"}, "domain='a;b'"),
            ({"domain": ""}, "domain=''"),
            ({"samesite": "lax"}, "samesite='lax'"),
            ({"samesite": "None"}, "samesite='None'.*secure=True"),
            ({"header": "a b"}, "header='a b'"),
            ({"header": ""}, "header=''"),
        ],
    )
    def test_wrong_value_is_refused(self, options, message):
        for kind, _ in KINDS.values():
            with pytest.raises(ValueError, match=f"^{message}"):
                kind(print, Registry(), **options)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((None, Registry()), "application=None"),
            ((print, None), "registry=None"),
            ((print, "name"), "registry='name'"),
            ((print, AnyBloks()), "registry="),
        ],
    )
    def test_wrong_type_is_refused(self, values, message):
        for kind, _ in KINDS.values():
            with pytest.raises(TypeError, match=f"^{message}"):
                kind(*values)

    def test_text_is_no_list_of_methods(self):
        for kind, _ in KINDS.values():
            with pytest.raises(TypeError, match=r"^safe_methods='GET'"):
                kind(print, Registry(), safe_methods="GET")


def wsgi(application, got=None, **environ):
    """Ask a WSGI application behind the middleware"""
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    middleware = WsgiReadYourWrites(validator(application), Registry())
    return ask_wsgi(middleware, environ, got or Got())


TEXT = [("Content-Type", "text/plain")]


class TestWsgi:
    """PEP 3333's ways of answering, each watched by its validator"""

    def test_write_before_the_first_part_is_told(self):
        def application(environ, start_response):
            start_response("200 OK", TEXT)
            return parts()

        def parts():
            write()
            yield b"a"
            yield b"b"

        got = wsgi(application)
        assert got.all("set-cookie") == [COOKIE]
        assert got.body == b"ab"

    def test_generator_is_served_to_its_end(self):
        got = Got()

        class Parts:
            def __iter__(self):
                got.readers.append(current_request())
                yield b"a"
                got.readers.append(current_request())
                yield b"b"
                got.readers.append(current_request())

            def close(self):
                got.readers.append(current_request())
                got.closed = True

        def application(environ, start_response):
            got.readers.append(current_request())
            start_response("200 OK", TEXT)
            return Parts()

        wsgi(application, got)
        assert len(got.readers) == 5
        assert got.reader is not None
        assert got.closed

    def test_empty_body_has_headers(self):
        def application(environ, start_response):
            write()
            start_response("200 OK", TEXT)
            return iter(())

        got = wsgi(application)
        assert got.all("set-cookie") == [COOKIE]
        assert got.body == b""

    def test_whole_application_is_a_generator(self):
        def application(environ, start_response):
            write()
            start_response("200 OK", TEXT)
            yield b"a"

        # The validator would have it start before.
        middleware = WsgiReadYourWrites(application, Registry())
        environ = {}
        setup_testing_defaults(environ)
        got = Got()

        def start_response(status, headers, exc_info=None):
            got.headers = headers

        assert list(middleware(environ, start_response)) == [b"a"]
        assert got.all("set-cookie") == [COOKIE]

    def test_parts_that_are_written(self):
        def application(environ, start_response):
            part = start_response("200 OK", TEXT)
            write()
            part(b"a")
            return iter([b"b"])

        middleware = WsgiReadYourWrites(application, Registry())
        environ, got = {}, Got()
        setup_testing_defaults(environ)
        written = []

        def start_response(status, headers, exc_info=None):
            got.headers = headers
            return written.append

        assert list(middleware(environ, start_response)) == [b"b"]
        assert written == [b"a"]
        assert got.all("set-cookie") == [COOKIE]

    def test_error_page_replaces_what_has_not_begun(self):
        def application(environ, start_response):
            start_response("200 OK", [*TEXT, ("X-A", "b")])
            try:
                raise LookupError
            except LookupError as error:
                info = (LookupError, error, error.__traceback__)
                start_response("500 Oh", TEXT, info)
                return [b"sorry"]

        got = wsgi(application)
        assert got.all("x-a") == []
        assert got.body == b"sorry"

    def test_error_after_the_headers_is_the_servers(self):
        def application(environ, start_response):
            start_response("200 OK", TEXT)
            yield b"a"
            try:
                raise LookupError
            except LookupError as error:
                info = (LookupError, error, error.__traceback__)
                start_response("500 Oh", TEXT, info)

        calls = []

        def start_response(status, headers, exc_info=None):
            calls.append(status)
            if exc_info:
                raise exc_info[1]

        environ = {}
        setup_testing_defaults(environ)
        body = WsgiReadYourWrites(application, Registry())(
            environ, start_response
        )
        assert next(body) == b"a"
        with pytest.raises(LookupError):
            next(body)

        assert calls == ["200 OK", "500 Oh"]
        assert current_request() is None

    def test_error_of_the_application_goes_on(self):
        def application(environ, start_response):
            start_response("200 OK", TEXT)
            raise LookupError

        with pytest.raises(LookupError):
            wsgi(application)

        assert current_request() is None

    def test_file_is_left_to_the_server(self):
        file = FileWrapper(io.BytesIO(b"abc"))

        def application(environ, start_response):
            start_response("200 OK", TEXT)
            return file

        environ = {"wsgi.file_wrapper": FileWrapper}
        setup_testing_defaults(environ)
        middleware = WsgiReadYourWrites(application, Registry())
        assert middleware(environ, lambda *_: None) is file


def asgi(application, **scope):
    """Ask an ASGI application behind the middleware"""
    middleware = AsgiReadYourWrites(application, Registry())
    scope = {"type": "http", "method": "GET", "headers": [], **scope}
    return ask_asgi(middleware, scope, Got())


START = {"type": "http.response.start", "status": 200, "headers": []}


class TestAsgi:
    """The messages of ASGI"""

    def test_write_before_the_first_part_is_told(self):
        async def application(scope, receive, send):
            await send(START)
            write()
            await send({"type": "http.response.body", "body": b"a"})

        assert asgi(application).all("set-cookie") == [COOKIE]
        assert START["headers"] == []

    def test_task_of_a_request_is_served(self):
        found = []

        async def child():
            found.append(current_request())

        async def application(scope, receive, send):
            await asyncio.create_task(child())
            await asyncio.to_thread(lambda: found.append(current_request()))
            found.append(current_request())

        asgi(application)
        assert len(found) == 3
        assert len(set(found)) == 1

    def test_write_in_a_thread_is_told(self):
        async def application(scope, receive, send):
            await asyncio.to_thread(write)
            await send(START)
            await send({"type": "http.response.body", "body": b"a"})

        assert asgi(application).all("set-cookie") == [COOKIE]

    def test_requests_at_the_same_time_do_not_meet(self):
        seen = {}

        async def application(scope, receive, send):
            first = current_request()
            await barrier.wait()
            seen[scope["n"]] = first is current_request() and first

        async def both():
            nonlocal barrier
            barrier = asyncio.Barrier(2)
            middleware = AsgiReadYourWrites(application, Registry())
            await asyncio.gather(
                *(
                    middleware(
                        {
                            "type": "http",
                            "method": "GET",
                            "headers": [],
                            "n": n,
                        },
                        None,
                        None,
                    )
                    for n in range(2)
                )
            )

        barrier = None
        asyncio.run(both())
        assert seen[0] is not seen[1]
        assert all(seen.values())

    def test_lifespan_is_left_alone(self):
        async def application(scope, receive, send):
            assert current_request() is None
            await send({"type": "lifespan.startup.complete"})

        assert asgi(application, type="lifespan").headers == []

    def test_websocket_reads_after_the_cookie(self):
        found = []

        async def application(scope, receive, send):
            found.append(current_request())
            write(LATER)
            await send({"type": "websocket.accept"})
            write(LATER)
            await send({"type": "websocket.send", "text": "a"})

        headers = [(b"cookie", f"{NAME}={TOKEN}".encode())]
        middleware = AsgiReadYourWrites(application, Registry())
        scope = {"type": "websocket", "scheme": "ws", "headers": headers}
        got = ask_asgi(middleware, scope, Got())
        assert not found[0].wants_primary
        assert found[0].knows.floor == decode(LATER)
        assert got.all("set-cookie") == [COOKIE.replace(TOKEN, LATER)]

    def test_headers_of_one_name_are_joined(self):
        found = []

        async def application(scope, receive, send):
            found.append(current_request())

        headers = [
            (b"cookie", b"a=b"),
            (b"cookie", f"{NAME}={TOKEN}".encode()),
        ]
        asgi(application, headers=headers)
        assert found[0].knows.floor == decode(TOKEN)

    def test_error_of_the_application_goes_on(self):
        async def application(scope, receive, send):
            await send(START)
            raise LookupError

        with pytest.raises(LookupError):
            asgi(application)

        assert current_request() is None


def late_wsgi(environ, start_response):
    start_response("200 OK", TEXT)
    yield b"a"
    write()
    yield b"b"


async def late_asgi(scope, receive, send):
    await send(START)
    await send({"type": "http.response.body", "body": b"a"})
    write()


def test_late_write_is_said_once(caplog):
    caplog.set_level(logging.WARNING)
    middleware = WsgiReadYourWrites(late_wsgi, Registry())
    for _ in range(2):
        environ = {}
        setup_testing_defaults(environ)
        body = middleware(environ, lambda *_: None)
        assert list(body) == [b"a", b"b"]
        body.close()

    assert [x.name for x in caplog.records] == ["anyblok_multi_engines.web"]
    asgi(late_asgi)
    assert len(caplog.records) == 2


def test_write_in_time_is_no_late_write(ask, caplog):
    ask(write)
    assert caplog.records == []


def test_time_that_passes_is_no_late_write(ask, caplog):
    class Clock(Registry):
        """Has no positions: its tokens say until when"""

        times = count(time.time())

        def token_of(self, reader):
            return str(TimeToken(next(self.times)))

    options = {"registry": Clock()}
    got = ask(lambda: current_request().must_ask_primary(1.0), options)
    assert len(got.all("set-cookie")) == 1
    assert caplog.records == []
