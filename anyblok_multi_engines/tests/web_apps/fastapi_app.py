# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""A FastAPI application: POST /books/?title, and GET /books/id

Below /plain the same application is without the middleware.
"""

from threading import get_ident
from typing import Annotated

from fastapi import Depends, FastAPI, Response
from fastapi.responses import RedirectResponse
from starlette.applications import Starlette
from starlette.routing import Mount

from anyblok_multi_engines.web import AsgiReadYourWrites

from .books import add_book, find_book, load_registry, unit_of_work

registry = load_registry()


def new_book():
    """Add a book, in the thread that this dependency happens to run in"""
    with unit_of_work(registry):
        id = add_book(registry, "from a dependency")

    yield id, get_ident()


def note():
    """Add a book when the route is done"""
    yield
    with unit_of_work(registry):
        add_book(registry, "from the end of a dependency")


def routes():
    """Return the application, without the middleware"""
    app = FastAPI()

    @app.post("/")
    def add(title: str):
        with unit_of_work(registry):
            id = add_book(registry, title)

        return RedirectResponse(str(id), status_code=303)

    @app.api_route("/{id:int}", methods=["GET", "PUT"])
    def show(id: int, response: Response):
        with unit_of_work(registry):
            book = find_book(registry, id)

        if book["title"] is None:
            response.status_code = 404

        return book

    @app.get("/written-by-a-dependency")
    def show_new(new: Annotated[tuple, Depends(new_book)]):
        id, thread = new
        with unit_of_work(registry):
            book = find_book(registry, id)

        return {**book, "same_thread": thread == get_ident()}

    @app.post("/late", dependencies=[Depends(note)])
    def late():
        return None

    @app.post("/in-time", dependencies=[Depends(note, scope="function")])
    def in_time():
        return None

    return app


books = routes()
books.add_middleware(AsgiReadYourWrites, registry=registry)

site = Starlette(
    routes=[Mount("/books", app=books), Mount("/plain", app=routes())]
)
