# This file is a part of the AnyBlok Multi Engines project
#
# This Source Code Form is subject to the terms of the Mozilla Public License,
# v. 2.0. If a copy of the MPL was not distributed with this file,You can
# obtain one at http://mozilla.org/MPL/2.0/.
from anyblok import Declarations
from anyblok.column import Integer
from anyblok.relationship import One2Many

register = Declarations.register
Model = Declarations.Model


@register(Model)
class Tree:
    id = Integer(primary_key=True)
    leaves = One2Many(
        model="Model.Leaf",
        remote_columns="tree_id",
        primaryjoin="ModelTree.id == ModelLeaf.tree_id",
    )


@register(Model)
class Leaf:
    """Is given its tree, and counts its changes, inside a flush"""

    id = Integer(primary_key=True)
    n = Integer(default=0)
    changes = Integer(default=0)
    tree_id = Integer(foreign_key=Model.Tree.use("id"))

    @classmethod
    def before_update_orm_event(cls, mapper, connection, target):
        target.changes += 1
