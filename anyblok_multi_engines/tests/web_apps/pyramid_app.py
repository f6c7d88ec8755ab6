# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A Pyramid application: POST /books/?title, and GET /books/id

pyramid_tm commits after the view and before the response.
"""

import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPSeeOther

from anyblok_multi_engines.web import WsgiReadYourWrites

from .books import add_book, find_book, load_registry


def add(request):
    """Add a book, and say where it is"""
    id = add_book(request.anyblok, request.params["title"])
    return HTTPSeeOther(request.route_path("book", id=id))


def show(request):
    """Show a book"""
    book = find_book(request.anyblok, int(request.matchdict["id"]))
    if book["title"] is None:
        request.response.status = 404

    return book


def application(registry):
    """Return the application of a registry"""
    zope.sqlalchemy.register(registry.Session)
    with Configurator() as config:
        config.include("pyramid_tm")
        config.add_request_method(
            lambda request: registry, "anyblok", property=True
        )
        config.add_route("books", "/books/")
        config.add_route("book", "/books/{id}")
        config.add_view(add, route_name="books", request_method="POST")
        config.add_view(show, route_name="book", renderer="json")
        return WsgiReadYourWrites(config.make_wsgi_app(), registry)


site = application(load_registry())
