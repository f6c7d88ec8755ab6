# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok import Declarations
from anyblok.column import Integer, Json, Sequence, String
from anyblok.declarations import classmethod_cache
from anyblok.relationship import Many2One

register = Declarations.register
Model = Declarations.Model


@register(Model)
class Shelf:
    id = Integer(primary_key=True)
    name = String(nullable=False, unique=True)
    number = Sequence()

    @classmethod_cache()
    def how_many(cls):
        return cls.query().count()

    @classmethod_cache()
    def name_of(cls, id):
        return cls.anyblok.session.get(cls, id).name


@register(Model)
class Book:
    id = Integer(primary_key=True)
    title = String(nullable=False)
    copies = Integer(default=0)
    facts = Json()
    shelf = Many2One(model=Model.Shelf, one2many="books")
