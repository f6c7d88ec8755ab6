# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A WSGI application: POST /books/?title, and GET /books/id

Below /plain the same application is without the middleware.
"""

import json
from wsgiref.util import shift_path_info

from anyblok_multi_engines.web import WsgiReadYourWrites

from .books import add_book, find_book, load_registry, unit_of_work

JSON = ("Content-Type", "application/json")


def books(environ, start_response):
    """Add a book, and say where it is; or show a book"""
    place = environ["SCRIPT_NAME"]
    with unit_of_work(registry):
        if environ["REQUEST_METHOD"] == "POST":
            id = add_book(registry, environ["QUERY_STRING"])
            start_response("303 See Other", [("Location", f"{place}/{id}")])
            return []

        book = find_book(registry, int(shift_path_info(environ)))

    status = "404 Not Found" if book["title"] is None else "200 OK"
    start_response(status, [JSON])
    return [json.dumps(book).encode()]


def site(environ, start_response):
    """Choose among the two"""
    application = {"books": fresh_books, "plain": books}
    name = shift_path_info(environ)
    return application[name](environ, start_response)


registry = load_registry()
fresh_books = WsgiReadYourWrites(
    books, registry, header="X-Read-After", max_age=60
)
