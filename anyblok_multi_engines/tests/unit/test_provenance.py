# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
"""What is known of the columns of a model."""

import pytest
from sqlalchemy import JSON, Column, Integer, String
from sqlalchemy.orm import declarative_base
from sqlalchemy.orm.attributes import manager_of_class

from anyblok_multi_engines.provenance import Kept, columns_of

Base = declarative_base()


class One(Base):
    __tablename__ = "one"

    id = Column(Integer, primary_key=True)


class Three(Base):
    __tablename__ = "three"

    id = Column(Integer, primary_key=True)
    name = Column(String)
    facts = Column(JSON)


@pytest.mark.parametrize(
    ("model", "values"),
    [(One, {"id": 1}), (Three, {"id": 1, "name": "x", "facts": None})],
)
def test_values_of_columns_are_kept(model, values):
    columns = columns_of(manager_of_class(model))
    held = {**values, "other": 5}
    kept = Kept("replica1", columns.order, columns.values_of(held))
    assert kept.values == values


def test_values_that_may_change_in_place_are_looked_at():
    assert columns_of(manager_of_class(Three)).mutable == ("facts",)
