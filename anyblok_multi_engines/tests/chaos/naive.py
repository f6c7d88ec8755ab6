# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""The usual recipe of a session with replicas, to show what it doesn't do."""

from random import choice
from typing import Any

from sqlalchemy import UpdateBase, create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker


class RecipeSession(Session):
    """What is flushed and DML go to the primary, all else to any replica

    As SQLAlchemy's page on "Custom Vertical Partitioning" has it.
    """

    primary: Any
    replicas: Any

    def get_bind(
        self, mapper: Any = None, *, clause: Any = None, **kwargs: Any
    ) -> Any:
        """Return where a statement goes"""
        if self._flushing or isinstance(clause, UpdateBase):
            return self.primary

        return choice(self.replicas)


class Recipe:
    """What a worker takes for its registry: sessions of the recipe

    :param registry: that has the models and the URLs
    """

    def __init__(self, registry: Any) -> None:
        known = registry.topology
        self.Book = registry.Book
        session = type(
            "BoundSession",
            (RecipeSession,),
            {
                "primary": create_engine(known.primary.url),
                "replicas": [create_engine(x.url) for x in known.replicas],
            },
        )
        self.Session = scoped_session(sessionmaker(class_=session))

    def __getattr__(self, name: str) -> Any:
        """Return what the thread's session has: ``execute``, ``commit``..."""
        return getattr(self.Session, name)
