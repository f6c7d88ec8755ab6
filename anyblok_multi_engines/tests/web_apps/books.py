# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What the applications have in common: a registry, and books."""

import json
import os
import sys
from contextlib import contextmanager

from anyblok import load_init_function_from_entry_points
from anyblok.blok import BlokManager
from anyblok.config import Configuration
from anyblok.registry import RegistryManager
from sqlalchemy import func, select

PORT = select(func.current_setting("port"))


def load_registry():
    """Return the registry of this worker, as its environment says"""
    # The arguments are those of the web server.
    argv, sys.argv = sys.argv, sys.argv[:1]
    load_init_function_from_entry_points(unittest=True)
    Configuration.load_config_for_test()
    sys.argv = argv
    BlokManager.load(entry_points=("bloks", "test_bloks"))
    options = json.loads(os.environ["WEB_APP_OPTIONS"])
    Configuration.update(**options)
    registry = RegistryManager.get(options["db_name"])
    registry.commit()
    registry.Session.remove()
    if "--preload" not in argv:
        print(os.getpid(), "is ready", flush=True)

    return registry


@contextmanager
def unit_of_work(registry):
    """Commit what the block does in its thread, and leave nothing behind"""
    try:
        yield registry
        registry.commit()
    except BaseException:
        registry.rollback()
        raise
    finally:
        registry.Session.remove()


def add_book(registry, title):
    """Return the id of a new book"""
    return registry.Book.insert(title=title).id


def find_book(registry, id):
    """Return a book's title, or None, and who has said so"""
    return {
        "title": registry.scalar(
            select(registry.Book.title).where(registry.Book.id == id)
        ),
        "server": registry.scalar(PORT),
        "pid": os.getpid(),
    }
