# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok import Declarations
from anyblok.column import (
    UUID,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Decimal,
    Email,
    Enum,
    Float,
    Integer,
    Interval,
    Json,
    LargeBinary,
    ModelSelection,
    Selection,
    String,
    Text,
    Time,
    TimeStamp,
)
from anyblok.relationship import Many2Many, Many2One
from sqlalchemy import PickleType
from sqlalchemy.dialects.postgresql import ARRAY, INT4RANGE, JSONB, REAL
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.types import JSON
from sqlalchemy.types import Integer as IntegerType

from .values import Level

register = Declarations.register
Model = Declarations.Model


class Array(Column):
    sqlalchemy_type = ARRAY(IntegerType)


class Floats(Column):
    sqlalchemy_type = ARRAY(REAL)


class Range(Column):
    sqlalchemy_type = INT4RANGE


class Binary(Column):
    sqlalchemy_type = JSONB


class Tracked(Column):
    sqlalchemy_type = MutableDict.as_mutable(JSON(none_as_null=True))


class Pickle(Column):
    sqlalchemy_type = PickleType


@register(Model)
class Team:
    id = Integer(primary_key=True)
    name = String()


@register(Model)
class Typed:
    """A column of each type"""

    id = Integer(primary_key=True)
    integer = Integer()
    big_integer = BigInteger()
    decimal = Decimal()
    float = Float()
    string = String()
    text = Text()
    boolean = Boolean()
    date = Date()
    date_time = DateTime()
    time_stamp = TimeStamp()
    time = Time()
    interval = Interval()
    json = Json()
    binary_json = Binary()
    tracked_json = Tracked()
    array = Array()
    floats = Floats()
    range = Range()
    bytes = LargeBinary()
    uuid = UUID()
    enum = Enum(enum_cls=Level)
    selection = Selection(
        selections=[("a", "One"), ("b", "Two"), ("c", "Three")]
    )
    model = ModelSelection()
    email = Email()
    pickle = Pickle()
    other_name = Integer(db_column_name="named_otherwise")
    team = Many2One(model=Model.Team, one2many="typed")


@register(Model)
class Versioned:
    id = Integer(primary_key=True)
    version = Integer(nullable=False)
    n = Integer(default=0)
    facts = Json()

    @classmethod
    def define_mapper_args(cls):
        args = super().define_mapper_args()
        args["version_id_col"] = cls.version.descriptor.sqla_column
        return args


@register(Model)
class Pair:
    """Has a key of two columns"""

    a = Integer(primary_key=True)
    b = String(primary_key=True)
    n = Integer(default=0)


@register(Model)
class Animal:
    """Has a row of its own and one in the table of its kind"""

    id = Integer(primary_key=True)
    kind = String(nullable=False)
    legs = Integer(default=4)

    @classmethod
    def define_mapper_args(cls):
        args = super().define_mapper_args()
        args.update(polymorphic_identity="animal", polymorphic_on=cls.kind)
        return args


@register(Model)
class Dog(Model.Animal):
    id = Integer(primary_key=True, foreign_key=Model.Animal.use("id"))
    tricks = Integer(default=0)

    @classmethod
    def define_mapper_args(cls):
        args = super().define_mapper_args()
        args.update(polymorphic_identity="dog")
        return args


@register(Model)
class Node:
    """Has neighbours, a parent and children"""

    id = Integer(primary_key=True)
    name = String()
    parent = Many2One(
        model="Model.Node", remote_columns="id", one2many="children"
    )
    neighbours = Many2Many(
        model="Model.Node",
        join_table="join_node_and_node",
        remote_columns="id",
        m2m_remote_columns="right_id",
        local_columns="id",
        m2m_local_columns="left_id",
    )
