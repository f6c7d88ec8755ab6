# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The code of jobs.rst; tests/test_jobs.py runs it."""

import logging
import os
import threading
from contextlib import contextmanager

import dramatiq
from anyblok.config import Configuration
from anyblok.registry import RegistryManager
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import default_middleware

from anyblok_multi_engines.reader import Reader, serving

logger = logging.getLogger(__name__)


def the_registry():
    """Return the registry that this process has loaded"""
    return RegistryManager.get(Configuration.get("db_name"))


@contextmanager
def job(registry, token):
    """Read after a token in the block, and leave nothing behind

    Threads are used again: each job is a reader of its own.
    """
    reader = Reader()
    with serving(reader):
        if token is not None:
            registry.accept_token(token, reader)

        try:
            yield
        finally:
            registry.rollback()
            registry.Session.remove()


class Current(threading.local):
    """The job of a worker's thread"""

    token = None
    block = None


class ReadYourWrites(dramatiq.Middleware):
    """A job sees what its sender has committed before"""

    def __init__(self):
        self.current = Current()

    def before_enqueue(self, broker, message, delay):
        token = the_registry().consistency_token() or self.current.token
        if token is not None:
            message.options["read_after"] = token

    def before_process_message(self, broker, message):
        self.current.token = message.options.get("read_after")
        self.current.block = job(the_registry(), self.current.token)
        self.current.block.__enter__()

    def after_process_message(
        self, broker, message, *, result=None, exception=None
    ):
        self.current.block.__exit__(None, None, None)
        self.current.token = self.current.block = None

    after_skip_message = after_process_message


# The first, so that what the others send after a job belongs to the job.
middleware = [ReadYourWrites(), *(x() for x in default_middleware)]
dramatiq.set_broker(
    RedisBroker(url=os.environ["REDIS_URL"], middleware=middleware)
)


@dramatiq.actor
def print_label(id):
    Book = the_registry().Book
    book = Book.query().filter_by(id=id).one()
    logger.info("Label of book %s: %s", id, book.title)


@dramatiq.actor
def print_labels(ids):
    for id in ids:
        print_label.send(id)


@dramatiq.actor
def sell(id):
    registry = the_registry()
    with registry.use_primary():
        book = registry.Book.query().filter_by(id=id).one()
        book.copies -= 1
        registry.commit()

    print_label.send(id)


def add_book(registry, title):
    id = registry.Book.insert(title=title).id
    registry.commit()
    print_label.send(id)
    return id


class Book:
    """Of a model in a blok"""

    @classmethod
    def add(cls, title):
        book = cls.insert(title=title)
        cls.postcommit_hook("after_add", book.id)
        return book

    @classmethod
    def after_add(cls, id):
        print_label.send(id)


def put(queue, registry, id):
    registry.commit()
    queue.put((id, registry.consistency_token()))


def take(queue, registry):
    id, token = queue.get()
    with job(registry, token):
        return registry.Book.query().filter_by(id=id).one().title
